"""Gated linear attention as published: layer and model of flash-linear-attention."""

from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.memory.fast_weights.gla_mixer import GLAMixer
from zoo.models.gla import GLA
from zoo.models.published import fla
from zoo.models.published.deltanet import conv_part, part, real, times
from zoo.models.published.fields import knows
from zoo.models.published.weights import (
    Config,
    Table,
    build,
    fill,
    flag,
    fraction,
    gradients,
    number,
    require,
    same,
)


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
        "conv_size": fla.conv_size(config, False),
        "conv_bias": flag(config, "conv_bias", False),
        "norm_eps": fraction(config, "norm_eps", 1e-5),
    }


def table(model: GLA) -> Table:
    block: Any = model.stack[0]
    return fla.decoder_table(mixer_table(block.mixer))


@knows(
    model_types=["gla"],
    architectures=["GLAForCausalLM"],
    without_effect=fla.WITHOUT_EFFECT,
    fixed={**fla.FIXED, "use_gk": True, "use_gv": False},
)
def load(weights: dict[str, Tensor], config: Config) -> GLA:
    """The published model with its weights, in their dtype."""
    layer = mixer_shape(fla.LayerConfig(config))
    del layer["norm_eps"]
    model = build(GLA, **fla.decoder_shape(config), **layer)
    fla.set_norm_eps(model, config)
    fill(model, weights, table(model))
    return model


def published_gradients(model: GLA) -> dict[str, Tensor]:
    return gradients(model, table(model))
