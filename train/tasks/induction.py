"""Induction heads: recall the token that followed the special one, far back in the sequence.

Gu & Dao 2023, arXiv:2312.00752, section 4.1.2.

    r r r * x r r r … r *  ->  x

A sample is `length` random tokens; the special token comes once at a random position, and again at the very
end, where the target is the token that followed it.  Chance is 1 in vocab_size - 1.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from zoo.errors import UserError
from zoo.train.tasks.base import (
    BLOCK,
    Chances,
    Dataset,
    SampleDataset,
    Split,
    Symbols,
    TargetPositions,
    read_blocks,
    sample_rng,
)
from zoo.train.tasks.drawn_samples import DrawnSamples, FixedLengthTask
from zoo.train.tasks.evidence import chances_by_evidence, window_distances

POSITION_BLOCK = -1  # index of the generator for the special token's position; blocks of tokens start at 0


@dataclass(frozen=True)
class Induction(FixedLengthTask):
    """`length` in tokens; the special token is one of `vocab_size`.

    `samples`: more than a run reads, so that data stays fresh.
    """

    name = "induction"
    VERSION = 1
    metric = "accuracy"
    axes: ClassVar = {"length": int}

    length: int = 256
    vocab_size: int = 16
    samples: int = 1_000_000
    eval_samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        self.check_sizes(min_vocab_size=3)
        if self.length < 4:
            raise UserError(f"task.length: expected at least 4 (*, x, anything, *), found {self.length}")

    def split(self, name: Split) -> Dataset:
        return InductionDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        return {"chance": 1 / (self.vocab_size - 1)}


class InductionDataset(DrawnSamples[Induction], SampleDataset):
    """Samples drawn when they are read, each from a separate generator."""

    num_targets = 1

    def symbols(self, document: int, start: int, stop: int) -> Symbols:
        symbols = read_blocks(start, stop, partial(self._draw_block, document))
        special, end = self.task.vocab_size - 1, self.task.length - 1
        for position, symbol in (
            (self.special_position(document), special),
            (end, special),
            (end + 1, self.answer(document)),
        ):
            if start <= position < stop:
                symbols[position - start] = symbol
        return symbols

    def evidence_distances(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """To the token after the first special one."""
        evidence = np.array([self.special_position(document) + 1])
        return window_distances(self.target_positions(document), evidence, start, stop)

    def view_chances(self, document: int, positions: TargetPositions, starts: TargetPositions) -> Chances:
        """Of a reader that says the first token it sees where it sees no special one, as that may have been
        just before."""
        return chances_by_evidence(self, document, positions, starts, 1 / (self.task.vocab_size - 1))

    def special_position(self, document: int) -> int:
        """The first position of the special token: any but the last three."""
        return int(self._block_rng(document, POSITION_BLOCK).integers(self.task.length - 2))

    def answer(self, document: int) -> int:
        """The token after the first special one."""
        block, offset = divmod(self.special_position(document) + 1, BLOCK)
        return int(self._draw_block(document, block)[offset])

    def _draw_block(self, document: int, block: int) -> Symbols:
        return self._block_rng(document, block).integers(self.task.vocab_size - 1, size=BLOCK)

    def _block_rng(self, document: int, block: int) -> np.random.Generator:
        """Generator of a block of random tokens, or with POSITION_BLOCK of the special token's position."""
        return sample_rng(self.task.seed, self.split, document, block + 1)
