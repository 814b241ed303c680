"""Griffin as transformers has it: RecurrentGemmaForCausalLM.

Unlike google-deepmind's code, its `attention_window_size` counts the current token, its embeddings are scaled
by sqrt(width) rounded to bfloat16, and `intermediate_size` is twice the feed-forward's width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.models.griffin import Griffin
from zoo.models.published.attention import parts
from zoo.models.published.fields import rope_base
from zoo.models.published.weights import (
    Config,
    Table,
    affine,
    build,
    fill,
    fraction,
    number,
    require,
    same,
    under,
)

GAINS = ("_norm.weight",)  # of norms, stored less 1
ROTATED = 0.5  # the part of a head that rotary positions rotate


def block_types(config: Config) -> list[str]:
    """The kind of every layer: the config's kinds, repeated."""
    kinds, depth = config.get("block_types"), number(config, "num_hidden_layers")
    if not isinstance(kinds, list) or not kinds or not {"recurrent", "attention"}.issuperset(kinds):
        raise UserError(f"config: expected block_types, a list of recurrent and attention, found {kinds!r}")
    return [kinds[layer % len(kinds)] for layer in range(depth)]


def shape(config: Config) -> dict[str, Any]:
    """Our constructor's keywords."""
    width, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    require(config, head_dim=width // heads, attention_bias=False, attention_dropout=0.0)
    require(config, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True)
    kv_heads = config.get("num_key_value_heads")
    require({"num_key_value_heads": heads if kv_heads is None else kv_heads}, num_key_value_heads=1)
    cap, inner = config.get("logits_soft_cap", 30.0), number(config, "intermediate_size", least=2)
    if type(cap) not in (int, float) or cap <= 0:
        raise UserError(f"config: expected logits_soft_cap, a number above 0, found {cap!r}")
    lru_width = {} if config.get("lru_width") is None else config
    window = number(config, "attention_window_size", default=2048)
    base = rope_base(config, rotated=ROTATED)
    return {
        "vocab_size": number(config, "vocab_size"),
        "segment_len": window,
        "depth": number(config, "num_hidden_layers"),
        "width": width,
        "heads": heads,
        "mlp_width": inner // 2,
        "window": window,
        "pattern": block_types(config),
        "lru_width": number(lru_width, "lru_width", default=width),
        "conv_size": number(config, "conv1d_width", default=4),
        "position": {"kind": "rope", "base": base},
        "soft_cap": float(cap),
    }


def recurrent(blocks: int) -> Table:
    """`RecurrentGemmaRecurrentBlock`."""
    gates: Table = {
        f"rg_lru.{theirs}_gate_{part}": (f"unit.{ours}_gate.{part}", same if part == "weight" else in_blocks)
        for theirs, ours in (("input", "input"), ("recurrent", "decay"))
        for part in ("weight", "bias")
        for in_blocks in [lambda bias: bias.unflatten(0, (blocks, -1))]
    }
    return {
        **affine(linear_y="gate", linear_x="in_proj", linear_out="out_proj"),
        "conv_1d.weight": ("conv.weight", lambda w: w[:, None]),
        "conv_1d.bias": ("conv.bias", same),
        "rg_lru.recurrent_param": ("unit.rate", same),
        **gates,
    }


def table(model: Griffin) -> Table:
    named: Table = {
        "model.embed_tokens.weight": ("embed.weight", same),
        "lm_head.weight": ("head.weight", same),
        "model.final_norm.weight": ("norm.weight", same),
    }
    block: Table = {
        "temporal_pre_norm.weight": ("mixer_norm.weight", same),
        "channel_pre_norm.weight": ("mlp_norm.weight", same),
        **affine(mlp_block__down_proj="mlp.out_proj"),
    }
    for part in ("weight", "bias"):
        block[f"mlp_block.gate_proj.{part}"] = (f"mlp.in_proj.{part}", lambda w: w.chunk(2)[0])
        block[f"mlp_block.up_proj.{part}"] = (f"mlp.in_proj.{part}", lambda w: w.chunk(2)[1])
    for layer, part_of_stack in enumerate(model.stack):
        mixer: Any = part_of_stack.mixer
        if isinstance(mixer, WindowAttention):
            temporal = parts(mixer, "{}_proj", "mixer.qkv") | affine(o_proj="mixer.out_proj")
        else:
            temporal = under("", "mixer.", recurrent(len(mixer.unit.input_gate.weight)))
        temporal = under("temporal_block.", "", temporal)
        named |= under(f"model.layers.{layer}.", f"stack.{layer}.", block | temporal)
    return named


def load_transformers(weights: dict[str, Tensor], config: Config) -> Griffin:
    """The published model with its weights, in their dtype."""
    model = build(Griffin, **shape(config))
    model.scale = float(torch.tensor(model.width**0.5, dtype=torch.bfloat16))
    for part in model.modules():
        if isinstance(part, nn.RMSNorm):
            part.eps = fraction(config, "rms_norm_eps", 1e-6)
    gains = {name: weight + 1 if name.endswith(GAINS) else weight for name, weight in weights.items()}
    fill(model, gains, table(model))
    return model
