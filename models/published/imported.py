"""A published checkpoint as a model of the zoo's: what a run folder made by `zoo import` names.

A loader chooses the model by its config, and by the names, shapes and ties of the weights.  A
run's config.yaml keeps exactly these, and its checkpoint keeps the weights.
"""

import importlib
import pkgutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import zoo.models.published
from zoo.errors import UserError, first_line, nearest
from zoo.models.published.fields import Fields, UnknownFieldError
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
    name: str,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    is_stored: bool = False,
    typed: Collection[str] = (),
) -> SequenceModule:
    """The model of a published checkpoint.  UserError, in one line, for any error of the loader, and for a
    field of `typed`, those that a command line sets, which it doesn't read.

    `is_stored`: the config is that of a run, which an earlier version may have imported with fields that the
    loader doesn't know.
    """
    if name not in formats():
        raise UserError(f"format: expected one of {', '.join(formats())}, found {name}")
    fields = Fields(config)
    try:
        load = _module(name).load
        load = load.__wrapped__ if is_stored else load
        try:
            model: SequenceModule = load(dict(weights), fields)
        except MissingWeightError as error:
            if (stripped := without_prefix(weights, error.name)) is None:
                raise
            model = load(stripped, fields)
    except UnknownFieldError as error:
        if unknown := [field for field in error.names if field in typed]:
            advice = nearest(unknown[0], fields.sought, "config.")
            raise UserError(f"config.{unknown[0]}: format {name} doesn't know it{advice}") from error
        raise
    except KeyError as error:
        raise UserError(f"config: expected {error.args[0]}, found none") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise UserError(
            f"config and weights don't go together as format {name}: {first_line(error)}"
        ) from error
    for field in typed:
        if config.get(field) is not None and field not in fields.read:
            advice = nearest(field, fields.sought, "config.")
            raise UserError(f"config.{field}: format {name} doesn't read it from this config{advice}")
    return model


def check_config(model: Mapping[str, Any], typed: Collection[str]) -> None:
    """Raises UserError unless the loader reads the fields `typed` of the config in a run's `model`."""
    weights = stand_ins(model["shapes"], model.get("tied") or [])
    loaded(model["format"], weights, model["config"], typed=typed)


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
    `segment_len`: the tokens after which memory is reset in evaluation, of a model that computes the same
    wherever a text is cut; by default the loader's.
    """

    def __init__(
        self,
        format: str,
        config: dict[str, Any],
        shapes: dict[str, Any],
        tied: list[Any] | None = None,
        symbols: int | None = None,
        segment_len: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model = loaded(format, stand_ins(shapes, tied or []), config, is_stored=True)
        if segment_len is not None:
            if not model.cuts_anywhere:
                raise ValueError(
                    f"segment_len: expected none, as format {format} attends within segments, which the "
                    f"config sets, found {segment_len}"
                )
            model.segment_len = segment_len
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

    @property
    def counts_hits(self) -> bool:  # type: ignore[override]
        return self.model.counts_hits

    @counts_hits.setter
    def counts_hits(self, counts_hits: bool) -> None:
        self.model.counts_hits = counts_hits

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the model inside, which `compute_loss` calls."""
        self.model.compile(*args, **options)

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

    def weights_outside_budget(self) -> list[Tensor]:
        return self.model.weights_outside_budget()
