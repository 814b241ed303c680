"""Needles in a haystack: numbers hidden in books, asked for by name at the end.

Hsieh et al. 2024, arXiv:2404.06654 (RULER), tasks niah_single_2, niah_multikey_1, niah_multivalue and
niah_multiquery, their very words, behind the END that opens any document of task lm:

    A special magic number is hidden within the following text. …
    book  One of the special magic numbers for KEY is: VALUE.  book
    What is the special magic number for KEY mentioned in the provided text? The special … text is VALUE

`kind`        needles                               asked for
single        one                                   its value
multikey      `needles`, each of another key        one's value
multivalue    `needles`, all of one key             all values, as they come in the text
multiquery    `needles`, each of another key        the values of all, as their keys come in the question

`distractors` more hide keys that are never asked for.  Values have seven digits; several are said as
`1234567, 7654321`.  The answer is asked from its first digit to its last.  Needles stand between sentences,
at different ones of 40 depths from 0 to 1, in shares of the sentences; `depth` gives that of a single one.
`length` counts bytes, and so positions, of a whole sample; what the rest leaves of them is the book.

Scored by whole answers, and by the mean share of the values that are found in them (`found`, `score`).

Differs from the paper: keys are of 2,304 pairs of our own words, books are those of the corpus, in their own
white space, and values have an order, as targets need one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from zoo.errors import UserError
from zoo.train.corpora.catalog import open_corpus
from zoo.train.tasks.base import Dataset, SampleTask, Split, Task, origin
from zoo.train.tasks.haystack import HaystackDataset, Ring, Woven
from zoo.train.tasks.lm import END

DIGITS = 7
DEPTHS = np.round(np.linspace(0, 100, 40)) / 100
ONE = (  # said before the book and behind it, if one value is asked for
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n",
    "\nWhat is the special magic number for {query} mentioned in the provided text? "
    "The special magic number for {query} mentioned in the provided text is ",
)
SEVERAL = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards.\n",
    "\nWhat are all the special magic numbers for {query} mentioned in the provided text? "
    "The special magic numbers for {query} mentioned in the provided text are ",
)
BETWEEN = ", "  # values
ADJECTIVES = str.split("""
    able amber ancient bold brave bright brisk calm clever cold crimson curious dim dusty eager early
    faint fair fancy gentle golden grand hasty heavy hollow humble icy idle jolly keen late lively lucky
    mellow merry mild narrow noble pale plain proud quick quiet rapid shy silent tidy young
""")
NOUNS = str.split("""
    anchor apple arrow badge basket bell bottle bridge candle canyon castle cloud comet copper desert
    drum ember falcon feather forest fountain garden glacier hammer harbor island jacket kettle ladder
    lantern meadow mirror needle ocean orchard paper pebble pillow pocket ribbon river saddle shadow
    teapot thunder tunnel valley window
""")
LONGEST = max(map(len, ADJECTIVES)) + 1 + max(map(len, NOUNS))


class Sample(NamedTuple):
    """What is drawn for a sample."""

    needles: list[tuple[str, int]]  # keys and values, as they come in the text
    places: list[float]  # their depths
    queries: list[str]  # keys that are asked for
    start: int  # where in the ring the book begins

    def answers(self) -> list[int]:
        return [value for query in self.queries for key, value in self.needles if key == query]


class Needle(SampleTask):
    """Samples to train on have any possible length up to `length` (`lengths: uniform`) or just that
    (`fixed`); held-out ones always have just that.  `depth`: 0..1, drawn for every sample if None."""

    name = "needle"
    VERSION = 1

    def __init__(
        self,
        kind: Literal["single", "multikey", "multivalue", "multiquery"] = "single",
        length: int = 1024,
        depth: float | int | None = None,
        lengths: Literal["uniform", "fixed"] = "uniform",
        needles: int = 4,
        distractors: int = 0,
        corpus: str = "stdlib",
        root: str | Path = "data",
        samples: int = 1_000_000,
        eval_samples: int = 512,
        seed: int = 0,
        vocab_size: int = END + 1,
    ) -> None:
        """`corpus` and `root`: see `open_corpus`; `needles` counts those of the kinds with several."""
        super().__init__(vocab_size, END + 1, samples, eval_samples, seed)
        self.kind, self.length, self.depth, self.lengths = kind, length, depth, lengths
        self.needles, self.distractors, self.corpus, self.root = needles, distractors, corpus, root
        several = 1 if kind == "single" else needles
        if several < 1 or distractors < 0 or several + distractors > len(DEPTHS):
            raise UserError(
                f"task needle: expected at least 1 needle, no fewer than 0 distractors and {len(DEPTHS)} in "
                f"all, found {needles=}, {distractors=}"
            )
        self.values = several if kind == "multivalue" else 1  # of every key that is asked for
        self.queries = several if kind == "multiquery" else 1
        self.others = distractors + (several - 1 if kind == "multikey" else 0)
        key = "k" * LONGEST
        hidden = (self.values * self.queries + self.others) * (len(needle(key, 0)) + 1)
        self.around = hidden + sum(map(len, self.frame([key] * self.queries))) + self.asked
        """The most positions that aren't book."""
        if length < self.around:
            raise UserError(
                f"task.length: expected at least {self.around} (a sample without book), found {length}"
            )
        if depth is not None and not (kind == "single" and not distractors and 0 <= depth <= 1):
            raise UserError(
                "task.depth: expected a share of the book from 0 to 1, of a single needle, "
                f"found {depth} with {kind=}, {distractors=}"
            )

    def at(self, **axes: int | float) -> Task:
        """The same needles and books at another `length`; at another `depth`, if there is one needle only."""
        known = {"length", "depth"} if self.kind == "single" and not self.distractors else {"length"}
        if others := axes.keys() - known:
            return super().at(**{name: axes[name] for name in others})
        return Needle(
            kind=self.kind,
            length=int(axes.get("length", self.length)),
            depth=axes.get("depth", self.depth),
            lengths=self.lengths,
            needles=self.needles,
            distractors=self.distractors,
            corpus=self.corpus,
            root=self.root,
            samples=self.counts["train"],
            eval_samples=self.counts["val"],
            seed=self.seed,
            vocab_size=self.vocab_size,
        )

    def split(self, name: Split) -> "NeedleDataset":
        return NeedleDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Shares of targets, commas and spaces among them: digits guessed (the first is never 0); and any
        needle's value copied, without a look at its key."""
        values = self.values * self.queries
        sure = self.asked - DIGITS * values
        guessed = (sure + values * (1 / 9 + (DIGITS - 1) / 10)) / self.asked
        right = 1 / (values + self.others)
        return {"chance": guessed} | ({"any needle": right + (1 - right) * guessed} if right < 1 else {})

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        """Length; and depth to the next tenth, if there is one needle only."""
        labels: dict[str, str | int | float] = {"length": int(dataset.lengths[document])}
        whole = origin(dataset)
        assert isinstance(whole, NeedleDataset)
        places = whole.sample(document).places
        return labels | ({"depth": round(places[0], 1)} if len(places) == 1 else {})

    def scores(self, dataset: Dataset, document: int, hits: Bool[np.ndarray, " targets"]) -> dict[str, float]:
        """The share of the values that were found, if there are several."""
        if self.values * self.queries == 1:
            return {}
        return {"values found": found(hits)}

    @property
    def asked(self) -> int:
        """Targets of a sample."""
        values = self.values * self.queries
        return DIGITS * values + len(BETWEEN) * (values - 1)

    def frame(self, queries: Sequence[str]) -> tuple[bytes, bytes]:
        """What is said before the book, and behind it up to the answer."""
        opening, question = ONE if self.values * self.queries == 1 else SEVERAL
        query = queries[0] if len(queries) == 1 else f"{', '.join(queries[:-1])}, and {queries[-1]}"
        return opening.encode(), question.format(query=query).encode()


class NeedleDataset(HaystackDataset):
    """Samples drawn when they are read, each from a generator of its own."""

    def __init__(self, task: Needle, split: Split) -> None:
        super().__init__(task.seed, split, Ring(open_corpus(task.corpus, task.root).split(split)))
        self.task, self.asked = task, task.asked
        self.lengths = np.full(task.counts[split], task.length, np.int64)
        if split == "train" and task.lengths == "uniform":
            self.lengths = self.generator().integers(task.around, task.length + 1, size=len(self.lengths))

    def sample(self, document: int) -> Sample:
        """Drawn in this order, so that all but depth is the same at every length and depth."""
        task, draw = self.task, self.generator(document)
        chosen = draw.choice(len(ADJECTIVES) * len(NOUNS), task.queries + task.others, replace=False)
        keys = [f"{ADJECTIVES[key // len(NOUNS)]}-{NOUNS[key % len(NOUNS)]}" for key in chosen.tolist()]
        queries = keys[: task.queries]
        owners = [key for key in queries for _ in range(task.values)] + keys[task.queries :]
        values = draw.integers(10 ** (DIGITS - 1), 10**DIGITS, size=len(owners)).tolist()
        order = draw.permutation(len(owners)).tolist()
        start = int(draw.integers(len(self.ring)))
        if task.depth is None:
            places = np.sort(draw.choice(DEPTHS, len(owners), replace=False)).tolist()
        else:
            places = [task.depth]
        return Sample([(owners[own], values[own]) for own in order], places, queries, start)

    def weave(self, document: int) -> Woven:
        sample = self.sample(document)
        opening, question = self.task.frame(sample.queries)
        question += BETWEEN.join(map(str, sample.answers())).encode()
        hidden = [needle(key, value) for key, value in sample.needles]
        around = len(opening) + len(question) + sum(len(line) + 1 for line in hidden)
        size = int(self.lengths[document]) - around
        places = self.ring.sentence_edges(sample.start, size, sample.places)
        pieces: list[bytes | range] = [opening]
        for begin, place, line in zip([0, *places], places, hidden, strict=False):
            own = b" " + line if place == size else line + b" "
            pieces += [range(sample.start + begin, sample.start + place), own]
        book = range(sample.start + places[-1], sample.start + size)
        return Woven(self.ring, [*pieces, book, question])

    def answers_of(self, document: int) -> list[str]:
        """The values that are asked for."""
        return [str(value) for value in self.sample(document).answers()]


def needle(key: str, value: int) -> bytes:
    """The line that is hidden."""
    return f"One of the special magic numbers for {key} is: {value:0{DIGITS}d}.".encode()


def found(hits: Bool[np.ndarray, " targets"]) -> float:
    """The share of a sample's values whose every digit was hit, from all its targets."""
    starts = range(0, len(hits), DIGITS + len(BETWEEN))
    return float(np.mean([hits[start : start + DIGITS].all() for start in starts]))


def score(said: str, values: Sequence[str]) -> float:
    """The share of values that are found in what a model said, wherever they stand: the paper's own rule."""
    return sum(value in said for value in values) / len(values)
