"""The algorithmic tasks of the Recurrent Memory Transformer: copy, reverse, and retrieval of a key's value.

Bulatov et al. 2022, arXiv:2207.06881; symbols as in booydar/LM-RMT.

    copy        s1 … sn  1  s1 … sn s1 … sn
    reverse     s1 … sn  1  sn … s1                 symbols s are 2, 3, …, 1 + `alphabet_size`
    retrieval   k1 v1 … kn vn  k  10  v             values 0 .. 9, keys 11 .. 36

The targets are the answer's symbols; each is read when the next one is the target.  Keys are different, and
values too while n is at most 10.

Differs from the paper: nothing.  Its segment is a share of input and answer: `size.segment_len=8` copies 24
symbols in 9 segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int64

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
from zoo.train.tasks.evidence import chances_by_evidence, guess_another, window_distances

Kind = Literal["copy", "reverse", "retrieval"]

START, FIRST_SYMBOL, MAX_ALPHABET = 1, 2, 10  # of copy and reverse
NUM_VALUES, RETRIEVAL_START, FIRST_KEY, NUM_KEYS = 10, 10, 11, 26
VOCAB_SIZES = {"copy": 12, "reverse": 12, "retrieval": 37}


def answer(kind: Kind, inputs: Sequence[int]) -> list[int]:
    """The answer to an input; of retrieval, the value that follows the key which the input ends with."""
    if kind == "copy":
        return [*inputs, *inputs]
    if kind == "reverse":
        return list(reversed(inputs))
    *pairs, key = inputs
    return [pairs[2 * pairs[::2].index(key) + 1]]


def render(kind: Kind, inputs: Sequence[int]) -> list[int]:
    """The line of an input: itself, the start symbol, its answer."""
    return [*inputs, RETRIEVAL_START if kind == "retrieval" else START, *answer(kind, inputs)]


@dataclass(frozen=True)
class Algorithmic(SampleTask):
    """`length` in symbols to copy or reverse, or in pairs: of held-out samples, and of training samples too
    (`lengths: fixed`) unless these have any up to it (`uniform`)."""

    name = "algorithmic"
    VERSION = 1
    target_noun = "symbol"
    axes: ClassVar = {"length": int}

    kind: Kind = "copy"
    length: int = 24
    lengths: Literal["uniform", "fixed"] = "fixed"
    alphabet_size: int = MAX_ALPHABET
    samples: int = 1_000_000
    eval_samples: int = 512
    seed: int = 0
    vocab_size: int = 12

    def __post_init__(self) -> None:
        self.check_sizes(VOCAB_SIZES[self.kind])
        if not 2 <= self.alphabet_size <= MAX_ALPHABET:
            raise UserError(f"task.alphabet_size: expected 2 to {MAX_ALPHABET}, found {self.alphabet_size}")
        if self.length < 2:
            raise UserError(f"task.length: expected at least 2, found {self.length}")
        if self.kind == "retrieval" and self.length > NUM_KEYS:
            raise UserError(f"task.length: expected at most {NUM_KEYS} pairs, found {self.length}")

    def split(self, name: Split) -> Dataset:
        return AlgorithmicDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """A guess, or a constant, and any symbol of the sample (of retrieval, any value)."""
        return {"chance": 1 / self.num_answers, "any of the sample": float(np.mean(self._shares(dataset)))}

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        """The same predictors, each target guessed independently: means over samples."""
        shares = self._shares(dataset)
        counts = np.array([len(of_sample) for of_sample in shares])
        return {
            "chance": float(np.mean((1 / self.num_answers) ** counts)),
            "any of the sample": float(np.mean([np.prod(of_sample) for of_sample in shares])),
        }

    @property
    def num_answers(self) -> int:
        """Symbols of which a target may be any."""
        return NUM_VALUES if self.kind == "retrieval" else self.alphabet_size

    def _shares(self, dataset: Dataset) -> list[Float[np.ndarray, " targets"]]:
        """Of every sample and target, the share of the input's symbols, or values, that are the same."""
        samples, shares = unwrap(dataset, AlgorithmicDataset), []
        for document in range(len(dataset.lengths)):
            inputs = samples.inputs(document)
            candidates = inputs[1:-1:2] if self.kind == "retrieval" else inputs
            targets = np.array(answer(self.kind, inputs.tolist()))
            shares.append((targets[:, None] == candidates).mean(1))
        return shares

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        return {"length": int(unwrap(dataset, AlgorithmicDataset).sizes[document])}


class AlgorithmicDataset(SampleDataset):
    """Samples drawn when they are read, each from a separate generator."""

    def __init__(self, task: Algorithmic, split: Split) -> None:
        self.task, self.split = task, split
        self.sizes = np.full(task.num_samples(split), task.length, np.int64)
        if split == "train" and task.lengths == "uniform":
            self.sizes = sample_rng(task.seed, split).integers(1, task.length + 1, size=len(self.sizes))
        inputs, targets = {"copy": (1, 2), "reverse": (1, 1), "retrieval": (2, 0)}[task.kind]
        has_key = task.kind == "retrieval"
        self.target_counts = targets * self.sizes + has_key
        self.lengths = inputs * self.sizes + has_key + self.target_counts

    def count_targets(self, document: int) -> int:
        return int(self.target_counts[document])

    def inputs(self, document: int) -> Symbols:
        """The symbols before the start symbol."""
        rng, size = sample_rng(self.task.seed, self.split, document), int(self.sizes[document])
        if self.task.kind != "retrieval":
            return rng.integers(FIRST_SYMBOL, FIRST_SYMBOL + self.task.alphabet_size, size=size)
        keys = FIRST_KEY + rng.choice(NUM_KEYS, size, replace=False)
        values = rng.choice(NUM_VALUES, size, replace=size > NUM_VALUES)
        return np.append(np.stack([keys, values], 1).ravel(), rng.choice(keys))

    def evidence_distances(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """To the symbol of the input, or of the first copy of two; of retrieval, to the key's value."""
        size = int(self.sizes[document])
        if self.task.kind == "retrieval":
            inputs = self.inputs(document)
            evidence = 2 * np.flatnonzero(inputs[:-1:2] == inputs[-1]) + 1
        elif self.task.kind == "reverse":
            evidence = np.arange(size)[::-1]
        else:
            evidence = np.concatenate([np.arange(size), size + 1 + np.arange(size)])
        return window_distances(self.target_positions(document), evidence, start, stop)

    def view_chances(self, document: int, positions: TargetPositions, starts: TargetPositions) -> Chances:
        """Symbols are independent, but the values of up to 10 pairs are different ones."""
        size = int(self.sizes[document])
        guess: float | Chances = 1 / self.task.num_answers
        if self.task.kind == "retrieval" and size <= NUM_VALUES:
            guess = guess_another(size, NUM_VALUES, starts)
        return chances_by_evidence(self, document, positions, starts, guess)

    def symbols(self, document: int, start: int, stop: int) -> Symbols:
        return np.array(render(self.task.kind, self.inputs(document).tolist())[start:stop], np.int64)
