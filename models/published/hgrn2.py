"""The layer of HGRN2 as published: flash-linear-attention's HGRN2Attention."""

from typing import Any

from zoo.errors import UserError
from zoo.memory.fast_weights.hgrn2_mixer import HGRN2Mixer
from zoo.models.published.deltanet import conv_part, part
from zoo.models.published.weights import Config, Table, flag, fraction, number, require, same


def mixer_table(mixer: HGRN2Mixer) -> Table:
    """The published names of a layer's weights."""
    table: Table = {}
    for i, x in enumerate("qfi"):
        table[f"{x}_proj.weight"] = "in_proj.weight", part(i, mixer.parts)
        table[f"{x}_conv1d.weight"] = "conv.weight", conv_part(i, mixer.parts)
        table[f"{x}_conv1d.bias"] = "conv.bias", part(i, mixer.parts)
    return table | {"g_norm.weight": ("norm.weight", same), "o_proj.weight": ("out_proj.weight", same)}


def mixer_shape(config: Config) -> dict[str, Any]:
    """HGRN2Mixer's keywords from a layer's config."""
    require(config, mode="chunk", elementwise_affine=True)
    fraction(config, "norm_eps", 1e-5)  # the published layer has one, and norms with 1e-5 whatever it is
    width, expand = number(config, "hidden_size"), config.get("expand_ratio", 128)
    if config.get("num_heads") is not None:
        heads = number(config, "num_heads")
        head_dim = width // heads if expand is None else number(config, "expand_ratio", default=128)
    else:
        head_dim = number(config, "expand_ratio", default=128)
        heads = width // head_dim
    if not heads or width % heads:
        raise UserError(f"config: expected num_heads that divides {width}, found {heads}")
    return {
        "heads": heads,
        "head_dim": head_dim,
        "conv_size": number(config, "conv_size", default=4) if flag(config, "use_short_conv", False) else 0,
        "conv_bias": flag(config, "conv_bias", False),
    }
