"""Passkey retrieval: a number of five digits, hidden in text that says nothing, is asked at the end.

Mohtashami & Jaggi 2023, arXiv:2305.16300, section 4.2.  `form: bytes` is their prompt, five pieces joined by
line ends, behind the END that opens any document of task lm; then a space and the key, which is asked:

    There is an important info hidden …
    filler[:p]
    The pass key is K. Remember it. K is the pass key.
    filler[:n-p]
    What is the pass key? The pass key is

`form: compact` says it in 28 symbols, ten digits, a marker, a query mark and 16 tokens of filler:

    filler[:p]  MARKER K  filler[:n-p]  QUERY K

`length` counts the positions of a whole sample; what the rest leaves of them is filler, n bytes or tokens.
The depth of a sample is p / n.  Fillers: `original`, the same sentences over and over, beginning anew behind
the key; `books`, a span of a corpus, of the same split; `random`, words or tokens drawn at random.

Differs from the paper: K has always five digits (10000..99999: a guess is right once in 90,000), and `length`
counts all tokens, not the filler's characters.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from zoo.errors import UserError
from zoo.train.corpora.catalog import open_corpus
from zoo.train.tasks.base import SPLITS, Dataset, SampleDataset, SampleTask, Split, Task, origin
from zoo.train.tasks.haystack import Ring
from zoo.train.tasks.lm import END

DIGITS = 5
TASK = (
    b"There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    b"I will quiz you about the important information there."
)
KEY = b"The pass key is %05d. Remember it. %05d is the pass key."
QUESTION = b"What is the pass key? The pass key is"
FILLER = b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
MARKER, QUERY, FIRST_FILLER = 10, 11, 12  # of the compact form; digits are themselves
VOCABULARY = {"bytes": END + 1, "compact": 28}
BLOCK = 4096  # symbols drawn together: a place far inside a long sample costs no more than the first

Symbols = Int64[np.ndarray, " _"]


class Sample(NamedTuple):
    """What is drawn for a sample."""

    key: int
    filler: int  # symbols
    place: int  # how many of them stand before the key
    start: int  # where in all bytes of the corpus a span of books begins


class Passkey(SampleTask):
    """Samples to train on have any possible length up to `length` (`lengths: uniform`) or just that
    (`fixed`); held-out ones always have just that.  `depth`: 0..1, drawn for every sample if None."""

    name = "passkey"
    VERSION = 1

    def __init__(
        self,
        length: int = 512,
        depth: float | int | None = None,
        lengths: Literal["uniform", "fixed"] = "uniform",
        form: Literal["bytes", "compact"] = "bytes",
        filler: Literal["original", "books", "random"] = "original",
        corpus: str = "books",
        root: str | Path = "data",
        samples: int = 1_000_000,
        eval_samples: int = 512,
        seed: int = 0,
        vocab_size: int = END + 1,
    ) -> None:
        """`corpus` and `root` (see `open_corpus`) are looked at only where books fill."""
        super().__init__(vocab_size, VOCABULARY[form], samples, eval_samples, seed)
        self.length, self.depth, self.lengths, self.form, self.filler = length, depth, lengths, form, filler
        self.corpus, self.root = corpus, root
        self.around = sum(map(len, self.pieces(0))) - 1  # positions that aren't filler
        if length < self.around:
            raise UserError(
                f"task.length: expected at least {self.around} (a sample without filler), found {length}"
            )
        if depth is not None and not 0 <= depth <= 1:
            raise UserError(f"task.depth: expected a share of the filler from 0 to 1, found {depth}")
        if form == "compact" and filler == "books":
            raise UserError("task.filler: expected original or random in the compact form, found books")

    def at(self, **axes: int | float) -> Task:
        """The same keys and fillers at another `length` or `depth`."""
        if others := axes.keys() - {"length", "depth"}:
            return super().at(**{name: axes[name] for name in others})
        return Passkey(
            length=int(axes.get("length", self.length)),
            depth=axes.get("depth", self.depth),
            lengths=self.lengths,
            form=self.form,
            filler=self.filler,
            corpus=self.corpus,
            root=self.root,
            samples=self.counts["train"],
            eval_samples=self.counts["val"],
            seed=self.seed,
            vocab_size=self.vocab_size,
        )

    def split(self, name: Split) -> Dataset:
        return PasskeyDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """The share of digits that a guess hits (the first is never 0); of keys it hits 1 in 90,000."""
        return {"chance": (1 / 9 + (DIGITS - 1) / 10) / DIGITS}

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        """Length, and depth to the next tenth."""
        whole = origin(dataset)
        assert isinstance(whole, PasskeyDataset)
        said = whole.sample(document)
        return {"length": int(dataset.lengths[document]), "depth": round(said.place / max(1, said.filler), 1)}

    def pieces(self, key: int) -> tuple[Symbols, Symbols, Symbols]:
        """What stands before, between and behind the two parts of the filler."""
        digits = np.frombuffer(b"%05d" % key, np.uint8).astype(np.int64)
        if self.form == "compact":
            digits -= ord("0")
            mark, query = np.array([MARKER]), np.array([QUERY])
            return np.empty(0, np.int64), np.concatenate([mark, digits]), np.concatenate([query, digits])
        said = [TASK + b"\n", b"\n" + KEY % (key, key) + b"\n", b"\n" + QUESTION + b" "]
        first, between, last = (np.frombuffer(part, np.uint8).astype(np.int64) for part in said)
        return np.concatenate([[END], first]), between, np.concatenate([last, digits])


class PasskeyDataset(SampleDataset):
    """Samples drawn when they are read, each from a generator of its own: nothing to keep on disk."""

    asked = DIGITS

    def __init__(self, task: Passkey, split: Split) -> None:
        self.task, self.split = task, SPLITS.index(split)
        self.lengths = np.full(task.counts[split], task.length, np.int64)
        if split == "train" and task.lengths == "uniform":
            draw = np.random.Generator(np.random.Philox([task.seed, self.split]))
            self.lengths = draw.integers(task.around, task.length + 1, size=len(self.lengths))
        self.books: Ring | None = None
        if task.filler == "books":
            self.books = Ring(open_corpus(task.corpus, task.root).split(split))

    def sample(self, document: int) -> Sample:
        """Drawn in this order, so that key and filler are the same at every length and depth."""
        draw = self._generator(document, -1)
        key = int(draw.integers(10 ** (DIGITS - 1), 10**DIGITS))
        start = int(draw.integers(1 if self.books is None else len(self.books)))
        filler = int(self.lengths[document]) - self.task.around
        depth = self.task.depth
        place = int(draw.integers(filler + 1)) if depth is None else round(depth * filler)
        return Sample(key, filler, place, start)

    def line(self, document: int, start: int, stop: int) -> Symbols:
        sample = self.sample(document)
        before, between, behind = self.task.pieces(sample.key)
        prefix = range(sample.place)
        suffix = range(sample.place, sample.filler)
        if self.task.filler == "original":  # begins anew
            suffix = range(len(suffix))
        found, at = [], 0
        for part in (before, prefix, between, suffix, behind):
            own = part[max(0, start - at) : max(0, stop - at)]
            at += len(part)
            if len(own):
                found.append(self._filler(document, sample, own) if isinstance(own, range) else own)
        return np.concatenate(found)

    def _filler(self, document: int, sample: Sample, own: range) -> Symbols:
        """So many symbols of a sample's endless filler, from its place own.start on."""
        if self.books is not None:
            return self.books.read(sample.start + own.start, len(own)).astype(np.int64)
        if self.task.filler == "random":
            blocks = range(own.start // BLOCK, -(-own.stop // BLOCK))
            drawn = np.concatenate([self._block(document, block) for block in blocks])
            return drawn[own.start % BLOCK :][: len(own)]
        cycle = _CYCLES[self.task.form]
        return cycle[np.arange(own.start, own.stop) % len(cycle)]

    def _block(self, document: int, block: int) -> Symbols:
        """Tokens of filler, each as likely; in bytes, words of 2 to 9 letters."""
        draw = self._generator(document, block)
        if self.task.form == "compact":
            return draw.integers(FIRST_FILLER, VOCABULARY["compact"], size=BLOCK)
        letters = draw.integers(ord("a"), ord("z") + 1, size=BLOCK)
        ends = np.cumsum(draw.integers(3, 11, size=BLOCK // 3)) - 1
        letters[ends[ends < BLOCK]] = ord(" ")
        return letters

    def _generator(self, document: int, block: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox([self.task.seed, self.split, document, block + 1]))


_CYCLES: dict[str, Symbols] = {
    "bytes": np.frombuffer(FILLER, np.uint8).astype(np.int64),
    "compact": np.arange(FIRST_FILLER, VOCABULARY["compact"]),
}
