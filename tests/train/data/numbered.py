"""A dataset whose tokens are their positions, and what loaders make of it."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from hypothesis import strategies as st

from zoo.module import IGNORE, Batch
from zoo.train.data.loaders import TrainLoader
from zoo.train.data.prefetch import Prefetcher
from zoo.train.tasks.base import Dataset

DOCUMENT = 10_000  # tokens between the first ones of two documents


class Numbered(Dataset):
    """Position p of document d has the token d * DOCUMENT + p, which is also its target."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = np.array(lengths, np.int64)

    def window(self, document: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        assert 0 <= start < stop <= self.lengths[document]
        tokens = document * DOCUMENT + np.arange(start, stop)
        return tokens, tokens

    def targets(self) -> list[int]:
        """All targets, sorted."""
        return sorted(
            document * DOCUMENT + position
            for document, length in enumerate(self.lengths)
            for position in range(length)
        )


shapes = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 40), min_size=1, max_size=9),
        "batch_size": st.integers(1, 4),
        "seq_len": st.integers(1, 12),
        "seed": st.integers(0, 3),
    }
)


def make_loader(kind: type[TrainLoader] | type[Prefetcher]) -> TrainLoader | Prefetcher:
    loader = TrainLoader(Numbered([9, 31, 4, 17, 8]), 3, 4, seed=5)
    return Prefetcher(loader, pin=False) if kind is Prefetcher else loader


def take(loader: Iterable[Batch], count: int) -> list[Batch]:
    """The first batches of a loader, over as many epochs as needed."""
    batches: list[Batch] = []
    while len(batches) < count:
        batches += list(loader)
    return batches[:count]


def equal(batches: Sequence[Batch], expected: Sequence[Batch]) -> bool:
    return len(batches) == len(expected) and all(
        batch.lengths == expected_batch.lengths and all(map(torch.equal, batch[:3], expected_batch[:3]))
        for batch, expected_batch in zip(batches, expected, strict=True)
    )


def read_runs(batches: Iterable[Batch]) -> list[list[int]]:
    """The targets of each row between two fresh windows, in order of their beginnings."""
    runs: list[list[int]] = []
    current: dict[int, list[int]] = {}
    for batch in batches:
        for row, fresh in enumerate(batch.fresh.tolist()):
            if fresh:
                current[row] = []
                runs.append(current[row])
            current[row] += batch.targets[row][batch.targets[row] != IGNORE].tolist()
    return runs
