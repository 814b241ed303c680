"""Multi-query associative recall: which value came with this key?

Arora et al. 2023, arXiv:2312.04927 (Zoology); the mixture of lengths is that of Based, arXiv:2402.18668.

    k1 v1 k2 v2 … kD vD  r r k2 r r r k1 r …        asked at each of the D later keys: its value

    keys    D different ones of 1 .. V/2-1          values  D different ones of V/2 .. V-1
    slots   0 .. (L-2D)/2 - 1, of two positions each; D different ones, drawn one after the other,
            slot i with a weight of (i+1)^(a-1): a = 0.01 puts most of them near the pairs, 1 anywhere

The answer is never put into the input: what follows a later key is filler, as are all places r.  Filler is
any of the V symbols, keys and values among them (`random_non_queries`), or 0.

Differs from the paper: nothing; but samples are drawn when they are read, so that none need be stored.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.tasks.base import SPLITS, Dataset, SampleTask, Split, Task, origin


class Form(NamedTuple):
    """What samples look like, and how many look so."""

    length: int
    pairs: int
    samples: int


class Mqar(SampleTask):
    """`length` positions and `pairs` pairs, of `vocab_size` symbols.

    `mixture`: [length, pairs, samples] of several kinds of samples to train on, in place of `samples` of the
    one above, which held-out samples always are.
    """

    name = "mqar"
    VERSION = 1

    def __init__(
        self,
        length: int = 64,
        pairs: int = 4,
        vocab_size: int = 8192,
        power_a: float = 0.01,
        random_non_queries: bool = True,
        mixture: list[list[int]] | None = None,
        samples: int = 100_000,
        eval_samples: int = 3_000,
        seed: int = 0,
    ) -> None:
        super().__init__(vocab_size, 1, samples, eval_samples, seed)
        self.length, self.pairs = length, pairs
        self.power_a, self.random_non_queries, self.mixture = power_a, random_non_queries, mixture
        for kind in mixture or ():
            if len(kind) != 3 or kind[2] < 1:
                raise UserError(f"task.mixture: expected [length, pairs, samples] of each kind, found {kind}")
            if kind[0] > length:
                raise UserError(f"task.mixture: expected lengths of at most {length=}, found {kind[0]}")
        for form in self.forms("train") + self.forms("test"):
            if form.pairs < 1 or form.length % 2 or not 4 * form.pairs <= form.length < vocab_size:
                raise UserError(
                    "task mqar: expected an even length, below vocab_size and at least 4 times pairs, "
                    f"found length={form.length}, pairs={form.pairs}, {vocab_size=}"
                )

    def at(self, **axes: int | float) -> Task:
        """Held-out samples of another `length` or with other `pairs`; the same to train on, of that kind."""
        if others := axes.keys() - {"length", "pairs"}:
            return super().at(**{name: axes[name] for name in others})
        return Mqar(
            length=int(axes.get("length", self.length)),
            pairs=int(axes.get("pairs", self.pairs)),
            vocab_size=self.vocab_size,
            power_a=self.power_a,
            random_non_queries=self.random_non_queries,
            samples=self.counts["train"],
            eval_samples=self.counts["val"],
            seed=self.seed,
        )

    def forms(self, name: Split) -> list[Form]:
        """The kinds of samples in a split."""
        if name == "train" and self.mixture:
            return [Form(*form) for form in self.mixture]
        return [Form(self.length, self.pairs, self.counts[name])]

    def split(self, name: Split) -> Dataset:
        return MqarDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """A guess among all values; and among those of the sample, without a look at the key."""
        pairs = _of(dataset).pairs[: len(dataset.lengths)]
        values = self.vocab_size - self.vocab_size // 2
        return {"chance": 1 / values, "any value of the sample": len(pairs) / float(pairs.sum())}

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        return {"length": int(dataset.lengths[document]), "pairs": int(_of(dataset).pairs[document])}


class MqarDataset(Dataset):
    """Samples drawn when they are read, each from a generator of its own."""

    def __init__(self, task: Mqar, split: Split) -> None:
        self.task, self.split = task, SPLITS.index(split)
        lengths, pairs, counts = zip(*task.forms(split), strict=True)
        self.lengths, self.pairs = np.repeat(lengths, counts), np.repeat(pairs, counts)

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        length = int(self.lengths[document])
        if not 0 <= start <= stop <= length:
            raise IndexError(f"positions {start}..{stop} of sample {document}, which has {length}")
        tokens, targets = self.sample(document)
        return tokens[start:stop], targets[start:stop]

    def sample(
        self, document: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        length, pairs = int(self.lengths[document]), int(self.pairs[document])
        size, context = self.task.vocab_size, 2 * pairs
        draw = np.random.Generator(np.random.Philox([self.task.seed, self.split, document]))
        keys = 1 + draw.choice(size // 2 - 1, pairs, replace=False)
        values = size // 2 + draw.choice(size - size // 2, pairs, replace=False)
        slots = weighted(draw, np.arange(1, (length - context) // 2 + 1) ** (self.task.power_a - 1.0), pairs)
        tokens = (
            draw.integers(size, size=length) if self.task.random_non_queries else np.zeros(length, np.int64)
        )
        tokens[0:context:2], tokens[1:context:2] = keys, values
        queries = context + 2 * slots
        tokens[queries] = keys
        targets = np.full(length, IGNORE, np.int64)
        targets[queries] = values
        return tokens, targets


def weighted(draw: np.random.Generator, weights: np.ndarray, count: int) -> Int64[np.ndarray, " count"]:
    """So many different numbers of 0 .. len(weights)-1, drawn one after the other by their weights.

    Each waits for a time that is exponentially distributed, its weight the rate: the first to come are these.
    """
    waits = -np.log1p(-draw.random(len(weights))) / weights
    return np.argsort(waits, kind="stable")[:count]


def _of(dataset: Dataset) -> MqarDataset:
    found = origin(dataset)
    assert isinstance(found, MqarDataset)
    return found
