"""Selective copying: what stood between the noise, in its order?

Gu & Dao 2023, arXiv:2312.00752, section 4.1.1; as in the S4 repository's copying task, which they build on:

    . . c . . . a . . b .  ? ? ?   ->   c a b

NOISE is 0, symbols to remember are 1 .. V-2, each as likely, and the marker ? is V-1.  `length` positions in
all: `remembered` symbols at random places among noise, then as many markers, at each of which one of them is
asked.  The answers themselves are never read.  Chance is 1 in vocab_size - 2.
"""

import numpy as np
from jaxtyping import Int64

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.tasks.base import SPLITS, Dataset, SampleTask, Split, Task

NOISE = 0


class SelectiveCopy(SampleTask):
    """The places of the symbols are drawn anew for every sample."""

    name = "selective_copy"
    VERSION = 1

    def __init__(
        self,
        length: int = 4096,
        remembered: int = 16,
        vocab_size: int = 16,
        samples: int = 1_000_000,
        eval_samples: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__(vocab_size, 3, samples, eval_samples, seed)
        if not 1 <= remembered <= length // 2:
            raise UserError(
                "task.remembered: expected at least 1 and at most half of task.length, "
                f"found {remembered} of {length}"
            )
        self.length, self.remembered = length, remembered

    def at(self, **axes: int | float) -> Task:
        """As many symbols at another `length`."""
        length = axes.pop("length", self.length)
        super().at(**axes)
        return SelectiveCopy(
            length=int(length),
            remembered=self.remembered,
            vocab_size=self.vocab_size,
            samples=self.counts["train"],
            eval_samples=self.counts["val"],
            seed=self.seed,
        )

    def split(self, name: Split) -> Dataset:
        return SelectiveCopyDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        return {"chance": 1 / (self.vocab_size - 2)}


class SelectiveCopyDataset(Dataset):
    """Samples drawn when they are read, each from a generator of its own."""

    def __init__(self, task: SelectiveCopy, split: Split) -> None:
        self.task, self.split = task, SPLITS.index(split)
        self.lengths = np.full(task.counts[split], task.length, np.int64)

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        length, count, marker = self.task.length, self.task.remembered, self.task.vocab_size - 1
        if not 0 <= start <= stop <= length:
            raise IndexError(f"positions {start}..{stop} of sample {document}, which has {length}")
        symbols, places = self.sample(document)
        tokens = np.where(np.arange(start, stop) < length - count, NOISE, marker)
        targets = np.full(stop - start, IGNORE, np.int64)
        for row, where in ((tokens, places), (targets, np.arange(length - count, length))):
            here = (where >= start) & (where < stop)
            row[where[here] - start] = symbols[here]
        return tokens, targets

    def sample(self, document: int) -> tuple[Int64[np.ndarray, " symbols"], Int64[np.ndarray, " symbols"]]:
        """What is to be remembered, and where it stands."""
        count = self.task.remembered
        draw = np.random.Generator(np.random.Philox([self.task.seed, self.split, document]))
        symbols = draw.integers(1, self.task.vocab_size - 1, size=count)
        return symbols, np.sort(draw.choice(self.task.length - count, count, replace=False))
