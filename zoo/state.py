"""What a model carries from one call to the next.

A state is a NamedTuple of tensors, nested as the model likes (a tuple over its layers, say), every tensor
with the rows of the batch first.  The helpers below are all that shared code ever does to a state, so it
never needs to look inside one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

STAMPS = ("stamp", "stamp_before")
"""Fields drawn anew at every write: they say which state this is, not what is in it."""

State = Any  # Tensor | NamedTuple of states | tuple of states


def tree_map(change: Callable[..., Tensor], state: State, *others: State) -> State:
    """The same nest with every tensor replaced by `change(tensor, *its counterparts in the others)`."""
    if isinstance(state, Tensor):
        return change(state, *others)
    parts = [tree_map(change, *same) for same in zip(state, *others, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def named_leaves(state: State, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) for every tensor, in a fixed order; "0.keys" is `keys` of the first layer."""
    if isinstance(state, Tensor):
        yield name, state
        return
    for part, inner in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
        yield from named_leaves(inner, f"{name}.{part}" if name else str(part))


def unread(state: State, name: str = "") -> Iterator[str]:
    """The dotted names of the fields that a NamedTuple calls `unread`: see `reset_rows`."""
    if isinstance(state, Tensor):
        return
    for part, inner in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
        full = f"{name}.{part}" if name else str(part)
        if part in getattr(state, "unread", ()):
            yield full
        else:
            yield from unread(inner, full)


def leaves(state: State) -> list[Tensor]:
    """Every tensor of the state: what a checkpoint keeps of it."""
    return [leaf for _, leaf in named_leaves(state)]


def contents(state: State) -> list[Tensor]:
    """Every tensor but the stamps: what two states that hold the same have in common."""
    return [leaf for name, leaf in named_leaves(state) if name.rpartition(".")[2] not in STAMPS]


def from_leaves(template: State, kept: Sequence[Tensor]) -> State:
    """The nest of `template` holding the tensors of `kept`, the inverse of `leaves`."""
    if len(kept) != len(leaves(template)):
        raise ValueError(f"{len(kept)} tensors do not fit a state of {len(leaves(template))}")
    rest = iter(kept)
    return tree_map(lambda _: next(rest), template)


def detach(state: State) -> State:
    """The same values, cut off from the graph: the edge of truncated back-propagation."""
    return tree_map(Tensor.detach, state)


def take_rows(state: State, rows: Int[Tensor, " picked"]) -> State:
    """The state of the rows named, in that order."""
    return tree_map(lambda leaf: leaf[rows], state)


def replace_rows(state: State, fresh: State, rows: Bool[Tensor, " rows"]) -> State:
    """Rows marked True come from `fresh`, all others stay."""
    return tree_map(
        lambda old, new: torch.where(rows.view(-1, *[1] * (old.ndim - 1)), new, old), state, fresh
    )


def reset_rows(state: State, empty: State, rows: Bool[Tensor, " rows"]) -> State:
    """Rows marked True begin anew, as in `empty`, all others stay.

    Fields that a NamedTuple names in its `unread` aren't copied, since a count beside them says that nothing
    of theirs may be read in such a row: a bank may have gigabytes.
    """
    if isinstance(state, Tensor):
        return replace_rows(state, empty, rows)
    names, kept = getattr(state, "_fields", range(len(state))), getattr(state, "unread", ())
    parts = [
        old if name in kept else reset_rows(old, new, rows)
        for name, old, new in zip(names, state, empty, strict=True)
    ]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def nbytes(state: State) -> int:
    """Bytes held by all tensors of the state."""
    return sum(leaf.nbytes for leaf in leaves(state))
