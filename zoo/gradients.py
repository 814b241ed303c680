"""Stopped gradients: tensors that a mechanism's definition takes as constant, a paper's sg[x]."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_recorded: list[Tensor] | None = None
_replayed: Iterator[Tensor] | None = None


def stop_gradient(x: Tensor) -> Tensor:
    """x without gradient, because the mechanism is defined so.

    The law gradient_is_true holds these tensors constant; any other `detach` inside a segment breaks it.
    """
    if _replayed is not None:
        return next(_replayed)
    if _recorded is not None:
        _recorded.append(x.detach())
    return x.detach()


@contextmanager
def recorded() -> Iterator[list[Tensor]]:
    """The list that receives each tensor whose gradient is stopped meanwhile, in order."""
    global _recorded
    previous, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = previous


@contextmanager
def replayed(tensors: list[Tensor]) -> Iterator[None]:
    """Each call of `stop_gradient` returns the next of these, whatever its argument."""
    global _replayed
    previous, _replayed = _replayed, iter(tensors)
    try:
        yield
    finally:
        _replayed = previous
