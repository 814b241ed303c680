"""What tasks made of samples share: the end of every sample is asked, and accuracy is what counts."""

from abc import abstractmethod

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.task import First, Split, Task, Texts

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class SampleTexts(Texts):
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
    """`samples` to train on, `held_out` for val and test each."""

    metric = "accuracy"

    def __init__(self, vocab_size: int, needed: int, samples: int, held_out: int, seed: int) -> None:
        """UserError: fewer than the `needed` symbols, or a split without samples."""
        if vocab_size < needed:
            raise UserError(f"task.vocab_size: expected at least {needed}, found {vocab_size}")
        if min(samples, held_out) < 1:
            raise UserError(
                f"task.samples and task.held_out: expected at least 1, found {samples} and {held_out}"
            )
        if seed < 0:
            raise UserError(f"task.seed: expected at least 0, found {seed}")
        self.vocab_size, self.seed = vocab_size, seed
        self.counts = {"train": samples, "val": held_out, "test": held_out}

    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        return torch.zeros((), dtype=torch.long, device=targets.device)


def origin(texts: Texts) -> Texts:
    """The texts that others are the first of."""
    while isinstance(texts, First):
        texts = texts.texts
    return texts
