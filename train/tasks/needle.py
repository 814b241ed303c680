"""Needles in a haystack: numbers hidden in books, to be recalled by name at the end.

Hsieh et al. 2024, arXiv:2404.06654 (RULER), tasks niah_single_2, niah_multikey_1, niah_multivalue and
niah_multiquery, word for word, after END, the first input of every document (as in task lm):

    A special magic number is hidden within the following text. …
    book  One of the special magic numbers for KEY is: VALUE.  book
    What is the special magic number for KEY mentioned in the provided text? The special … text is VALUE

`kind`        needles                               answer
single        one                                   its value
multikey      `needles`, each of another key        the value of one
multivalue    `needles`, all of one key             all values, in the order of the text
multiquery    `needles`, each of another key        all values, in the order of the question's keys

`distractors` more hide keys that no question is about.  Values have seven digits; several are answered as
`1234567, 7654321`.  The targets are the answer's bytes.  Needles go between sentences, each at another
of 40 depths from 0 to 1, as shares of the sentences; `depth` sets the depth of a single needle.  `length`
counts bytes, and so positions, of a complete sample; the book fills what all other parts leave of it.

Scored by complete answers, and by the mean share of values in them (`share_of_values`, `score`).

Differs from the paper: keys are 2,304 pairs of words of another list, books are those of the corpus, in their
own white space, and values have an order, as targets need one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from zoo.errors import UserError
from zoo.train.corpora.documents import FIELD
from zoo.train.tasks.background_text import CyclicText, SplicedDataset, SplicedText
from zoo.train.tasks.base import Chances, Dataset, SampleTask, Split, TargetPositions, unwrap
from zoo.train.tasks.evidence import chances_by_evidence, window_distances
from zoo.train.tasks.lm import END
from zoo.train.tasks.reads_corpus import ReadsCorpus

DIGITS = 7
NUM_VALUES = 9 * 10 ** (DIGITS - 1)  # the first digit is never 0
DEPTHS = np.round(np.linspace(0, 100, 40)) / 100
ONE_VALUE = (  # opening and question, if the answer is one value
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n",
    "\nWhat is the special magic number for {query} mentioned in the provided text? "
    "The special magic number for {query} mentioned in the provided text is ",
)
SEVERAL_VALUES = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards.\n",
    "\nWhat are all the special magic numbers for {query} mentioned in the provided text? "
    "The special magic numbers for {query} mentioned in the provided text are ",
)
SEPARATOR = ", "  # between values
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
LONGEST_KEY = max(map(len, ADJECTIVES)) + 1 + max(map(len, NOUNS))


class SampleParams(NamedTuple):
    """The random parameters of a sample, from which its symbols follow."""

    needles: list[tuple[str, int]]  # keys and values, in the order of the text
    depths: list[float]  # of the needles
    queries: list[str]  # keys that the question is about
    start: int  # of the book, in the cyclic text

    def answers(self) -> list[int]:
        return [value for query in self.queries for key, value in self.needles if key == query]


@dataclass(frozen=True)
class Needle(ReadsCorpus, SampleTask):
    """Training samples have any possible length up to `length` (`lengths: uniform`) or exactly that
    (`fixed`); held-out samples always have exactly that.  `depth`: 0..1, drawn for every sample if None.

    `corpus`, `root` and `field`: see `open_corpus`; `needles` counts those of the kinds with several.
    """

    name = "needle"
    VERSION = 1
    target_noun = "byte"
    axes: ClassVar = {"length": int, "depth": float}

    kind: Literal["single", "multikey", "multivalue", "multiquery"] = "single"
    length: int = 1024
    depth: float | int | None = None
    lengths: Literal["uniform", "fixed"] = "uniform"
    needles: int = 4
    distractors: int = 0
    corpus: str = "stdlib"
    root: str | Path = "data"
    samples: int = 1_000_000
    eval_samples: int = 512
    seed: int = 0
    vocab_size: int = END + 1
    field: str = FIELD

    def __post_init__(self) -> None:
        self.check_sizes(min_vocab_size=END + 1)
        needles, distractors, kind = self.num_needles, self.distractors, self.kind
        if needles < 1 or distractors < 0 or needles + distractors > len(DEPTHS):
            raise UserError(
                f"task needle: expected at least 1 needle, no fewer than 0 distractors and {len(DEPTHS)} in "
                f"all, found {needles=}, {distractors=}"
            )
        if self.length < self.min_length:
            raise UserError(
                f"task.length: expected at least {self.min_length} (a sample without book), "
                f"found {self.length}"
            )
        single = kind == "single" and not distractors
        if self.depth is not None and not (single and 0 <= self.depth <= 1):
            raise UserError(
                "task.depth: expected a share of the book from 0 to 1, of a single needle, "
                f"found {self.depth} with {kind=}, {distractors=}"
            )

    @property
    def num_needles(self) -> int:
        """Needles without distractors."""
        return 1 if self.kind == "single" else self.needles

    @property
    def values_per_key(self) -> int:
        """Values of every key in the question."""
        return self.num_needles if self.kind == "multivalue" else 1

    @property
    def num_queries(self) -> int:
        """Keys in the question."""
        return self.num_needles if self.kind == "multiquery" else 1

    @property
    def num_answers(self) -> int:
        """Values in the answer."""
        return self.values_per_key * self.num_queries

    @property
    def num_unqueried(self) -> int:
        """Needles that aren't part of the answer."""
        return self.num_needles + self.distractors - self.num_answers

    @property
    def num_targets(self) -> int:
        """Targets of a sample."""
        return DIGITS * self.num_answers + len(SEPARATOR) * (self.num_answers - 1)

    @cached_property
    def min_length(self) -> int:
        """Positions of a sample without book, at most (keys differ in length)."""
        key = "k" * LONGEST_KEY
        needles = (self.num_answers + self.num_unqueried) * (len(needle(key, 0)) + 1)
        return needles + sum(map(len, self.opening_and_question([key] * self.num_queries))) + self.num_targets

    def split(self, name: Split) -> "NeedleDataset":
        return NeedleDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Expected shares of targets hit, commas and spaces included: `chance` guesses digits (the first is
        never 0), `any needle` copies the value of a random needle."""
        separators = self.num_targets - DIGITS * self.num_answers
        chance = (separators + self.num_answers * (1 / 9 + (DIGITS - 1) / 10)) / self.num_targets
        correct_needle = 1 / (self.num_answers + self.num_unqueried)
        if correct_needle == 1:
            return {"chance": chance}
        return {"chance": chance, "any needle": correct_needle + (1 - correct_needle) * chance}

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        """The same predictors: each value is a new guess, or that of another random needle."""
        chance, num_needles = NUM_VALUES**-self.num_answers, self.num_answers + self.num_unqueried
        return {"chance": chance} | (
            {"any needle": num_needles**-self.num_answers} if num_needles > 1 else {}
        )

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        """Length; and depth to the nearest tenth, if there is one needle only."""
        labels: dict[str, str | int | float] = {"length": int(dataset.lengths[document])}
        depths = unwrap(dataset, NeedleDataset).params(document).depths
        if len(depths) == 1:
            labels["depth"] = round(depths[0], 1)
        return labels

    def scores(self, dataset: Dataset, document: int, hits: Bool[np.ndarray, " targets"]) -> dict[str, float]:
        """The share of values that were hit, if there are several."""
        return {} if self.num_answers == 1 else {"values found": share_of_values(hits)}

    def opening_and_question(self, queries: Sequence[str]) -> tuple[bytes, bytes]:
        """The opening before the book, and the question after it up to the answer."""
        opening, question = ONE_VALUE if self.num_answers == 1 else SEVERAL_VALUES
        query = queries[0] if len(queries) == 1 else f"{', '.join(queries[:-1])}, and {queries[-1]}"
        return opening.encode(), question.format(query=query).encode()


class NeedleDataset(SplicedDataset):
    """Samples drawn when they are read, each from a separate generator."""

    def __init__(self, task: Needle, split: Split) -> None:
        super().__init__(task.seed, split, CyclicText(task.documents.split(split)))
        self.task, self.num_targets = task, task.num_targets
        self.lengths = np.full(task.num_samples(split), task.length, np.int64)
        if split == "train" and task.lengths == "uniform":
            self.lengths = self.rng().integers(task.min_length, task.length + 1, size=len(self.lengths))

    def params(self, document: int) -> SampleParams:
        """Drawn in this order, so that all but depth is the same at every length and depth."""
        task, rng = self.task, self.rng(document)
        num_keys = task.num_queries + task.num_unqueried
        key_ids = rng.choice(len(ADJECTIVES) * len(NOUNS), num_keys, replace=False)
        keys = [f"{ADJECTIVES[key // len(NOUNS)]}-{NOUNS[key % len(NOUNS)]}" for key in key_ids.tolist()]
        queries = keys[: task.num_queries]
        needle_keys = [key for key in queries for _ in range(task.values_per_key)] + keys[task.num_queries :]
        values = rng.integers(10 ** (DIGITS - 1), 10**DIGITS, size=len(needle_keys)).tolist()
        order = rng.permutation(len(needle_keys)).tolist()
        start = int(rng.integers(len(self.source)))
        if task.depth is None:
            depths = np.sort(rng.choice(DEPTHS, len(needle_keys), replace=False)).tolist()
        else:
            depths = [task.depth]
        return SampleParams([(needle_keys[i], values[i]) for i in order], depths, queries, start)

    def splice(self, document: int) -> SplicedText:
        params = self.params(document)
        opening, question = self.task.opening_and_question(params.queries)
        question += SEPARATOR.join(map(str, params.answers())).encode()
        needles = [needle(key, value) for key, value in params.needles]
        prompt_len = len(opening) + len(question) + sum(len(line) + 1 for line in needles)
        book_len = int(self.lengths[document]) - prompt_len
        offsets = self.source.sentence_edges(params.start, book_len, params.depths)
        parts: list[bytes | range] = [opening]
        for start, end, line in zip([0, *offsets], offsets, needles, strict=False):
            spaced_line = b" " + line if end == book_len else line + b" "
            parts += [range(params.start + start, params.start + end), spaced_line]
        rest = range(params.start + offsets[-1], params.start + book_len)
        return SplicedText(self.source, [*parts, rest, question])

    def evidence_distances(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """To each digit of a value in its needle; -1 for the commas between values."""
        params, text, evidence = self.params(document), self._cached_splice(document), []
        part_starts = text.part_starts()[2::2]  # the parts are the opening, book, needle, book, needle …
        for query in params.queries:
            for (key, value), begin in zip(params.needles, part_starts, strict=False):
                if key == query:
                    line = needle(key, value)
                    leading = text.read(begin, begin + 1).tobytes() == b" "
                    first_digit = begin + leading + len(line) - 1 - DIGITS
                    evidence.append(1 + first_digit + np.arange(DIGITS))  # after END
        stride = DIGITS + len(SEPARATOR)
        digits = np.add.outer(stride * np.arange(len(evidence)), np.arange(DIGITS))
        targets = self.target_positions(document)[digits.ravel()]
        return window_distances(targets, np.concatenate(evidence), start, stop)

    def view_chances(self, document: int, positions: TargetPositions, starts: TargetPositions) -> Chances:
        """A digit that isn't seen is a guess, of which the first is never 0; commas are always known."""
        guess = np.ones(len(positions))
        for first_digit in range(0, len(positions), DIGITS + len(SEPARATOR)):
            guess[first_digit : first_digit + DIGITS] = [1 / 9, *[1 / 10] * (DIGITS - 1)]
        return chances_by_evidence(self, document, positions, starts, guess)

    def answers(self, document: int) -> list[str]:
        return [str(value) for value in self.params(document).answers()]


def needle(key: str, value: int) -> bytes:
    """The line that is hidden."""
    return f"One of the special magic numbers for {key} is: {value:0{DIGITS}d}.".encode()


def share_of_values(hits: Bool[np.ndarray, " targets"]) -> float:
    """The share of a sample's values of which every digit was hit, from all its targets."""
    starts = range(0, len(hits), DIGITS + len(SEPARATOR))
    return float(np.mean([hits[start : start + DIGITS].all() for start in starts]))


def score(answer: str, values: Sequence[str]) -> float:
    """The share of values that an answer contains, anywhere in it: the paper's rule."""
    return sum(value in answer for value in values) / len(values)
