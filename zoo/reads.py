"""Recorded attention to stored tokens; computed only inside `watched_reads`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Read(NamedTuple):
    """The attention of some queries to tokens that were stored before their segment.

    Tokens are counted from the first one that the row has read; -1 where there is none.
    """

    layer: nn.Module
    queries: Int[Tensor, "rows time"]
    tokens: Int[Tensor, "rows heads time stored"]
    mass: Float[Tensor, "rows heads time stored"]
    """Of the whole attention of a head, to its segment and to its memory."""


_watchers: list[list[Read]] = []


@contextmanager
def watched_reads() -> Iterator[list[Read]]:
    """A block that fills the list with every read in it, in the order of the layers and queries."""
    reads: list[Read] = []
    _watchers.append(reads)
    try:
        yield reads
    finally:
        _watchers.remove(reads)


def report_read(read: Callable[[], Read]) -> None:
    """Tells what was read, computed by `read` for those who watch."""
    if _watchers and not torch.compiler.is_compiling():
        with torch.no_grad():
            recorded = read()
        for reads in _watchers:
            reads.append(recorded)


def stored_tokens(slots: Tensor, length: Int[Tensor, " rows"], capacity: int) -> Tensor:
    """The tokens in these slots of rings in which token t is in slot t % capacity, of rows that stored
    `length` tokens; slots (rows, ...), -1 where there is none."""
    first = (length - length.clamp(max=capacity)).view(-1, *(1,) * (slots.dim() - 1))
    return torch.where(slots < 0, -1, first + (slots - first) % capacity)
