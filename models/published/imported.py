"""A published checkpoint as a model of the zoo's: what a run folder made by `zoo import` names.

A loader chooses the model by its config, and by the names, shapes and ties of the weights.  A
run's config.yaml keeps exactly these, and its checkpoint keeps the weights.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import zoo.models.published
from zoo.errors import UserError, first_line
from zoo.models.published.weights import MissingWeightError, without_prefix
from zoo.module import Batch, SequenceModule
from zoo.state import State


@cache
def formats() -> tuple[str, ...]:
    """Names of the loaders of whole models."""
    names = [module.name for module in pkgutil.iter_modules(zoo.models.published.__path__)]
    return tuple(name for name in names if hasattr(_module(name), "load"))


def _module(name: str) -> Any:
    return importlib.import_module(f"zoo.models.published.{name}")


def loaded(
    name: str, weights: Mapping[str, Tensor], config: Mapping[str, Any], *, is_stored: bool = False
) -> SequenceModule:
    """The model of a published checkpoint.  UserError, in one line, for any error of the loader.

    `is_stored`: the config is that of a run, which an earlier version may have imported with fields that the
    loader doesn't know.
    """
    if name not in formats():
        raise UserError(f"format: expected one of {', '.join(formats())}, found {name}")
    try:
        load = _module(name).load
        load = load.__wrapped__ if is_stored else load
        try:
            model: SequenceModule = load(dict(weights), config)
        except MissingWeightError as error:
            if (stripped := without_prefix(weights, error.name)) is None:
                raise
            model = load(stripped, config)
    except KeyError as error:
        raise UserError(f"config: expected {error.args[0]}, found none") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise UserError(
            f"config and weights don't go together as format {name}: {first_line(error)}"
        ) from error
    return model


def model_types(name: str) -> tuple[str, ...]:
    """What transformers calls the models that a format reads."""
    types: tuple[str, ...] = _module(name).load.model_types
    return types


def new_weights(name: str, names: Iterable[str]) -> list[str]:
    """Weights of the format that a checkpoint with these names doesn't have and that start anew."""
    module = _module(name)
    return list(module.new_weights(names)) if hasattr(module, "new_weights") else []


def stand_ins(shapes: Mapping[str, Sequence[int]], tied: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """Weights of these shapes that take no memory: matrices differ unless they are tied, the rest is 0."""
    first_of = {name: group[0] for group in tied for name in group}
    values = {name: float(i) for i, name in enumerate(shapes, start=1)}
    return {
        name: torch.tensor(values[first_of.get(name, name)] if len(shape) > 1 else 0.0).expand(tuple(shape))
        for name, shape in shapes.items()
    }


def _cut_logits(symbols: int, head: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
    return logits[..., :symbols]


class Imported(SequenceModule):
    """The model that the loader `format` makes of weights with these `shapes`; `tied` names the matrices that
    are one and the same.

    `symbols`: the vocabulary, where further rows only pad the tables.  Their logits are cut off where the
    output projection makes them, so that losses and probabilities are over these symbols alone.
    """

    def __init__(
        self,
        format: str,
        config: dict[str, Any],
        shapes: dict[str, Any],
        tied: list[Any] | None = None,
        symbols: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model = loaded(format, stand_ins(shapes, tied or []), config, is_stored=True)
        self.vocab_size, self.segment_len = model.vocab_size, model.segment_len
        if symbols is not None:
            if not 0 < symbols <= model.vocab_size:
                raise ValueError(f"symbols: expected 1 to {model.vocab_size}, found {symbols}")
            self.vocab_size = symbols
            head = model.head
            assert isinstance(head, nn.Module)
            head.register_forward_hook(partial(_cut_logits, symbols))
        self.remembers, self.learns_through_memory = model.remembers, model.learns_through_memory
        self.cuts_anywhere, self.mixes_rows_in_training = model.cuts_anywhere, model.mixes_rows_in_training
        self.reads_memory_in_training = model.reads_memory_in_training
        self.decodes, self.reach = model.decodes, model.reach

    def init_state(self, rows: int) -> State:
        return self.model.init_state(rows)

    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        return self.model.segment(tokens, state)

    def fold(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        return self.model.fold(tokens, state)

    def forward(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        logits, state = self.model(tokens, state)
        return logits, state

    def init_decode_cache(self, state: State) -> Any:
        return self.model.init_decode_cache(state)

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        return self.model.decode(tokens, cache)

    def compute_loss(self, batch: Batch, state: State | None) -> tuple[dict[str, Tensor], State]:
        return self.model.compute_loss(batch, state)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.model.parameter_groups()

    def diagnostics(self, state: State) -> dict[str, float]:
        return self.model.diagnostics(state)

    def costly_diagnostics(self, state: State) -> dict[str, float]:
        return self.model.costly_diagnostics(state)

    def set_progress(self, step: int, steps: int) -> None:
        self.model.set_progress(step, steps)

    def count_parameters(self) -> int:
        return self.model.count_parameters()
