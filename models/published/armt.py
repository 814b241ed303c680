"""Associative Recurrent Memory Transformer as published: RodkinIvan/associative-recurrent-memory-transformer,
modeling_amt/language_modeling.py, around GPT-2, with one memory head, denominator and no gating.  A plain
GPT-2, which training begins with, gets new memory tokens and new maps to the memory, and equals GPT-2.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from zoo.memory.fast_weights.associative import AssociativeState
from zoo.models.armt import ARMT
from zoo.models.published import gpt2
from zoo.models.published.fields import knows
from zoo.models.published.weights import (
    Config,
    Table,
    affine,
    build,
    fill,
    flag,
    gradients,
    number,
    published_weights,
    require,
    same,
    under,
)

TABLE: Table = {
    **gpt2.body("layer.", "block."),
    "model.transformer.h.{i}.W_mq.weight": ("stack.{i}.memory.query.weight", same),
    "model.transformer.h.{i}.W_mk.weight": ("stack.{i}.memory.key.weight", same),
    "model.transformer.h.{i}.W_mv.weight": ("stack.{i}.memory.value.weight", same),
    **under("model.transformer.h.{i}.", "stack.{i}.memory.", affine(W_mb="strength")),
}


class ARMTFromTheEnd(gpt2.FromTheEnd, ARMT):
    pass


@knows(
    model_types=["gpt2"], architectures=["GPT2LMHeadModel", "GPT2Model"], without_effect=gpt2.WITHOUT_EFFECT
)
def load(weights: dict[str, Tensor], config: Config) -> ARMT:
    """The published model with its weights, in their dtype."""
    require(config, n_heads=1, use_denom=True, gating=False, act_on=False, use_sink=False)
    key_width, nu = number(config, "d_mem"), number(config, "nu", default=3)
    require(config, d_key=2 * nu * key_width)
    is_plain = gpt2.is_plain(weights)
    if is_plain:
        weights = gpt2.with_new_memory(weights, config, "layer.")
    prefix = gpt2.prefix(weights)
    shape = gpt2.shape(config) | {
        "key_width": key_width,
        "nu": nu,
        "correction": flag(config, "correction", True),
        "wrap_positions": flag(config, "wrap_pos", False),
        "tied": gpt2.tied(weights, config),
    }
    with gpt2.fixed_seed():
        model = build(ARMTFromTheEnd if gpt2.from_the_end(config) else ARMT, **shape)
    if is_plain:
        weights |= new_maps(model, weights)
    positions = number(config, "n_positions")
    enlarged = positions + model.memory_tokens  # what the published code makes of its table when it wraps
    rows = len(weights.get(f"{prefix}model.transformer.wpe.weight", ()))
    gpt2.finish(model, config, enlarged if model.wrap_positions or rows == enlarged else positions)
    fill(model, weights, under(prefix, "", TABLE))
    return model


def new_maps(model: ARMT, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A new model's maps to its memory, under their published names, in the weights' dtype."""
    dtype = next((weight.dtype for weight in weights.values() if weight.is_floating_point()), None)
    return {
        name: weight.detach().to(dtype, copy=True)
        for name, weight in published_weights(model, TABLE).items()
        if ".W_m" in name
    }


def new_weights(names: Iterable[str]) -> list[str]:
    """Weights that this checkpoint lacks and that training initialises."""
    return ["memory", "W_mq", "W_mk", "W_mv", "W_mb"] if gpt2.is_plain(names) else []


def published_gradients(model: ARMT, prefix: str = "memory_cell.") -> dict[str, Tensor]:
    return gradients(model, under(prefix, "", TABLE))


def published_state(state: tuple[AssociativeState, ...]) -> dict[str, Tensor]:
    """`layer{l}/W_mem` (rows, key, width) and `layer{l}/z` (rows, key); nothing before the first segment."""
    return {
        f"layer{layer}/{name}": tensor
        for layer, layer_state in enumerate(state)
        if layer_state.writes.any()
        for name, tensor in (("W_mem", layer_state.matrix), ("z", layer_state.normaliser))
    }
