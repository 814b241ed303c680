"""Induction heads: which token followed the special one, long ago?

Gu & Dao 2023, arXiv:2312.00752, section 4.1.2.

    r r r * x r r r … r *  ->  x

A sample is `length` random tokens; the special token stands once at a random place, and again at the very
end, where the token that followed it is asked.  Chance is 1 in vocab_size - 1.
"""

import numpy as np
from jaxtyping import Int64

from zoo.errors import UserError
from zoo.train.tasks.base import SPLITS, Dataset, SampleDataset, SampleTask, Split, Task

BLOCK = 4096  # tokens drawn together: a place far inside a long sample costs no more than the first


class Induction(SampleTask):
    """`samples` to train on, more than a run reads so that data stays fresh; `eval_samples` for val and
    test."""

    name = "induction"
    VERSION = 1

    def __init__(
        self,
        length: int = 256,
        vocab_size: int = 16,
        samples: int = 1_000_000,
        eval_samples: int = 512,
        seed: int = 0,
    ) -> None:
        """`length` in tokens; the special token is one of `vocab_size`.  UserError: no sample could be so."""
        super().__init__(vocab_size, 3, samples, eval_samples, seed)
        if length < 4:
            raise UserError(f"task.length: expected at least 4 (*, x, anything, *), found {length}")
        self.length = length

    def at(self, **axes: int | float) -> Task:
        """The same samples' kind at another `length`."""
        length = axes.pop("length", self.length)
        super().at(**axes)
        return Induction(int(length), self.vocab_size, self.counts["train"], self.counts["test"], self.seed)

    def split(self, name: Split) -> Dataset:
        return InductionDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        return {"chance": 1 / (self.vocab_size - 1)}


class InductionDataset(SampleDataset):
    """Samples drawn when they are read, each from a generator of its own."""

    asked = 1

    def __init__(self, task: Induction, split: Split) -> None:
        self.task, self.split = task, SPLITS.index(split)
        self.lengths = np.full(task.counts[split], task.length, np.int64)

    def line(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " symbols"]:
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        drawn = np.concatenate([self._block(document, block) for block in blocks])
        line = drawn[start % BLOCK :][: stop - start]
        special, end = self.task.vocab_size - 1, self.task.length - 1
        for place, symbol in (
            (self.place(document), special),
            (end, special),
            (end + 1, self.answer(document)),
        ):
            if start <= place < stop:
                line[place - start] = symbol
        return line

    def place(self, document: int) -> int:
        """Where the special token stands first: anywhere but in the last three places."""
        return int(self._generator(document, -1).integers(self.task.length - 2))

    def answer(self, document: int) -> int:
        """The token behind it."""
        place = self.place(document) + 1
        return int(self._block(document, place // BLOCK)[place % BLOCK])

    def _block(self, document: int, block: int) -> Int64[np.ndarray, " block"]:
        return self._generator(document, block).integers(self.task.vocab_size - 1, size=BLOCK)

    def _generator(self, document: int, block: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox([self.task.seed, self.split, document, block + 1]))
