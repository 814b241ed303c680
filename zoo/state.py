"""What a model carries from one call to the next.

A state is a NamedTuple of tensors, nested as the model likes (a tuple over its layers, say), every tensor
with the batch rows first.  Shared code changes and compares states only through the functions below.  Two
kinds of fields need care there; a NamedTuple that has them declares them with `special_fields`:

    lazy_fields      not cleared in a fresh row, where a count beside them marks them as invalid: a bank may
                     have gigabytes.  Used by `reset_rows` and by the law memory_is_alive.
    identity_fields  drawn anew at every write: they identify a state and aren't part of its contents.  Used
                     by `contents`, and so by every law that compares states.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

State = Any  # Tensor | NamedTuple of states | tuple of states
StateClass = TypeVar("StateClass", bound=type)  # a NamedTuple


def special_fields(
    *, lazy: tuple[str, ...] = (), identity: tuple[str, ...] = ()
) -> Callable[[StateClass], StateClass]:
    """Class decorator that sets `lazy_fields` and `identity_fields` on a NamedTuple, whose body takes nothing
    but fields and methods.  Raises TypeError for a name that isn't a field."""

    def declare(cls: Any) -> Any:
        unknown = [name for name in (*lazy, *identity) if name not in cls._fields]
        if unknown:
            raise TypeError(f"expected fields of {cls.__name__}, found {', '.join(unknown)}")
        cls.lazy_fields, cls.identity_fields = lazy, identity
        return cls

    return declare


def tree_map(change: Callable[..., Tensor], state: State, *others: State) -> State:
    """The same nest with every tensor replaced by `change(tensor, *its counterparts in the others)`."""
    if isinstance(state, Tensor):
        return change(state, *others)
    return _rebuild(state, (tree_map(change, *parts) for parts in zip(state, *others, strict=True)))


def named_leaves(state: State, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) for every tensor, in a fixed order; "0.keys" is `keys` of the first layer."""
    if isinstance(state, Tensor):
        yield name, state
        return
    for field, part in _named_parts(state, name):
        yield from named_leaves(part, f"{name}.{field}" if name else field)


def lazy_field_names(state: State, name: str = "") -> Iterator[str]:
    """The dotted name of every lazy field in the nest."""
    if isinstance(state, Tensor):
        return
    for field, part in _named_parts(state):
        path = f"{name}.{field}" if name else field
        if field in _lazy_fields(state):
            yield path
        else:
            yield from lazy_field_names(part, path)


def leaves(state: State) -> list[Tensor]:
    """Every tensor of the state: what a checkpoint stores of it."""
    return [leaf for _, leaf in named_leaves(state)]


def contents(state: State) -> list[Tensor]:
    """Every tensor but those of identity fields: equal for two states that hold the same."""
    if isinstance(state, Tensor):
        return [state]
    identity = getattr(state, "identity_fields", ())
    return [leaf for field, part in _named_parts(state) if field not in identity for leaf in contents(part)]


def from_leaves(template: State, tensors: Sequence[Tensor]) -> State:
    """The nest of `template` with these tensors, the inverse of `leaves`."""
    expected = len(leaves(template))
    if len(tensors) != expected:
        raise ValueError(f"expected {expected} tensors for this state, found {len(tensors)}")
    remaining = iter(tensors)
    return tree_map(lambda _: next(remaining), template)


def detach(state: State) -> State:
    """The same values, cut off from the graph: the edge of truncated back-propagation."""
    return tree_map(Tensor.detach, state)


def take_rows(state: State, rows: Int[Tensor, " picked"]) -> State:
    """The state of these rows, in this order."""
    return tree_map(lambda leaf: leaf[rows], state)


def replace_rows(state: State, other: State, rows: Bool[Tensor, " rows"]) -> State:
    """Rows marked True come from `other`, the rest from `state`."""
    return tree_map(
        lambda old, new: torch.where(rows.view(-1, *[1] * (old.ndim - 1)), new, old), state, other
    )


def reset_rows(state: State, empty: State, rows: Bool[Tensor, " rows"]) -> State:
    """Rows marked True come from `empty`, the rest from `state`; lazy fields are shared with `state`."""
    if isinstance(state, Tensor):
        return replace_rows(state, empty, rows)
    lazy = _lazy_fields(state)
    return _rebuild(
        state,
        (
            old if field in lazy else reset_rows(old, new, rows)
            for (field, old), new in zip(_named_parts(state), empty, strict=True)
        ),
    )


def nbytes(state: State) -> int:
    """Bytes of all tensors of the state."""
    return sum(leaf.nbytes for leaf in leaves(state))


def _named_parts(state: State, name: str = "") -> list[tuple[str, State]]:
    if not isinstance(state, tuple):
        label = f"state `{name}`" if name else "a state"
        raise TypeError(f"{label}: expected tensors in NamedTuples and tuples, found {type(state).__name__}")
    names = state._fields if hasattr(state, "_fields") else map(str, range(len(state)))
    return list(zip(names, state, strict=True))


def _rebuild(state: State, parts: Iterable[State]) -> State:
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def _lazy_fields(state: State) -> tuple[str, ...]:
    return getattr(state, "lazy_fields", ())
