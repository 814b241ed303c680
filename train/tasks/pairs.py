"""Associative retrieval: pairs of key and value, one per segment, then the value of one key.

Rodkin et al. 2024, arXiv:2407.04841 (ARMT).

    k k SEP v EOS  k k SEP v EOS  …  k k GEN v        targets: the value's digits at GEN and after

Keys and values have `key_size` and `value_size` digits of 16; each is read when the next one is the target.
`rewrite: false`: all keys are different.  `rewrite: true`: keys come again with other values, of which the
last is right.  The key at the end is any of the different ones, however often it came.

Differs from the paper: GEN and the EOS after the value are no targets, and the number of pairs varies within
a batch.  A segment of `size.segment_len` = key_size + value_size + 2 is one pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from zoo.errors import UserError
from zoo.train.tasks.base import (
    Chances,
    Dataset,
    SampleDataset,
    SampleTask,
    Split,
    Symbols,
    TargetPositions,
    sample_rng,
    unwrap,
)
from zoo.train.tasks.evidence import chances_by_evidence, window_distances

DIGITS = 16
SEP, GEN, EOS = 16, 17, 18
VOCAB_SIZE = 19

Digits = Int64[np.ndarray, "pairs size"]


def recall(keys: Sequence[Sequence[int]], values: Sequence[Sequence[int]], key: Sequence[int]) -> list[int]:
    """The last value that the key was given."""
    (*_, last) = (value for known, value in zip(keys, values, strict=True) if list(known) == list(key))
    return list(last)


def render(keys: Sequence[Sequence[int]], values: Sequence[Sequence[int]], key: Sequence[int]) -> list[int]:
    """The line of a sample, up to its answer."""
    line: list[int] = []
    for known, value in zip(keys, values, strict=True):
        line += [*known, SEP, *value, EOS]
    return [*line, *key, GEN, *recall(keys, values, key)]


class SampleParams(NamedTuple):
    """The random parameters of a sample, from which its symbols follow."""

    keys: Digits
    values: Digits
    key: Int64[np.ndarray, " size"]  # the one whose value is the answer

    def answer(self) -> Symbols:
        return np.array(recall(self.keys.tolist(), self.values.tolist(), self.key.tolist()))


@dataclass(frozen=True)
class Pairs(SampleTask):
    """`pairs` in every held-out sample; training samples have up to that many (`lengths: uniform`) or as many
    (`fixed`)."""

    name = "pairs"
    VERSION = 1
    target_noun = "digit"
    axes: ClassVar = {"pairs": int}

    pairs: int = 10
    lengths: Literal["uniform", "fixed"] = "uniform"
    key_size: int = 1
    value_size: int = 1
    rewrite: bool = False
    samples: int = 1_000_000
    eval_samples: int = 512
    seed: int = 0
    vocab_size: int = VOCAB_SIZE

    def __post_init__(self) -> None:
        self.check_sizes(VOCAB_SIZE)
        if not (1 <= self.key_size <= 8 and self.value_size >= 1):
            raise UserError(
                "task.key_size and task.value_size: expected 1 to 8 and at least 1, "
                f"found {self.key_size} and {self.value_size}"
            )
        if self.pairs < 2:
            raise UserError(f"task.pairs: expected at least 2, found {self.pairs}")
        if not self.rewrite and self.pairs > DIGITS**self.key_size:
            raise UserError(
                f"task.pairs: expected at most the {DIGITS**self.key_size} keys of key_size={self.key_size}, "
                f"or rewrite=true, found {self.pairs}"
            )

    def split(self, name: Split) -> Dataset:
        return PairsDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """A guess, or a constant; the last value of the sample; any of its values."""
        hits = self._hits(dataset)
        return {
            "chance": 1 / DIGITS,
            "last value": float(np.mean([of_sample[-1].mean() for of_sample in hits])),
            "any value of the sample": float(np.mean([of_sample.mean() for of_sample in hits])),
        }

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        hits = [np.asarray(of_sample.all(axis=1)) for of_sample in self._hits(dataset)]
        return {
            "chance": float(DIGITS) ** -self.value_size,
            "last value": float(np.mean([of_sample[-1] for of_sample in hits])),
            "any value of the sample": float(np.mean([of_sample.mean() for of_sample in hits])),
        }

    def _hits(self, dataset: Dataset) -> list[Bool[np.ndarray, "pairs value_size"]]:
        """Of every sample, which digits of each of its values are those of the answer."""
        samples = unwrap(dataset, PairsDataset)
        all_params = [samples.params(document) for document in range(len(dataset.lengths))]
        return [np.asarray(params.values == params.answer()) for params in all_params]

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        return {"pairs": int(unwrap(dataset, PairsDataset).pairs[document])}


class PairsDataset(SampleDataset):
    """Samples drawn when they are read, each from a separate generator."""

    def __init__(self, task: Pairs, split: Split) -> None:
        self.task, self.split = task, split
        self.num_targets = task.value_size
        self.pairs = np.full(task.num_samples(split), task.pairs, np.int64)
        if split == "train" and task.lengths == "uniform":
            self.pairs = sample_rng(task.seed, split).integers(1, task.pairs + 1, size=len(self.pairs))
        digits = task.key_size + task.value_size
        self.lengths = (digits + 2) * self.pairs + digits

    def params(self, document: int) -> SampleParams:
        task, pairs = self.task, int(self.pairs[document])
        rng = sample_rng(task.seed, self.split, document)
        numbers = rng.choice(DIGITS**task.key_size, pairs, replace=task.rewrite)
        keys = numbers[:, None] // DIGITS ** np.arange(task.key_size) % DIGITS
        values = rng.integers(DIGITS, size=(pairs, task.value_size))
        key = keys[(numbers == rng.choice(np.unique(numbers))).argmax()]
        return SampleParams(keys, values, key)

    def evidence_distances(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """To the digits of the last value that the key was given."""
        task, (keys, _, key) = self.task, self.params(document)
        last = int(np.flatnonzero((keys == key).all(1))[-1])
        first_digit = last * (task.key_size + task.value_size + 2) + task.key_size + 1
        evidence = first_digit + np.arange(task.value_size)
        return window_distances(self.target_positions(document), evidence, start, stop)

    def view_chances(self, document: int, positions: TargetPositions, starts: TargetPositions) -> Chances:
        """Digits are independent: to say a value whose key is only seen in part costs nothing."""
        return chances_by_evidence(self, document, positions, starts, 1 / DIGITS)

    def symbols(self, document: int, start: int, stop: int) -> Symbols:
        keys, values, key = self.params(document)
        return np.array(render(keys.tolist(), values.tolist(), key.tolist())[start:stop], np.int64)
