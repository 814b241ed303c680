"""What a task is: language modelling with a mask, read by the same loaders and trained by the same loop.

Of tasks made of samples the end of every sample is asked, and accuracy is what counts.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE

Split = Literal["train", "val", "test"]


class Dataset(ABC):
    """Documents as tokens and what is asked of them."""

    lengths: Int64[np.ndarray, " documents"]
    """Positions per document, at least 1; an end symbol is one of them."""

    @abstractmethod
    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        """Tokens, and targets (IGNORE where nothing is asked), of positions start..stop-1."""

    def text(self, document: int) -> bytes | None:
        """The bytes that the document's targets stand for; None where targets aren't bytes."""
        return None


class Subset(Dataset):
    """The first so many documents of other texts."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.dataset, self.lengths = dataset, dataset.lengths[:count]

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        return self.dataset.window(document, start, stop)

    def text(self, document: int) -> bytes | None:
        return self.dataset.text(document)


class Task(ABC):
    """Texts in splits, and the unit in which they are scored."""

    name: ClassVar[str]
    VERSION: ClassVar[int]
    """Raised whenever the same configuration would give other tokens or targets."""
    vocab_size: int
    metric: ClassVar[Literal["bits_per_byte", "accuracy"]]

    @abstractmethod
    def split(self, name: Split) -> Dataset:
        """Texts to train on, to validate with or to test with; UserError where there are none."""

    @abstractmethod
    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        """How many bytes the asked targets stand for: 0 in a task without bytes."""

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Scores of predictors that learn nothing, on the same texts and in the task's unit, by name."""
        return {}

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        """Labels of a document, by axis: accuracy is reported by each of them too."""
        return {}

    def scores(self, dataset: Dataset, document: int, hits: Bool[np.ndarray, " targets"]) -> dict[str, float]:
        """Further scores of a document by name, 0 to 1, from which targets were hit: means are reported."""
        return {}

    def at(self, **axes: int | float) -> "Task":
        """The same task at another point of its axes (a length, a depth); UserError: an axis it hasn't."""
        if axes:
            raise UserError(f"task {self.name} has no {' or '.join(axes)} to vary")
        return self

    def check_unseen(self, trained: "Task", split: Split) -> None:  # noqa: B027
        """UserError where documents of a held-out split are among those that a run of `trained`, the same
        task with other settings, trains on; most tasks draw each split apart."""

    def words(self, dataset: Dataset) -> tuple[int, str] | None:
        """How many words the texts hold, and what counts as one; None where words say nothing."""
        return None


SPLITS: tuple[Split, ...] = ("train", "val", "test")


class SampleDataset(Dataset):
    """A sample is a line of n + 1 symbols: tokens s0 … s(n-1), targets s1 … sn.

    The last `asked` symbols are asked.
    """

    asked: int

    def asked_of(self, document: int) -> int:
        """How many symbols a sample asks, where they don't all ask as many."""
        return self.asked

    @abstractmethod
    def line(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " symbols"]:
        """Symbols start..stop-1 of a line, as an array of its own."""

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        size = int(self.lengths[document])
        if not 0 <= start <= stop <= size:
            raise IndexError(f"positions {start}..{stop} of sample {document}, which has {size}")
        line = self.line(document, start, stop + 1)
        targets = line[1:].copy()
        targets[: max(0, size - self.asked_of(document) - start)] = IGNORE
        return line[:-1], targets


class SampleTask(Task):
    """`samples` to train on, `eval_samples` for val and test each."""

    metric = "accuracy"

    def __init__(self, vocab_size: int, needed: int, samples: int, eval_samples: int, seed: int) -> None:
        """UserError: fewer than the `needed` symbols, or a split without samples."""
        if vocab_size < needed:
            raise UserError(f"task.vocab_size: expected at least {needed}, found {vocab_size}")
        if min(samples, eval_samples) < 1:
            raise UserError(
                f"task.samples and task.eval_samples: expected at least 1, found {samples} and {eval_samples}"
            )
        if seed < 0:
            raise UserError(f"task.seed: expected at least 0, found {seed}")
        self.vocab_size, self.seed = vocab_size, seed
        self.counts = {"train": samples, "val": eval_samples, "test": eval_samples}

    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        return torch.zeros((), dtype=torch.long, device=targets.device)


def origin(dataset: Dataset) -> Dataset:
    """The texts that others are the first of."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


EDGES = [0, 512, 2048, 8192, 32768, 131072]  # of the buckets of positions in a document
RANGES = list(zip(EDGES, [*EDGES[1:], None], strict=True))
BUCKETS = [f"{low}-{high or 'end'}" for low, high in RANGES]
