"""What the host knows about values on the device without reading them back, which waits for the device.

How much a memory holds follows from the number of tokens that a row has read, and whoever feeds the model
knows that number: a loader, or generation.  They state it with `known_lengths`, and mechanisms choose the
sizes of their tensors by it.  Where nobody states it, a mechanism reads the value if that waits for nothing
(`is_readable`), and takes the largest size that it may have if not.  The results are the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class RowLengths(NamedTuple):
    before: tuple[int, ...]
    """Tokens that each row has read since its reset, before the window that is read now."""
    time: int
    """Tokens of this window: a state inside it has read 0 .. `time` more."""


READABLE_DEVICES = ("cpu",)
"""Types of devices whose memory is the host's."""

_lengths: RowLengths | None = None


@contextmanager
def known_lengths(before: Sequence[int] | None, time: int) -> Iterator[None]:
    """Meanwhile a model reads one window of `time` tokens from a state whose rows have read `before` tokens;
    None if that isn't known."""
    global _lengths
    previous, _lengths = _lengths, None if before is None else RowLengths(tuple(before), time)
    try:
        yield
    finally:
        _lengths = previous


def row_lengths(rows: int) -> RowLengths | None:
    """The lengths that the caller of the model stated for these rows; None without, and while compiling,
    since compiled code would be made for one number."""
    if torch.compiler.is_compiling() or _lengths is None or len(_lengths.before) != rows:
        return None
    return _lengths


def is_readable(x: Tensor) -> bool:
    """True if the host reads a value of this tensor without waiting for a device."""
    return x.device.type in READABLE_DEVICES and not torch.compiler.is_compiling()
