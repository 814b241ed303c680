"""The hybrids by slow loops over one text.

No code is shared with the zoo.  `computed` turns (kind, config, inputs and weights) into the tensors that a
golden file of that kind holds.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.golden.reference.hybrid_layers import (
    Config,
    Tensors,
    attend,
    gelu_tanh,
    last_keys,
    linear,
    mamba,
    mamba2,
    mha,
    norm,
    recurrent_block,
    rglru,
    rms,
    silu,
)


def griffin_model(c: Config, p: Tensors, tokens: Tensor) -> tuple[Tensor, list[Any]]:
    def gain(x: Tensor, name: str) -> Tensor:
        return rms(x, 1 + p[name], 1e-6)

    width, heads, carried = c["width"], c["num_heads"], []
    x = p["embedder.input_embedding"][tokens]
    x = x * math.sqrt(width) if c["embeddings_scale_by_sqrt_dim"] else x
    for i, kind in enumerate(c["block_types"]):
        n = f"blocks.{i}."
        y = gain(x, f"{n}temporal_pre_norm.scale")
        if kind == "recurrent":
            y, state = recurrent_block(y, p, f"{n}recurrent_block.")
        else:
            a, size = f"{n}attention_block.", width // heads
            q, k, v = (linear(y, p, f"{a}proj_{part}").view(len(y), -1, size) for part in "qkv")
            y, k = attend(q, k, v, c["attention_window_size"] + 1, size // 2)
            y, state = linear(y, p, f"{a}proj_final"), last_keys(k, v, c["attention_window_size"])
        carried.append(state)
        x = x + y
        y, (w0, w1) = gain(x, f"{n}channel_pre_norm.scale"), p[f"{n}mlp_block.ffw_up.w"]
        b0, b1 = p[f"{n}mlp_block.ffw_up.b"]
        x = x + linear(gelu_tanh(y @ w0 + b0[0, 0]) * (y @ w1 + b1[0, 0]), p, f"{n}mlp_block.ffw_down")
    logits = gain(x, "final_norm.scale") @ p["embedder.input_embedding"].T
    cap = c["logits_soft_cap"]
    return (cap * (logits / cap).tanh() if cap else logits), carried


def samba_model(c: Config, p: Tensors, tokens: Tensor) -> tuple[Tensor, list[Any]]:
    heads, eps, carried = c["n_head"], c["norm_eps"], []
    groups, width = c.get("n_query_groups", heads), c["n_embd"] // heads
    x = p["transformer.wte.weight"][tokens]
    for i in range(c["n_layer"]):
        n = f"transformer.h.{i}."
        y = norm(x, p, f"{n}norm_1", eps)
        if c["mb_per_layer"] and i % c["mb_per_layer"] == 0:
            y, state = mamba(y, p, f"{n}attn.")
        else:
            packed = linear(y, p, f"{n}attn.attn").view(len(y), groups, -1, width)
            q, k, v = packed[:, :, :-2].flatten(1, 2), packed[:, :, -2], packed[:, :, -1]
            y, k = attend(q, k, v, c["local_window"], int(c["rotary_percentage"] * width))
            y, state = linear(y, p, f"{n}attn.proj"), last_keys(k, v, c["local_window"] - 1)
        carried.append(state)
        x = x + y
        y = norm(x, p, f"{n}norm_2", eps)
        w1, w2, w3 = (p[f"{n}mlp.swiglu.w{j}.weight"] for j in (1, 2, 3))
        x = x + (silu(y @ w1.T) * (y @ w2.T)) @ w3.T
    return norm(x, p, "transformer.ln_f", eps) @ p["lm_head.weight"].T, carried


def jamba_model(c: Config, p: Tensors, tokens: Tensor) -> tuple[Tensor, list[Any]]:
    heads, eps, carried = c["num_attention_heads"], c["rms_norm_eps"], []
    width = c["hidden_size"] // heads
    x = p["model.embed_tokens.weight"][tokens]
    x = torch.where(tokens[..., None] == c.get("pad_token_id", -1), x.detach(), x)  # not trained
    for i in range(c["num_hidden_layers"]):
        n = f"model.layers.{i}."
        y = norm(x, p, f"{n}input_layernorm", eps)
        if i % c["attn_layer_period"] == c["attn_layer_offset"]:
            q, k, v = (linear(y, p, f"{n}self_attn.{part}_proj").view(len(y), -1, width) for part in "qkv")
            y, k = attend(q, k, v, len(x), 0)
            y, state = linear(y, p, f"{n}self_attn.o_proj"), last_keys(k, v, len(x))
        else:
            y, state = mamba(y, p, f"{n}mamba.", eps)
        carried.append(state)
        x = x + y
        y, f = norm(x, p, f"{n}pre_ff_layernorm", eps), f"{n}feed_forward."
        x = x + linear(silu(linear(y, p, f"{f}gate_proj")) * linear(y, p, f"{f}up_proj"), p, f"{f}down_proj")
    return norm(x, p, "model.final_layernorm", eps) @ p["lm_head.weight"].T, carried


def mamba_ssm_model(c: Config, p: Tensors, tokens: Tensor) -> tuple[Tensor, list[Any]]:
    eps, carried = c["norm_epsilon"], []
    x = p["backbone.embedding.weight"][tokens]
    for i in range(c["n_layer"]):
        n = f"backbone.layers.{i}."
        y = norm(x, p, f"{n}norm", eps)
        if i in c["attn_layer_idx"]:
            y, state = mha(y, p, f"{n}mixer.", c["attn_cfg"])
        elif c["ssm_cfg"].get("layer", "Mamba1") == "Mamba2":
            y, state = mamba2(y, p, f"{n}mixer.", c["ssm_cfg"])
        else:
            y, state = mamba(y, p, f"{n}mixer.")
        carried.append(state)
        x = x + y
        if c["d_intermediate"]:
            y = norm(x, p, f"{n}norm2", eps) @ p[f"{n}mlp.fc1.weight"].T
            up, gate = y.chunk(2, 1)
            x = x + (up * silu(gate)) @ p[f"{n}mlp.fc2.weight"].T
    return norm(x, p, "backbone.norm_f", eps) @ p["lm_head.weight"].T, carried


MODELS: dict[str, tuple[Callable[..., tuple[Tensor, list[Any]]], str, str]] = {
    "hybrids/griffin_model": (griffin_model, "", ""),
    "hybrids/samba_model": (samba_model, "lm_head.weight", "transformer.wte.weight"),
    "hybrids/jamba_model": (jamba_model, "model.embed_tokens.weight", "lm_head.weight"),
    "hybrids/mamba_ssm_hybrid": (mamba_ssm_model, "backbone.embedding.weight", "lm_head.weight"),
}
"""And, where they are tied, the name of what has the gradient and the other one."""


def slopes(total: Tensor, leaves: Tensors, prefix: str = "grad.") -> Tensors:
    results = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, allow_unused=True)
    pairs = zip(leaves.items(), results, strict=True)
    return {f"{prefix}{n}": torch.zeros_like(x) if g is None else g for (n, x), g in pairs}


def computed(kind: str, c: Config, inputs: Tensors) -> Tensors:
    """`given` has inputs and weights under the file's names."""
    p = {n[2:]: w.clone().requires_grad_() for n, w in inputs.items() if n.startswith("w.")}
    if kind in MODELS:
        model, first, second = MODELS[kind]
        tied = torch.equal(p[first], p[second]) if first else False
        if tied:
            p[second] = p[first]
        tokens, targets = inputs["in.tokens"], inputs["in.targets"]
        rows = [model(c, p, row) for row in tokens]
        logits = torch.stack([outputs for outputs, _ in rows])
        chosen = logits.gather(2, targets[..., None])[..., 0]
        loss = (logits.logsumexp(-1) - chosen).mean()
        results = {"out.logits": logits, "out.loss": loss}
        for t in c["bounds"]:
            for layer in range(len(rows[0][1])):
                record = [carried[layer](t) for _, carried in rows]
                results |= {
                    f"state@{t}.{layer}.{n}": torch.stack([row[n] for row in record]) for n in record[0]
                }
        leaves = {f"w.{n}": w for n, w in p.items() if not (tied and n == second)}
        return results | slopes(loss, leaves)
    x = inputs["in.x"].clone().requires_grad_()
    leaves = {"in.x": x} | {f"w.{n}": w for n, w in p.items()}
    if kind == "hybrids/griffin_recurrent_block":
        blocks = [recurrent_block(row, p, "") for row in x]
        y = torch.stack([outputs for outputs, _ in blocks])
        results = {"out.y": y}
        for t in c["bounds"]:
            for n in ("conv", "h"):
                results[f"state@{t}.{n}"] = torch.stack([state(t)[n] for _, state in blocks])
        return results | slopes((y * inputs["cot.y"]).sum(), leaves)
    h0, starts = inputs["in.h0"].clone().requires_grad_(), (inputs["in.segment_pos"] == 0).tolist()
    fresh = [rglru(x[b], p, "", starts[b], torch.zeros_like(h0[b])) for b in range(len(x))]
    going = [rglru(x[b], p, "", [False] * x.shape[1], h0[b]) for b in range(len(x))]
    (y, h), (y0, hidden0) = (tuple(map(torch.stack, zip(*runs, strict=True))) for runs in (fresh, going))
    results = {"out.y": y, "out.h": h, "out0.y": y0, "out0.h": hidden0}
    for t in [sum(c["segments"][: i + 1]) for i in range(len(c["segments"]))]:
        results[f"state@{t}.h"] = y[:, t - 1]
    total = (y0 * inputs["cot.y"]).sum() + (hidden0 * inputs["cot.h"]).sum()
    return results | slopes(total, leaves | {"in.h0": h0})
