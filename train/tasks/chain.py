"""Chains over chapters: what memory is worth in text, with an answer that is known.

    x1 x2 x3 …        targets: every next symbol of the same chapter

A sample has two hidden Markov chains, of the symbols 0..7 and 8..15: every row of their tables is drawn from
a symmetric Dirichlet distribution with a = 0.1.  Chapters of the two take turns; the first symbol of a
chapter is uniform, and no target.  Training and held-out chapters are those of zoo.train.tasks.chapters.

The best prediction is exact: with n(s,y) transitions s -> y in what a reader sees,

    p(y | s) = (n(s,y) + a) / (n(s) + 8 a)

and ln 8 = 2.079 nats where it sees none from s: a table's rows are independent of one another, and its
symbols exchangeable.  So in targets whose evidence lies beyond a model's reach a loss below ln 8 is memory,
and the gain (ln 8 - loss) / (ln 8 - loss of Bayes) says how much of what there is; above ln 8 it is negative.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.tasks.base import Chances, Dataset, Metric, Split, Symbols, TargetPositions, sample_rng, unwrap
from zoo.train.tasks.chapters import MIN_LENGTH, chapters, drawn_lengths, held_out_lengths, last_before
from zoo.train.tasks.drawn_samples import DrawnSamples, FixedLengthTask

STATES = 8  # of a chain
VOCAB_SIZE = 2 * STATES
CONCENTRATION = 0.1
UNINFORMED = math.log(STATES)  # nats of a target without evidence


@dataclass(frozen=True)
class Chain(FixedLengthTask):
    """`length` in positions, of every sample."""

    name = "chain"
    VERSION = 1
    metric: ClassVar[Metric] = "accuracy"
    uninformed_nats: ClassVar[float | None] = UNINFORMED
    target_noun = "symbol"
    axes: ClassVar = {"length": int}

    length: int = 256
    samples: int = 1_000_000
    eval_samples: int = 1_024
    seed: int = 0
    vocab_size: int = VOCAB_SIZE

    def __post_init__(self) -> None:
        self.check_sizes(VOCAB_SIZE)
        if self.length < MIN_LENGTH:
            raise UserError(f"task.length: expected at least {MIN_LENGTH}, found {self.length}")

    def split(self, name: Split) -> Dataset:
        return ChainDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Accuracy of a guess in the right alphabet, of the symbol that is most often a target, and of the
        likeliest symbol by all that was read."""
        texts = unwrap(dataset, ChainDataset)
        counts, hits = np.zeros(VOCAB_SIZE), []
        for document in range(len(dataset.lengths)):
            sample = texts.sample(document)
            is_target = sample.targets != IGNORE
            counts += np.bincount(sample.targets[is_target], minlength=VOCAB_SIZE)
            hits.append(likeliest_hits(sample)[is_target])
        return {
            "chance": 1 / STATES,
            "constant": float(counts.max() / counts.sum()),
            "Bayes": float(np.concatenate(hits).mean()),
        }


@dataclass(frozen=True)
class Sample:
    """A text and its targets."""

    tokens: Symbols
    targets: Symbols


def transitions(
    sample: Sample, first_visible: Int64[np.ndarray, " positions"] | None = None
) -> Float64[np.ndarray, "positions states"]:
    """n(s, y) at each position of the text, of symbol s, for each y of its alphabet.

    A transition is seen from `first_visible` on, a position for each position, if its first symbol is.
    """
    positions = np.arange(len(sample.tokens))
    first_visible = np.zeros_like(positions) if first_visible is None else first_visible
    is_transition = sample.targets != IGNORE
    before = np.zeros((len(positions) + 1, VOCAB_SIZE, STATES))  # transitions that begin before a position
    before[1:][positions, sample.tokens, sample.targets % STATES] = is_transition
    before = before.cumsum(0)
    return before[positions, sample.tokens] - before[first_visible, sample.tokens]


def predictive_nats(
    sample: Sample, first_visible: Int64[np.ndarray, " positions"] | None = None
) -> Float64[np.ndarray, " positions"]:
    """Nats of each target under the best prediction by what is visible; 0 where there is none."""
    counts = transitions(sample, first_visible)
    hits = np.take_along_axis(counts, (sample.targets % STATES)[:, None], axis=1)[:, 0]
    share = (hits + CONCENTRATION) / (counts.sum(1) + STATES * CONCENTRATION)
    return np.where(sample.targets != IGNORE, -np.log(share), 0.0)


def likeliest_hits(
    sample: Sample, first_visible: Int64[np.ndarray, " positions"] | None = None
) -> Float64[np.ndarray, " positions"]:
    """How often each target is hit by the likeliest symbol, one of them at random where several are."""
    counts = transitions(sample, first_visible)
    is_likeliest = counts == counts.max(1, keepdims=True)
    hits = np.take_along_axis(is_likeliest, (sample.targets % STATES)[:, None], axis=1)[:, 0]
    return hits / is_likeliest.sum(1)


class ChainDataset(DrawnSamples[Chain]):
    """Samples drawn when they are read, each from a separate generator."""

    def sample(self, document: int) -> Sample:
        rng, length = sample_rng(self.task.seed, self.split, document), self.task.length
        lengths = drawn_lengths(rng, length, 1) if self.split == "train" else held_out_lengths(length, 1)
        rows = np.cumsum(rng.dirichlet([CONCENTRATION] * STATES, size=(2, STATES)), axis=-1)
        rows[..., -1] = 1.0  # not less by rounding
        tables, draws = rows.tolist(), rng.random(length).tolist()
        tokens, targets = np.empty(length, np.int64), np.full(length, IGNORE, np.int64)
        for start, stop, alphabet in chapters(lengths):
            states = [int(STATES * draws[start])]
            for draw in draws[start + 1 : stop]:
                states.append(bisect_right(tables[alphabet][states[-1]], draw))
            tokens[start:stop] = np.array(states) + STATES * alphabet
            targets[start : stop - 1] = tokens[start + 1 : stop]
        return Sample(tokens, targets)

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        self.check_window(document, start, stop)
        sample = self.sample(document)
        return sample.tokens[start:stop], sample.targets[start:stop]

    def evidence_distances(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """To the symbol that followed the same one last."""
        self.check_window(document, start, stop)
        sample = self.sample(document)
        positions = np.flatnonzero(sample.targets != IGNORE)
        before = last_before(sample.tokens[positions])
        distances = np.full(len(sample.tokens), -1, np.int64)
        distances[positions] = np.where(before >= 0, positions - positions[before] - 1, -1)
        return distances[start:stop]

    def bayes_nats(self, document: int, start: int, stop: int) -> Float64[np.ndarray, " positions"]:
        """By all transitions before."""
        self.check_window(document, start, stop)
        return predictive_nats(self.sample(document))[start:stop]

    def view_chances(self, document: int, positions: TargetPositions, starts: TargetPositions) -> Chances:
        """By the transitions in view."""
        first_visible = np.zeros(self.task.length, np.int64)
        first_visible[positions] = starts
        return likeliest_hits(self.sample(document), first_visible)[positions]
