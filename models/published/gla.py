"""Gated linear attention as published: the layer of flash-linear-attention."""

from typing import Any

from zoo.errors import UserError
from zoo.memory.fast_weights.gla_mixer import GLAMixer
from zoo.models.published.deltanet import conv_part, part, real, times
from zoo.models.published.weights import Config, Table, flag, fraction, number, require, same


def mixer_table(mixer: GLAMixer) -> Table:
    """The published names of a layer's weights."""
    qkv, sizes = mixer.qkv, [*mixer.qkv, *list(mixer.parts.values())[1:]]
    table: Table = {f"{x}_proj.weight": ("in_proj.weight", part(i, sizes)) for i, x in enumerate("qkv")}
    table["gk_proj.0.weight"] = "in_proj.weight", part(3, sizes)
    table |= {f"gk_proj.1.{x}": (f"decay_proj.{x}", same) for x in ("weight", "bias")}
    if "gate" in mixer.parts:
        table["g_proj.weight"] = "in_proj.weight", part(4, sizes)
    for i, x in enumerate("qkv"):
        table[f"{x}_conv1d.weight"] = "conv.weight", conv_part(i, qkv)
        table[f"{x}_conv1d.bias"] = "conv.bias", part(i, qkv)
    norm = "g_norm_swish_gate" if "gate" in mixer.parts else "g_norm"
    return table | {f"{norm}.weight": ("norm_weight", same), "o_proj.weight": ("out_proj.weight", same)}


def mixer_shape(config: Config) -> dict[str, Any]:
    """GLAMixer's keywords from a layer's config."""
    require(config, mode="chunk", feature_map=None, gate_fn="swish", elementwise_affine=True, fuse_norm=True)
    width, heads = number(config, "hidden_size"), number(config, "num_heads", default=4)
    key_dim = times(width, config.get("expand_k", 0.5), "expand_k")
    value_dim = times(width, config.get("expand_v", 1.0), "expand_v")
    if key_dim % heads or value_dim % heads:
        raise UserError(f"config: expected num_heads that divides {key_dim} and {value_dim}, found {heads}")
    return {
        "heads": heads,
        "head_dim": key_dim // heads,
        "value_dim": value_dim // heads,
        "kv_heads": None if config.get("num_kv_heads") is None else number(config, "num_kv_heads"),
        "gate": flag(config, "use_output_gate", True),
        "gate_rank": number(config, "gate_low_rank_dim", default=16),
        "decay_temperature": real(config, "gate_logit_normalizer", 16.0),
        "clamp_min": real(config, "clamp_min", None),
        "conv_size": number(config, "conv_size", default=4) if flag(config, "use_short_conv", False) else 0,
        "conv_bias": flag(config, "conv_bias", False),
        "norm_eps": fraction(config, "norm_eps", 1e-5),
    }
