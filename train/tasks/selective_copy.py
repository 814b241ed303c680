"""Selective copying: repeat the symbols that stood between noise, in their order.

Gu & Dao 2023, arXiv:2312.00752, section 4.1.1; as in the S4 repository's copying task, which they build on:

    . . c . . . a . . b .  ? ? ?   ->   c a b

NOISE is 0, symbols to remember are 1 .. V-2, uniformly distributed, and the marker ? is V-1.  `length`
positions in all: `remembered` symbols at random positions among noise, then as many markers, whose targets
are the symbols.  The answers themselves are never read.  Chance is 1 in vocab_size - 2.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.tasks.base import Chances, Dataset, Split, Symbols, TargetPositions, sample_rng
from zoo.train.tasks.drawn_samples import DrawnSamples, FixedLengthTask
from zoo.train.tasks.evidence import chances_by_evidence, window_distances

NOISE = 0


@dataclass(frozen=True)
class SelectiveCopy(FixedLengthTask):
    """The positions of the symbols are drawn for every sample."""

    name = "selective_copy"
    VERSION = 1
    target_noun = "symbol"
    axes: ClassVar = {"length": int}

    length: int = 4096
    remembered: int = 16
    vocab_size: int = 16
    samples: int = 1_000_000
    eval_samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        self.check_sizes(min_vocab_size=3)
        if not 1 <= self.remembered <= self.length // 2:
            raise UserError(
                "task.remembered: expected at least 1 and at most half of task.length, "
                f"found {self.remembered} of {self.length}"
            )

    def split(self, name: Split) -> Dataset:
        return SelectiveCopyDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        return {"chance": 1 / (self.vocab_size - 2)}

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        return {"chance": (self.vocab_size - 2.0) ** -self.remembered}


class SelectiveCopyDataset(DrawnSamples[SelectiveCopy]):
    """Samples drawn when they are read, each from a separate generator."""

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        self.check_window(document, start, stop)
        length, count, marker = self.task.length, self.task.remembered, self.task.vocab_size - 1
        symbols, positions = self.sample(document)
        tokens = np.where(np.arange(start, stop) < length - count, NOISE, marker)
        targets = np.full(stop - start, IGNORE, np.int64)
        answer_positions = np.arange(length - count, length)
        for row, row_positions in ((tokens, positions), (targets, answer_positions)):
            in_window = (row_positions >= start) & (row_positions < stop)
            row[row_positions[in_window] - start] = symbols[in_window]
        return tokens, targets

    def evidence_distances(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """To the symbol itself."""
        _, evidence = self.sample(document)
        targets = np.arange(self.task.length - self.task.remembered, self.task.length)
        return window_distances(targets, evidence, start, stop)

    def view_chances(self, document: int, positions: TargetPositions, starts: TargetPositions) -> Chances:
        return chances_by_evidence(self, document, positions, starts, 1 / (self.task.vocab_size - 2))

    def sample(self, document: int) -> tuple[Symbols, Symbols]:
        """The symbols to remember, and their positions."""
        count = self.task.remembered
        rng = sample_rng(self.task.seed, self.split, document)
        symbols = rng.integers(1, self.task.vocab_size - 1, size=count)
        return symbols, np.sort(rng.choice(self.task.length - count, count, replace=False))
