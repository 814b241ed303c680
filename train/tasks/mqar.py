"""Multi-query associative recall: recall the value of each key.

Arora et al. 2023, arXiv:2312.04927 (Zoology); the mixture of lengths is that of Based, arXiv:2402.18668.

    k1 v1 k2 v2 … kD vD  r r k2 r r r k1 r …        targets: at each of the D later keys its value

    keys    D different ones of 1 .. V/2-1          values  D different ones of V/2 .. V-1
    slots   0 .. (L-2D)/2 - 1, of two positions each; D different ones, drawn one after the other,
            slot i with a weight of (i+1)^(a-1): a = 0.01 puts most of them near the pairs, 1 anywhere

The answer never enters the input: a later key is followed by filler, as are all positions r.  Filler is any
of the V symbols, keys and values among them (`random_non_queries`), or 0.

Differs from the paper: nothing; but samples are drawn when they are read, so that none need be stored.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.tasks.base import (
    Chances,
    Dataset,
    SampleTask,
    Split,
    Symbols,
    TargetPositions,
    Task,
    sample_rng,
    unwrap,
)
from zoo.train.tasks.evidence import chances_by_evidence, guess_another, window_distances


class SampleKind(NamedTuple):
    """Samples of one length and one number of pairs."""

    length: int
    pairs: int
    samples: int


@dataclass(frozen=True)
class Mqar(SampleTask):
    """`length` positions and `pairs` pairs, of `vocab_size` symbols.

    `mixture`: [length, pairs, samples] of several kinds of samples to train on, instead of `samples` of the
    one above; held-out samples are always of that one.
    """

    name = "mqar"
    VERSION = 1
    target_noun = "value"
    axes: ClassVar = {"length": int, "pairs": int}

    length: int = 64
    pairs: int = 4
    vocab_size: int = 8192
    power_a: float = 0.01
    random_non_queries: bool = True
    mixture: list[list[int]] | None = None
    samples: int = 100_000
    eval_samples: int = 3_000
    seed: int = 0

    def __post_init__(self) -> None:
        self.check_sizes(min_vocab_size=1)
        for kind in self.mixture or ():
            if len(kind) != 3 or kind[2] < 1:
                raise UserError(f"task.mixture: expected [length, pairs, samples] of each kind, found {kind}")
            if kind[0] > self.length:
                raise UserError(
                    f"task.mixture: expected lengths of at most length={self.length}, found {kind[0]}"
                )
        for length, pairs, _ in self.kinds("train") + self.kinds("test"):
            if pairs < 1 or length % 2 or not 4 * pairs <= length < self.vocab_size:
                raise UserError(
                    "task mqar: expected an even length, below vocab_size and at least 4 times pairs, "
                    f"found {length=}, {pairs=}, vocab_size={self.vocab_size}"
                )

    def at(self, **axes: int | float) -> Task:
        """The same task at another length or number of pairs; one kind of samples takes a mixture's place."""
        if axes and self.mixture:
            return replace(self, mixture=None).at(**axes)
        return super().at(**axes)

    def kinds(self, split: Split) -> list[SampleKind]:
        """The kinds of samples in a split."""
        if split == "train" and self.mixture:
            return [SampleKind(*kind) for kind in self.mixture]
        return [SampleKind(self.length, self.pairs, self.num_samples(split))]

    def split(self, name: Split) -> Dataset:
        return MqarDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """A guess among all values; and among those of the sample, ignoring the key."""
        pairs = unwrap(dataset, MqarDataset).pairs[: len(dataset.lengths)]
        num_values = self.vocab_size - self.vocab_size // 2
        return {"chance": 1 / num_values, "any value of the sample": len(pairs) / float(pairs.sum())}

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        """The same predictors, each target guessed independently: means over samples."""
        pairs = unwrap(dataset, MqarDataset).pairs[: len(dataset.lengths)].astype(float)
        num_values = self.vocab_size - self.vocab_size // 2
        return {
            "chance": float(np.mean(num_values**-pairs)),
            "any value of the sample": float(np.mean(pairs**-pairs)),
        }

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        return {
            "length": int(dataset.lengths[document]),
            "pairs": int(unwrap(dataset, MqarDataset).pairs[document]),
        }


class MqarDataset(Dataset):
    """Samples drawn when they are read, each from a separate generator."""

    def __init__(self, task: Mqar, split: Split) -> None:
        self.task, self.split = task, split
        lengths, pairs, counts = zip(*task.kinds(split), strict=True)
        self.lengths, self.pairs = np.repeat(lengths, counts), np.repeat(pairs, counts)

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        self.check_window(document, start, stop)
        tokens, targets = self.sample(document)
        return tokens[start:stop], targets[start:stop]

    def evidence_distances(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """To the value beside the key, among the pairs."""
        tokens, targets = self.sample(document)
        positions = np.flatnonzero(targets != IGNORE)
        values = 1 + 2 * np.arange(int(self.pairs[document]))
        pair = (tokens[values] == targets[positions, None]).argmax(1)
        return window_distances(positions, values[pair], start, stop)

    def view_chances(self, document: int, positions: TargetPositions, starts: TargetPositions) -> Chances:
        """A value that isn't seen is a guess among those that aren't, as no two keys have the same."""
        num_values = self.task.vocab_size - self.task.vocab_size // 2
        guess = guess_another(int(self.pairs[document]), num_values, starts)
        return chances_by_evidence(self, document, positions, starts, guess)

    def sample(
        self, document: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        """Tokens and targets."""
        length, pairs = int(self.lengths[document]), int(self.pairs[document])
        vocab_size, context = self.task.vocab_size, 2 * pairs
        rng = sample_rng(self.task.seed, self.split, document)
        keys = 1 + rng.choice(vocab_size // 2 - 1, pairs, replace=False)
        values = vocab_size // 2 + rng.choice(vocab_size - vocab_size // 2, pairs, replace=False)
        slot_weights = np.arange(1, (length - context) // 2 + 1) ** (self.task.power_a - 1.0)
        slots = weighted_choice(rng, slot_weights, pairs)
        if self.task.random_non_queries:
            tokens = rng.integers(vocab_size, size=length)
        else:
            tokens = np.zeros(length, np.int64)
        tokens[0:context:2], tokens[1:context:2] = keys, values
        queries = context + 2 * slots
        tokens[queries] = keys
        targets = np.full(length, IGNORE, np.int64)
        targets[queries] = values
        return tokens, targets


def weighted_choice(rng: np.random.Generator, weights: Float[np.ndarray, " n"], count: int) -> Symbols:
    """`count` different indices into `weights`, drawn one after the other by their weights.

    Each index waits for an exponentially distributed time, its weight the rate: the first to come are chosen.
    """
    waits = -np.log1p(-rng.random(len(weights))) / weights
    return np.argsort(waits, kind="stable")[:count]
