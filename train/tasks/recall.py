"""Recall over chapters: pairs of key and value, of two alphabets of keys that are left and returned to.

    k1 v1 k2 v2 …        targets: the value at every key that was there before

    keys    0..7 in chapters of A, 8..15 in those of B, uniform; 16..23 values, one per key and sample
    train   chapters A B A B … of 16 to 96 symbols (see zoo.train.tasks.chapters)
    held out  A 96, B 96, A 64; in longer texts the chapter of B grows

So a held-out sample has a target at about eight keys whose nearest evidence lies more than 96 positions back,
and without remembering it none is hit more often than one in eight.

Own task, of the family of multi-query recall (Arora et al. 2023, arXiv:2312.04927) and of MAD's recall, whose
keys are all in use everywhere in a text.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.tasks.base import Chances, Dataset, Split, Symbols, TargetPositions, sample_rng, unwrap
from zoo.train.tasks.chapters import MIN_LENGTH, chapters, drawn_lengths, held_out_lengths, last_before
from zoo.train.tasks.drawn_samples import DrawnSamples, FixedLengthTask
from zoo.train.tasks.evidence import chances_by_evidence

KEYS, VALUES = 8, 8  # keys of each alphabet
VOCAB_SIZE = 2 * KEYS + VALUES


@dataclass(frozen=True)
class Recall(FixedLengthTask):
    """`length` in positions, of every sample."""

    name = "recall"
    VERSION = 1
    target_noun = "value"
    axes: ClassVar = {"length": int}

    length: int = 256
    samples: int = 1_000_000
    eval_samples: int = 1_024
    seed: int = 0
    vocab_size: int = VOCAB_SIZE

    def __post_init__(self) -> None:
        self.check_sizes(VOCAB_SIZE)
        if self.length < MIN_LENGTH or self.length % 2:
            raise UserError(f"task.length: expected an even number from {MIN_LENGTH} up, found {self.length}")

    def split(self, name: Split) -> Dataset:
        return RecallDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """A guess; the value that is most often a target; any value so far, ignoring the key."""
        texts = unwrap(dataset, RecallDataset)
        any_value, counts = [], np.zeros(VOCAB_SIZE)
        for document in range(len(dataset.lengths)):
            tokens = texts.tokens(document)
            targets = recall_targets(tokens)
            is_value = tokens[:, None] == targets  # positions before, targets
            before = np.arange(len(tokens))[:, None] < np.arange(len(tokens))
            values = (before & (tokens >= 2 * KEYS)[:, None]).sum(0)
            is_target = targets != IGNORE
            any_value.append((is_value & before).sum(0)[is_target] / values[is_target])
            counts += np.bincount(targets[is_target], minlength=VOCAB_SIZE)
        return {
            "chance": 1 / VALUES,
            "constant": float(counts.max() / counts.sum()),
            "any value of the sample": float(np.concatenate(any_value).mean()),
        }

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        """A guess."""
        texts = unwrap(dataset, RecallDataset)
        targets = [recall_targets(texts.tokens(document)) for document in range(len(dataset.lengths))]
        return {"chance": float(np.mean([float(VALUES) ** -(of != IGNORE).sum() for of in targets]))}


def recall_targets(tokens: Symbols) -> Symbols:
    """The value at each key that was there before, IGNORE at all other positions."""
    targets = np.full(len(tokens), IGNORE, np.int64)
    keys, values = tokens[::2], tokens[1::2]
    targets[::2] = np.where(last_before(keys) >= 0, values, IGNORE)
    return targets


class RecallDataset(DrawnSamples[Recall]):
    """Samples drawn when they are read, each from a separate generator."""

    def tokens(self, document: int) -> Symbols:
        """The tokens of a sample."""
        rng = sample_rng(self.task.seed, self.split, document)
        values = 2 * KEYS + rng.integers(VALUES, size=2 * KEYS)
        keys = rng.integers(KEYS, size=self.task.length // 2)
        length = self.task.length
        lengths = drawn_lengths(rng, length, 2) if self.split == "train" else held_out_lengths(length, 2)
        for chapter in chapters(lengths):
            keys[chapter.start // 2 : chapter.stop // 2] += KEYS * chapter.alphabet
        return np.stack([keys, values[keys]], axis=1).ravel()

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        self.check_window(document, start, stop)
        tokens = self.tokens(document)
        return tokens[start:stop], recall_targets(tokens)[start:stop]

    def view_chances(self, document: int, positions: TargetPositions, starts: TargetPositions) -> Chances:
        """Values are independent of one another."""
        return chances_by_evidence(self, document, positions, starts, 1 / VALUES)

    def evidence_distances(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """To the value that the key had last."""
        self.check_window(document, start, stop)
        keys = self.tokens(document)[::2]
        before = last_before(keys)
        distances = np.full(2 * len(keys), -1, np.int64)
        distances[::2] = np.where(before >= 0, 2 * (np.arange(len(keys)) - before) - 1, -1)
        return distances[start:stop]
