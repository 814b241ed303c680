"""Induction heads: which token followed the special one, long ago?

Gu & Dao 2023, arXiv:2312.00752, section 4.1.2.

    r r r * x r r r … r *  ->  x

A sample is `length` random tokens; the special token stands once at a random place, and again at the very
end, where the token that followed it is asked.  Chance is 1 in vocab_size - 1.
"""

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.task import Split, Task, Texts

BLOCK = 4096  # tokens drawn together: a place far inside a long sample costs no more than the first
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Induction(Task):
    """`samples` to train on, more than a run reads: data stays fresh; `held_out` for val and test each."""

    name = "induction"
    VERSION = 1
    metric = "accuracy"

    def __init__(
        self,
        length: int = 256,
        vocab_size: int = 16,
        samples: int = 1_000_000,
        held_out: int = 512,
        seed: int = 0,
    ) -> None:
        if length < 4:
            raise UserError(f"task.length: expected at least 4 (*, x, anything, *), found {length}")
        if vocab_size < 3:
            raise UserError(
                f"task.vocab_size: expected at least 3, the special token among them, found {vocab_size}"
            )
        if min(samples, held_out) < 1:
            raise UserError(
                f"task.samples and task.held_out: expected at least 1, found {samples} and {held_out}"
            )
        self.length, self.vocab_size, self.seed = length, vocab_size, seed
        self.counts = {"train": samples, "val": held_out, "test": held_out}

    def at(self, **axes: int | float) -> Task:
        """The same samples' kind at another `length`."""
        length = axes.pop("length", self.length)
        super().at(**axes)
        return Induction(int(length), self.vocab_size, self.counts["train"], self.counts["test"], self.seed)

    def split(self, name: Split) -> Texts:
        return InductionTexts(self, name)

    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        return torch.zeros((), dtype=torch.long, device=targets.device)

    def references(self, texts: Texts) -> dict[str, float]:
        return {"chance": 1 / (self.vocab_size - 1)}


class InductionTexts(Texts):
    """Samples drawn when they are read, each from a generator of its own."""

    def __init__(self, task: Induction, split: Split) -> None:
        self.task, self.split = task, SPLITS.index(split)
        self.lengths = np.full(task.counts[split], task.length, np.int64)

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        special = self.task.vocab_size - 1
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        tokens = np.concatenate([self._block(document, block) for block in blocks])[start % BLOCK :][
            : stop - start
        ]
        first, end = self.place(document), self.task.length - 1
        targets = np.full(stop - start, IGNORE, np.int64)
        for place in (first, end):
            if start <= place < stop:
                tokens[place - start] = special
        if start <= end < stop:
            targets[end - start] = self.answer(document)
        return tokens, targets

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
