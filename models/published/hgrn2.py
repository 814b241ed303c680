"""HGRN2 as published: layer and model of flash-linear-attention."""

from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.memory.fast_weights.hgrn2_mixer import HGRN2Mixer
from zoo.models.hgrn2 import HGRN2
from zoo.models.published import fla
from zoo.models.published.deltanet import conv_part, part
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
        "conv_size": fla.conv_size(config, False),
        "conv_bias": flag(config, "conv_bias", False),
    }


def table(model: HGRN2) -> Table:
    block: Any = model.stack[0]
    bounds: Table = {"model.lower_bounds": ("stack.1.mixer.bounds.logits", same)}  # all layers share them
    return fla.decoder_table(mixer_table(block.mixer)) | bounds


@knows(
    model_types=["hgrn2"],
    architectures=["HGRN2ForCausalLM"],
    without_effect=fla.WITHOUT_EFFECT,
    fixed={**fla.FIXED, "use_lower_bound": True},
)
def load(weights: dict[str, Tensor], config: Config) -> HGRN2:
    """The published model with its weights, in their dtype."""
    layer = mixer_shape(fla.LayerConfig(config))
    del layer["conv_bias"]  # models have none
    shape = fla.decoder_shape(config)
    model = build(HGRN2, **shape, **layer)
    fla.set_norm_eps(model, config)
    if shape["depth"] == 1:  # the first layer's bound is 0
        weights = {name: weight for name, weight in weights.items() if name != "model.lower_bounds"}
    fill(model, weights, table(model))
    return model


def published_gradients(model: HGRN2) -> dict[str, Tensor]:
    return gradients(model, table(model))
