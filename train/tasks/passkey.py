"""Passkey retrieval: a number of five digits, hidden in filler text, has to be recalled at the end.

Mohtashami & Jaggi 2023, arXiv:2305.16300, section 4.2.  `form: bytes` is their prompt, five parts joined by
newlines, after END, the first input of every document (as in task lm); then a space and the key, the target:

    There is an important info hidden …
    filler[:p]
    The pass key is K. Remember it. K is the pass key.
    filler[:n-p]
    What is the pass key? The pass key is

`form: compact` has the same structure in 28 symbols: ten digits, a marker, a query mark and 16 symbols of
filler:

    filler[:p]  MARKER K  filler[:n-p]  QUERY K

`length` counts the positions of a complete sample; n, the symbols of filler, is `length` less all other
parts.  The depth of a sample is p / n.  Fillers: `original`, the same sentences over and over, from the first
one again after the key; `books`, a span of a corpus, of the same split; `random`, random words or symbols.

Differs from the paper: K has always five digits (10000..99999: a guess is right once in 90,000), `length`
counts all positions, not the filler's characters, and p isn't uniform (`draw_key_offset`): at p = n the
question follows the key at once, as at no smaller p, and a uniform p would hardly ever train this depth.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from zoo.errors import UserError
from zoo.train.corpora.catalog import Corpus
from zoo.train.corpora.documents import FIELD
from zoo.train.tasks.background_text import CyclicText
from zoo.train.tasks.base import (
    BLOCK,
    Chances,
    Dataset,
    SampleDataset,
    SampleTask,
    Split,
    Symbols,
    TargetPositions,
    read_blocks,
    sample_rng,
    unwrap,
)
from zoo.train.tasks.evidence import chances_by_evidence, window_distances
from zoo.train.tasks.lm import END
from zoo.train.tasks.reads_corpus import ReadsCorpus

DIGITS = 5
NUM_KEYS = 9 * 10 ** (DIGITS - 1)  # the first digit is never 0
INSTRUCTION = (
    b"There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    b"I will quiz you about the important information there."
)
KEY_TEMPLATE = b"The pass key is %05d. Remember it. %05d is the pass key."
QUESTION = b"What is the pass key? The pass key is"
FILLER = b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
MARKER, QUERY, FIRST_FILLER = 10, 11, 12  # of the compact form, in which a digit is its value
DEPTH_SHARES = 12  # one for each end of the axis of depths, ten for what lies between
PARAMS_BLOCK = -1  # index of the generator for a sample's parameters; blocks of random filler start at 0
VOCAB_SIZES = {"bytes": END + 1, "compact": 28}
ORIGINAL_FILLER: dict[str, Symbols] = {
    "bytes": np.frombuffer(FILLER, np.uint8).astype(np.int64),
    "compact": np.arange(FIRST_FILLER, VOCAB_SIZES["compact"]),
}


class SampleParams(NamedTuple):
    """The random parameters of a sample, from which its symbols follow."""

    key: int
    filler_len: int  # symbols
    key_offset: int  # symbols of filler before the key
    start: int  # first byte in the corpus of a span of books


@dataclass(frozen=True)
class Passkey(ReadsCorpus, SampleTask):
    """Training samples have any possible length up to `length` (`lengths: uniform`) or exactly that
    (`fixed`); held-out samples always have exactly that.  `depth`: 0..1, drawn for every sample if None: as
    often at each of 0, 10 … 100 % (`depths: grid`), or anywhere equally often (`uniform`).

    `corpus`, `root` and `field` (see `open_corpus`) matter only if the filler is books.
    """

    name = "passkey"
    VERSION = 2
    target_noun = "digit"
    axes: ClassVar = {"length": int, "depth": float}
    corpus_filler: ClassVar = "books"

    length: int = 512
    depth: float | int | None = None
    depths: Literal["grid", "uniform"] = "grid"
    lengths: Literal["uniform", "fixed"] = "uniform"
    form: Literal["bytes", "compact"] = "bytes"
    filler: Literal["original", "books", "random"] = "original"
    corpus: str = "books"
    root: str | Path = "data"
    samples: int = 1_000_000
    eval_samples: int = 512
    seed: int = 0
    vocab_size: int = END + 1
    field: str = FIELD

    def __post_init__(self) -> None:
        self.check_sizes(VOCAB_SIZES[self.form])
        if self.length < self.min_length:
            raise UserError(
                f"task.length: expected at least {self.min_length} (a sample without filler), "
                f"found {self.length}"
            )
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise UserError(f"task.depth: expected a share of the filler from 0 to 1, found {self.depth}")
        if self.form == "compact" and self.filler == "books":
            raise UserError("task.filler: expected original or random in the compact form, found books")

    @cached_property
    def min_length(self) -> int:
        """Positions of a sample without filler."""
        return sum(map(len, self.literal_parts(0))) - 1

    def split(self, name: Split) -> Dataset:
        return PasskeyDataset(self, name)

    def opened_corpus(self) -> Corpus | None:
        return self.documents if self.filler == self.corpus_filler else None

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """The share of digits that a guess hits, of which the first is never 0."""
        return {"chance": (1 / 9 + (DIGITS - 1) / 10) / DIGITS}

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        return {"chance": 1 / NUM_KEYS}

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        """Length, and depth to the nearest tenth."""
        params = unwrap(dataset, PasskeyDataset).params(document)
        depth = round(params.key_offset / max(1, params.filler_len), 1)
        return {"length": int(dataset.lengths[document]), "depth": depth}

    def literal_parts(self, key: int) -> tuple[Symbols, Symbols, Symbols]:
        """A sample without filler: the opening, the line with the key, and the question with the answer."""
        digits = np.frombuffer(b"%05d" % key, np.uint8).astype(np.int64)
        if self.form == "compact":
            digits -= ord("0")
            opening = np.empty(0, np.int64)
            return opening, np.concatenate([[MARKER], digits]), np.concatenate([[QUERY], digits])
        lines = [INSTRUCTION + b"\n", b"\n" + KEY_TEMPLATE % (key, key) + b"\n", b"\n" + QUESTION + b" "]
        opening, key_line, question = (np.frombuffer(line, np.uint8).astype(np.int64) for line in lines)
        return np.concatenate([[END], opening]), key_line, np.concatenate([question, digits])


class PasskeyDataset(SampleDataset):
    """Samples drawn when they are read, each from a separate generator: nothing is stored."""

    num_targets = DIGITS

    def __init__(self, task: Passkey, split: Split) -> None:
        self.task, self.split = task, split
        self.lengths = np.full(task.num_samples(split), task.length, np.int64)
        if split == "train" and task.lengths == "uniform":
            rng = sample_rng(task.seed, split)
            self.lengths = rng.integers(task.min_length, task.length + 1, size=len(self.lengths))
        self.books: CyclicText | None = None
        if task.filler == task.corpus_filler:
            self.books = CyclicText(task.documents.split(split))

    def params(self, document: int) -> SampleParams:
        """Drawn in this order, so that key and filler are the same at every length and depth."""
        rng = self._block_rng(document, PARAMS_BLOCK)
        key = int(rng.integers(10 ** (DIGITS - 1), 10**DIGITS))
        start = int(rng.integers(1 if self.books is None else len(self.books)))
        filler_len = int(self.lengths[document]) - self.task.min_length
        if self.task.depth is not None:
            key_offset = round(self.task.depth * filler_len)
        elif self.task.depths == "uniform":
            key_offset = int(rng.integers(filler_len + 1))
        else:
            key_offset = draw_key_offset(rng, filler_len)
        return SampleParams(key, filler_len, key_offset, start)

    def symbols(self, document: int, start: int, stop: int) -> Symbols:
        params = self.params(document)
        opening, key_line, question = self.task.literal_parts(params.key)
        before_key = range(params.key_offset)
        after_key = range(params.key_offset, params.filler_len)
        if self.task.filler == "original":  # from its first sentence again
            after_key = range(len(after_key))
        symbols, offset = [], 0
        for part in (opening, before_key, key_line, after_key, question):
            overlap = part[max(0, start - offset) : max(0, stop - offset)]
            offset += len(part)
            if isinstance(overlap, range):
                overlap = self._filler(document, params, overlap) if overlap else np.empty(0, np.int64)
            symbols.append(overlap)
        return np.concatenate(symbols)

    def evidence_distances(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """To each digit of the key itself; of the two times that a prompt has it, the second."""
        params = self.params(document)
        opening, key_line, _ = self.task.literal_parts(params.key)
        last_digit = int(np.flatnonzero(is_digit(key_line, self.task.form))[-1])
        first_digit = len(opening) + params.key_offset + last_digit - (DIGITS - 1)
        evidence = first_digit + np.arange(DIGITS)
        return window_distances(self.target_positions(document), evidence, start, stop)

    def view_chances(self, document: int, positions: TargetPositions, starts: TargetPositions) -> Chances:
        """A digit that isn't seen is a guess, of which the first is never 0."""
        guess = np.array([1 / 9, *[1 / 10] * (DIGITS - 1)])
        return chances_by_evidence(self, document, positions, starts, guess)

    def _filler(self, document: int, params: SampleParams, span: range) -> Symbols:
        """Symbols of a span of a sample's endless filler."""
        if self.books is not None:
            return self.books.read(params.start + span.start, len(span)).astype(np.int64)
        if self.task.filler == "random":
            return read_blocks(span.start, span.stop, partial(self._random_block, document))
        cycle = ORIGINAL_FILLER[self.task.form]
        return cycle[np.arange(span.start, span.stop) % len(cycle)]

    def _random_block(self, document: int, block: int) -> Symbols:
        """Uniform symbols of filler; in bytes, words of 2 to 9 letters."""
        rng = self._block_rng(document, block)
        if self.task.form == "compact":
            return rng.integers(FIRST_FILLER, VOCAB_SIZES["compact"], size=BLOCK)
        letters = rng.integers(ord("a"), ord("z") + 1, size=BLOCK)
        word_ends = np.cumsum(rng.integers(3, 11, size=BLOCK // 3)) - 1
        letters[word_ends[word_ends < BLOCK]] = ord(" ")
        return letters

    def _block_rng(self, document: int, block: int) -> np.random.Generator:
        """Generator of a block of random filler, or with PARAMS_BLOCK of a sample's parameters."""
        return sample_rng(self.task.seed, self.split, document, block + 1)


def is_digit(symbols: Symbols, form: str) -> Bool[np.ndarray, " symbols"]:
    """True for the symbols of a form that are digits."""
    zero = 0 if form == "compact" else ord("0")
    return (symbols >= zero) & (symbols < zero + 10)


def draw_key_offset(rng: np.random.Generator, filler_len: int) -> int:
    """Symbols of filler before the key, of a sample whose depth is random.

    On a grid of depths 0, 10 … 100 %, every point is drawn equally often: both ends exactly, each other point
    together with what is nearest to it.  So 0 and `filler_len` have a probability of 1/12 each, and all
    offsets between them have equal shares of the rest.  With less filler all offsets are equally likely.
    """
    if filler_len < DEPTH_SHARES - 1:  # an end would be rarer than its neighbours
        return int(rng.integers(filler_len + 1))
    share = int(rng.integers(DEPTH_SHARES))
    if share == 0:
        return 0
    return filler_len if share == DEPTH_SHARES - 1 else int(rng.integers(1, filler_len))
