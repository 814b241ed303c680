"""Exact match in validation: the share of samples of which every target was hit."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RowMask = Bool[Tensor, " rows"]
PositionMask = Bool[Tensor, "rows time"]
Counts = Float[Tensor, " 2"]
"""Samples that are an exact match, and all samples."""


class ExactMatchCounter:
    """Counts samples that are read window by window, each in one row, without waiting for the device."""

    def __init__(self) -> None:
        self._has_targets: RowMask | None = None
        """Of the sample in each row, in the windows read so far; None before the first window."""
        self._has_miss: RowMask | None = None

    def add(self, fresh: RowMask, is_target: PositionMask, hits: PositionMask) -> Counts:
        """Read the next window of every row; returns the counts of the samples that ended before it."""
        if self._has_targets is None or self._has_miss is None:
            self._has_targets, self._has_miss = torch.zeros_like(fresh), torch.zeros_like(fresh)
        ended = self._count(self._has_targets & fresh, self._has_miss)
        self._has_targets = (self._has_targets & ~fresh) | is_target.any(1)
        self._has_miss = (self._has_miss & ~fresh) | (is_target & ~hits).any(1)
        return ended

    def end(self) -> Counts | None:
        """The counts of the last sample of every row; None if no window was read."""
        if self._has_targets is None or self._has_miss is None:
            return None
        ended = self._count(self._has_targets, self._has_miss)
        self._has_targets = self._has_miss = None
        return ended

    @staticmethod
    def _count(samples: RowMask, has_miss: RowMask) -> Counts:
        """A row without targets is padding, and no sample."""
        return torch.stack([(samples & ~has_miss).sum(), samples.sum()]).float()
