"""Names and shapes of the published weights of the hybrids, by their configs."""

import math
from typing import Any

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def rglru(name: str, width: int, heads: int) -> Shapes:
    size = width // heads
    gates = {f"{name}{gate}.w": (heads, size, size) for gate in ("input_gate", "a_gate")}
    return (
        {f"{name}a_param": (width,)}
        | gates
        | {f"{name}{gate}.b": (heads, size) for gate in ("input_gate", "a_gate")}
    )


def linear(name: str, out: int, into: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def recurrent(name: str, c: Config) -> Shapes:
    width, inner, taps = c["width"], c.get("lru_width") or c["width"], c.get("conv1d_temporal_width", 4)
    shapes = linear(f"{name}linear_y", inner, width, True) | linear(f"{name}linear_x", inner, width, True)
    shapes |= linear(f"{name}linear_out", width, inner, True)
    shapes |= {f"{name}conv_1d.w": (taps, inner), f"{name}conv_1d.b": (inner,)}
    return shapes | rglru(f"{name}rg_lru.", inner, c["num_heads"])


def griffin_shapes(c: Config) -> Shapes:
    width, hidden = c["width"], c["mlp_expanded_width"]
    shapes: Shapes = {"embedder.input_embedding": (c["vocab_size"], width), "final_norm.scale": (width,)}
    for i, kind in enumerate(c["block_types"]):
        n, a = f"blocks.{i}.", f"blocks.{i}.attention_block."
        shapes |= {f"{n}{part}_pre_norm.scale": (width,) for part in ("temporal", "channel")}
        shapes |= {f"{n}mlp_block.ffw_up.w": (2, width, hidden), f"{n}mlp_block.ffw_up.b": (2, 1, 1, hidden)}
        shapes |= linear(f"{n}mlp_block.ffw_down", width, hidden, True)
        if kind == "recurrent":
            shapes |= recurrent(f"{n}recurrent_block.", c)
        else:
            shapes |= linear(f"{a}proj_q", width, width, False) | linear(f"{a}proj_final", width, width, True)
            for part in "kv":
                shapes |= linear(f"{a}proj_{part}", width // c["num_heads"], width, False)
    return shapes


def mamba(name: str, width: int, c: Config, bias: bool, conv_bias: bool, rank: Any = "auto") -> Shapes:
    inner, states, taps = c.get("expand", 2) * width, c.get("d_state", 16), c.get("d_conv", 4)
    rank = math.ceil(width / 16) if rank == "auto" else rank
    shapes = linear(f"{name}in_proj", 2 * inner, width, bias) | linear(f"{name}out_proj", width, inner, bias)
    shapes |= {f"{name}conv1d.weight": (inner, 1, taps)}
    shapes |= {f"{name}conv1d.bias": (inner,)} if conv_bias else {}
    shapes |= linear(f"{name}x_proj", rank + 2 * states, inner, False)
    shapes |= linear(f"{name}dt_proj", inner, rank, True)
    return shapes | {f"{name}A_log": (inner, states), f"{name}D": (inner,)}


def samba_shapes(c: Config) -> Shapes:
    width, hidden, vocab = c["n_embd"], c["intermediate_size"], c["padded_vocab_size"]
    groups, bias = c.get("n_query_groups", c["n_head"]), c["bias"]
    packed = (c["n_head"] + 2 * groups) * width // c["n_head"]

    def norm(name: str) -> Shapes:
        return {f"{name}.weight": (width,)} | (
            {f"{name}.bias": (width,)} if c["_norm_class"] == "LayerNorm" else {}
        )

    shapes: Shapes = {"lm_head.weight": (vocab, width), "transformer.wte.weight": (vocab, width)}
    shapes |= norm("transformer.ln_f")
    for i in range(c["n_layer"]):
        n = f"transformer.h.{i}."
        shapes |= norm(f"{n}norm_1") | norm(f"{n}norm_2")
        shapes |= {f"{n}mlp.swiglu.w{j}.weight": (hidden, width) for j in (1, 2)}
        shapes |= {f"{n}mlp.swiglu.w3.weight": (width, hidden)}
        if c["mb_per_layer"] and i % c["mb_per_layer"] == 0:
            shapes |= mamba(f"{n}attn.", width, c, False, True)
        else:
            shapes |= linear(f"{n}attn.attn", packed, width, bias)
            shapes |= linear(f"{n}attn.proj", width, width, bias)
    return shapes


def jamba_shapes(c: Config) -> Shapes:
    width, hidden, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    own = {name.removeprefix("mamba_"): value for name, value in c.items() if name.startswith("mamba_")}
    bias, conv_bias, rank = own.get("proj_bias", False), own.get("conv_bias", True), own["dt_rank"]
    shapes: Shapes = {"lm_head.weight": (vocab, width), "model.embed_tokens.weight": (vocab, width)}
    shapes |= {"model.final_layernorm.weight": (width,)}
    for i in range(c["num_hidden_layers"]):
        n = f"model.layers.{i}."
        shapes |= {f"{n}{part}_layernorm.weight": (width,) for part in ("input", "pre_ff")}
        shapes |= {f"{n}feed_forward.{part}_proj.weight": (hidden, width) for part in ("gate", "up")}
        shapes |= {f"{n}feed_forward.down_proj.weight": (width, hidden)}
        if i % c["attn_layer_period"] == c["attn_layer_offset"]:
            size = width // c["num_attention_heads"] * c["num_key_value_heads"]
            for part, out in (("q", width), ("k", size), ("v", size), ("o", width)):
                shapes |= linear(f"{n}self_attn.{part}_proj", out, width, False)
        else:
            shapes |= mamba(f"{n}mamba.", width, own, bias, conv_bias, rank)
            ranked = math.ceil(width / 16) if rank == "auto" else rank
            sizes = {"dt": ranked, "b": own["d_state"], "c": own["d_state"]}
            shapes |= {f"{n}mamba.{part}_layernorm.weight": (size,) for part, size in sizes.items()}
    return {name.replace("pre_ff_layernorm", "pre_ff_layernorm"): shape for name, shape in shapes.items()}


def mamba_ssm_shapes(c: Config) -> Shapes:
    width, hidden = c["d_model"], -(-c["d_intermediate"] // 128) * 128
    vocab = -(-c["vocab_size"] // c["pad_vocab_size_multiple"]) * c["pad_vocab_size_multiple"]

    def norm(name: str) -> Shapes:
        return {f"{name}.weight": (width,)} | ({} if c["rms_norm"] else {f"{name}.bias": (width,)})

    shapes: Shapes = {"lm_head.weight": (vocab, width), "backbone.embedding.weight": (vocab, width)}
    shapes |= norm("backbone.norm_f")
    for i in range(c["n_layer"]):
        n, m = f"backbone.layers.{i}.", f"backbone.layers.{i}.mixer."
        shapes |= norm(f"{n}norm")
        if hidden:
            shapes |= norm(f"{n}norm2")
            shapes |= {f"{n}mlp.fc1.weight": (2 * hidden, width), f"{n}mlp.fc2.weight": (width, hidden)}
        own = c["attn_cfg"] if i in c["attn_layer_idx"] else c["ssm_cfg"]
        bias, conv_bias = own.get("bias", False), own.get("conv_bias", True)
        if i in c["attn_layer_idx"]:
            heads = own["num_heads"]
            size = own.get("head_dim") or width // heads
            packed = (heads + 2 * (own.get("num_heads_kv") or heads)) * size
            gated = -(-own.get("mlp_dim", 0) // 256) * 256
            shapes |= linear(f"{m}in_proj", packed + gated, width, own.get("qkv_proj_bias", True))
            shapes |= linear(f"{m}out_proj", width, heads * size + gated // 2, own.get("out_proj_bias", True))
            if own.get("d_conv", 0):
                shapes |= {f"{m}conv1d.weight": (packed, 1, own["d_conv"]), f"{m}conv1d.bias": (packed,)}
        elif own.get("layer", "Mamba1") == "Mamba1":
            shapes |= mamba(m, width, own, bias, conv_bias, own.get("dt_rank", "auto"))
        else:
            inner = own.get("expand", 2) * width
            recurrent_width = own.get("d_ssm") or inner
            heads = recurrent_width // own["headdim"]
            mixed = recurrent_width + 2 * own.get("ngroups", 1) * own["d_state"]
            enter = 2 * (inner - recurrent_width) + recurrent_width + mixed + heads
            shapes |= linear(f"{m}in_proj", enter, width, bias) | linear(f"{m}out_proj", width, inner, bias)
            shapes |= {f"{m}conv1d.weight": (mixed, 1, own.get("d_conv", 4))}
            shapes |= {f"{m}conv1d.bias": (mixed,)} if conv_bias else {}
            shapes |= {f"{m}dt_bias": (heads,), f"{m}A_log": (heads,)}
            shapes |= {f"{m}D": (recurrent_width if own.get("D_has_hdim") else heads,)}
            shapes |= {f"{m}norm.weight": (recurrent_width,)} if own.get("rmsnorm", True) else {}
    return shapes
