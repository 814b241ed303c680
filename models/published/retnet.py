"""The layers of RetNet (torchscale's MultiScaleRetention) and of Lightning Attention (TnlAttention, in the
examples of OpenNLPLab's lightning-attention) under their published names."""

from typing import Any

from zoo.errors import UserError
from zoo.memory.fast_weights.retention_mixer import LightningMixer, RetentionMixer
from zoo.models.published.weights import Config, Table, View, affine, number, require, same


def rows(index: int, sizes: list[int]) -> View:
    """A view of one of several matrices that lie below one another in one."""
    return lambda weight: weight.split(sizes)[index]


def retention_table(mixer: RetentionMixer) -> Table:
    """The published names of a retention's weights."""
    names = ("q_proj", "k_proj", "v_proj", "g_proj")
    table: Table = {
        f"{name}.weight": ("in_proj.weight", rows(i, mixer.parts)) for i, name in enumerate(names)
    }
    return table | {"out_proj.weight": ("out_proj.weight", same)}


def retention_shape(config: Config) -> dict[str, Any]:
    """RetentionMixer's arguments."""
    require(config, gate="swish")
    width, heads = number(config, "embed_dim"), number(config, "heads")
    value_width = number(config, "value_dim")
    if width % heads or value_width % heads:
        raise UserError(
            f"config: expected heads that divide embed_dim {width} and value_dim {value_width}, found {heads}"
        )
    eps = config.get("layernorm_eps", 1e-6)
    if type(eps) not in (int, float) or not 0 <= eps < 1:
        raise UserError(f"config: expected layernorm_eps, a number in [0, 1), found {eps!r}")
    return {
        "width": width,
        "heads": heads,
        "head_dim": width // heads,
        "value_dim": value_width // heads,
        "norm_eps": eps,
    }


def lightning_table(mixer: LightningMixer) -> Table:
    """The published names of a Lightning Attention's weights."""
    inner = mixer.heads * mixer.head_dim
    names = ("q_proj", "k_proj", "v_proj", "output_gate.0")
    sizes = [inner, inner, inner, mixer.head_dim]
    table: Table = {f"{name}.weight": ("in_proj.weight", rows(i, sizes)) for i, name in enumerate(names)}
    table |= {"output_gate.1.weight": ("gate_proj.weight", same), "o_proj.weight": ("out_proj.weight", same)}
    return table | affine(norm="norm")


def lightning_shape(config: Config) -> dict[str, Any]:
    """LightningMixer's arguments."""
    width, heads = number(config, "embed_dim"), number(config, "heads")
    layer, depth = number(config, "layer_idx", least=0), number(config, "num_layers")
    if width % heads:
        raise UserError(f"config: expected heads that divide embed_dim {width}, found {heads}")
    if layer >= depth:
        raise UserError(f"config: expected layer_idx below num_layers {depth}, found {layer}")
    return {"width": width, "heads": heads, "head_dim": width // heads, "layer": layer, "depth": depth}
