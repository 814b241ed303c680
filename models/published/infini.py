"""Infini-attention under the names of the project's golden files: no official code or weights exist.

The blocks are pre-LayerNorm with a GELU feed-forward; each layer keeps q, k, v and o apart, its heads' rows
one head after another.
"""

from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.memory.fast_weights.infini_attention import CompressiveAttention, MemoryState
from zoo.models.infini import Infini
from zoo.models.published.fields import knows
from zoo.models.published.weights import (
    Config,
    Table,
    View,
    affine,
    build,
    fill,
    flag,
    fraction,
    gradients,
    number,
    same,
    under,
)


def attention(mixer: CompressiveAttention) -> Table:
    """One layer's attention."""

    def part(index: int) -> View:
        return lambda weight: weight.split(mixer.parts)[index]

    return {
        **{f"{name}_proj.weight": ("qkv.weight", part(index)) for index, name in enumerate("qkv")},
        "o_proj.weight": ("out_proj.weight", same),
        "beta": ("gate", same),
    }


def table(model: Infini) -> Table:
    block: Any = model.stack[0]
    return {
        "tok_emb.weight": ("embed.weight", same),
        **under("layers.{i}.attn.", "stack.{i}.mixer.", attention(block.mixer)),
        **under("layers.{i}.", "stack.{i}.", affine(norm1="mixer_norm", norm2="mlp_norm")),
        **under("layers.{i}.ff.", "stack.{i}.mlp.", affine(w1="in_proj", w2="out_proj")),
        **affine(norm_f="norm"),
        "lm_head.weight": ("head.weight", same),
    }


def attention_shape(config: Config) -> dict[str, Any]:
    """What a layer's constructor and the model's both take."""
    rule = config.get("update", "delta")
    if rule not in ("linear", "delta"):
        raise UserError(f"config: expected update, linear or delta, found {rule!r}")
    rotated = flag(config, "rope", True)
    shape: dict[str, Any] = {"rope_base": base(config)} if rotated else {"position": "none"}
    return shape | {
        "width": number(config, "d_model"),
        "heads": number(config, "n_head"),
        "head_dim": number(config, "d_key"),
        "value_width": number(config, "d_value", default=number(config, "d_key")),
        "rule": rule,
        "dropout": fraction(config, "dropout", 0.0),
    }


def base(config: Config) -> float:
    value = config.get("rope_base", 10000.0)
    if type(value) not in (int, float) or not value > 0:
        raise UserError(f"config: expected rope_base, a number above 0, found {value!r}")
    return float(value)


def segment_len(config: Config) -> int:
    """The longest of the config's `seg_lens`, or as `segment_len` says."""
    lengths = config.get("seg_lens")
    if lengths is None:
        return number(config, "segment_len")
    if not isinstance(lengths, list) or not lengths:
        raise UserError(f"config: expected seg_lens, a list of lengths, found {lengths!r}")
    return max(number({"seg_lens": length}, "seg_lens") for length in lengths)


def tied(weights: dict[str, Tensor], config: Config) -> bool:
    """As `lm_head` begins, or where there are no weights of one."""
    words = config.get("lm_head")
    if words is None:
        return "lm_head.weight" not in weights
    if not str(words).startswith(("tied", "untied")):
        raise UserError(f"config: expected lm_head tied … or untied …, found {words!r}")
    return str(words).startswith("tied")


def begins(name: str, words: str, config: Config) -> None:
    """A field in words, which may be absent."""
    value = config.get(name)
    if value is not None and not str(value).startswith(words):
        raise UserError(f"config: expected {name} {words} …, found {value!r}")


@knows(
    without_effect=["rope_base"],  # without rope
    fixed={
        "norm": "pre-LayerNorm eps 1e-5, final norm_f",
        "activation": "gelu (erf)",
        "scale": "1/sqrt(d_key)",
    },
)
def load(weights: dict[str, Tensor], config: Config) -> Infini:
    """The model with its weights, in their dtype."""
    begins("rope_pairing", "half-split", config)
    begins("eps", "none; A_mem := 0 while the memory is empty", config)
    shape = attention_shape(config) | {
        "vocab_size": number(config, "vocab"),
        "segment_len": segment_len(config),
        "depth": number(config, "n_layer"),
        "mlp_width": number(config, "d_ff"),
        "norm": "layer",
        "activation": "gelu",
        "bias": True,
        "tied": tied(weights, config),
    }
    model = build(Infini, **shape)
    fill(model, weights, table(model))
    return model


def published_gradients(model: Infini) -> dict[str, Tensor]:
    return gradients(model, table(model))


def published_state(state: tuple[MemoryState, ...]) -> dict[str, Tensor]:
    """`layer{l}/M` (rows, heads, key, value) and `layer{l}/z` (rows, heads, key); nothing before the first
    segment."""
    return {
        f"layer{layer}/{name}": tensor
        for layer, layer_state in enumerate(state)
        if layer_state.writes.any()
        for name, tensor in memory(layer_state).items()
    }


def memory(state: MemoryState) -> dict[str, Tensor]:
    return {"M": state.matrix, "z": state.normaliser}
