"""DeltaNet, Gated DeltaNet and Kimi Delta Attention as published: layers and models of
flash-linear-attention."""

from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.memory.fast_weights.delta_mixer import DeltaMixer, Rule
from zoo.models.deltanet import DeltaNet
from zoo.models.published import fla
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

RULES: dict[str, Rule] = {"delta": "delta", "gated_delta": "gated", "kda": "kda"}
MODELS = {"delta_net": "delta", "gated_deltanet": "gated_delta", "kda": "kda"}
"""Each model's type and its layers' rule."""


def part(index: int, sizes: list[int]) -> Any:
    """A view of one of several matrices that lie in one, below one another."""
    return lambda weight: weight.split(sizes)[index]


def conv_part(index: int, sizes: list[int]) -> Any:
    """The same of a convolution's weights, published with an axis of 1 in the middle."""
    return lambda weight: weight.split(sizes)[index][:, None]


def mixer_table(mixer: DeltaMixer) -> Table:
    """The published names of a layer's weights."""
    qkv, rest = mixer.qkv, list(mixer.parts.values())[1:]
    sizes = [*qkv, *rest]
    table: Table = {f"{x}_proj.weight": ("in_proj.weight", part(i, sizes)) for i, x in enumerate("qkv")}
    names = {"beta": "b_proj", "decay": "a_proj", "gate": "g_proj"}
    if mixer.decay_proj is not None:
        names |= {"decay": "f_proj.0", "gate": "g_proj.0"}
        table["f_proj.1.weight"] = "decay_proj.weight", same
    if mixer.gate_proj is not None:
        table |= {f"g_proj.1.{x}": (f"gate_proj.{x}", same) for x in ("weight", "bias")}
    for i, name in enumerate(list(mixer.parts)[1:], start=3):
        table[f"{names[name]}.weight"] = "in_proj.weight", part(i, sizes)
    for i, x in enumerate("qkv"):
        table[f"{x}_conv1d.weight"] = "conv.weight", conv_part(i, qkv)
        table[f"{x}_conv1d.bias"] = "conv.bias", part(i, qkv)
    table |= {"A_log": ("A_log", same), "dt_bias": ("dt_bias", same)}
    return table | {"o_norm.weight": ("norm_weight", same), "o_proj.weight": ("out_proj.weight", same)}


def times(size: int, factor: Any, name: str) -> int:
    """size * factor, which must be a whole number."""
    if type(factor) not in (int, float) or factor <= 0 or round(size * factor) != size * factor:
        raise UserError(f"config: expected {name} that makes {size} a whole number, found {factor!r}")
    return round(size * factor)


def real(config: Config, name: str, default: float | None) -> float | None:
    """A number, or the default, which may be None."""
    value = config.get(name, default)
    if value is None and default is None:
        return None
    if type(value) not in (int, float):
        raise UserError(f"config: expected {name}, a number, found {value!r}")
    return float(value)


def mixer_shape(config: Config) -> dict[str, Any]:
    """DeltaMixer's keywords from a layer's config, whose `rule` says which layer it is."""
    if config.get("rule") not in RULES:
        raise UserError(f"config: expected rule, one of {', '.join(RULES)}, found {config.get('rule')!r}")
    rule, heads = RULES[config["rule"]], number(config, "num_heads")
    require(config, mode="chunk", use_beta=True, qk_activation="silu", qk_norm="l2")
    lower_bound = real(config, "lower_bound", None)
    if flag(config, "safe_gate", lower_bound is not None) != (lower_bound is not None):
        raise UserError(
            f"config: expected safe_gate with a lower_bound, found {config['safe_gate']} and {lower_bound}"
        )
    if rule == "delta":
        width = number(config, "hidden_size")
        head_dim = times(width, config.get("expand_k", 1.0), "expand_k") // heads
        value_dim = times(width, config.get("expand_v", 1.0), "expand_v") // heads
    else:
        head_dim = number(config, "head_dim", default=256 if rule == "gated" else 128)
        value_dim = times(head_dim, config.get("expand_v", 2.0 if rule == "gated" else 1.0), "expand_v")
    return {
        "heads": heads,
        "rule": rule,
        "head_dim": head_dim,
        "value_dim": value_dim,
        "value_heads": None if config.get("num_v_heads") is None else number(config, "num_v_heads"),
        "gate": flag(config, "use_gate", rule != "delta"),
        "conv_size": fla.conv_size(config, True),
        "conv_bias": flag(config, "conv_bias", False),
        "negative_eigenvalues": flag(config, "allow_neg_eigval", False),
        "lower_bound": lower_bound,
        "steps": number(config, "num_householder", default=1),
        "norm_eps": fraction(config, "norm_eps", 1e-5),
    }


def table(model: DeltaNet) -> Table:
    block: Any = model.stack[0]
    return fla.decoder_table(mixer_table(block.mixer))


@knows(
    model_types=MODELS,
    architectures=["DeltaNetForCausalLM", "GatedDeltaNetForCausalLM", "KDAForCausalLM"],
    without_effect=fla.WITHOUT_EFFECT,
    fixed={**fla.FIXED, "use_output_norm": True, "output_gate_activation": "swish"},
)
def load(weights: dict[str, Tensor], config: Config) -> DeltaNet:
    """The published model with its weights, in their dtype; `model_type` says which of the three it is."""
    kind = config.get("model_type")
    if kind not in MODELS:
        raise UserError(f"config: expected model_type, one of {', '.join(MODELS)}, found {kind!r}")
    layer = mixer_shape(fla.LayerConfig(config, rule=MODELS[kind]))
    del layer["norm_eps"]
    model = build(DeltaNet, **fla.decoder_shape(config), **layer)
    fla.set_norm_eps(model, config)
    fill(model, weights, table(model))
    return model


def published_gradients(model: DeltaNet) -> dict[str, Tensor]:
    return gradients(model, table(model))
