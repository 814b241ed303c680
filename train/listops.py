"""Long ListOps: the value of a nested list of operations on digits.

Nangia & Bowman 2018, arXiv:1804.06028; the long form is that of Long Range Arena (Tay et al. 2020,
arXiv:2011.04006, section 2.2.1), whose generator this is:

    node at depth d  =  an operator with probability 1/4 if d < max_depth, else a digit (the root has d = 1)
    digit            =  0..9, each as likely                                                     1 token
    operator         =  [MAX, [MIN, [MED or [SM, each as likely, 2..10 arguments, ]              2 tokens more
    kept             :  min_length < tokens < max_length, and no tree twice

MED is the median rounded down, SM the sum modulo 10.  The opening bracket and its operator are one token.

A sample is the list's tokens and END; there, at the last valid position, the value is asked: the same for
every model, none of which pools.  37 % need no more than the first token and 48 % none of the nested lists:
`references` says how much exactly, on the same samples.
"""

import hashlib
import logging
import os
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cached_property
from io import BufferedWriter
from itertools import count, islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt8
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from zoo.errors import UserError
from zoo.train.cache import cached, key_of
from zoo.train.documents import Source
from zoo.train.samples import SampleTask, SampleTexts
from zoo.train.task import Split, Task, Texts

log = logging.getLogger(__name__)

OPERATORS = ("MAX", "MIN", "MED", "SM")
OPEN, CLOSE, END, VOCABULARY = 10, 14, 15, 16  # digits are themselves; OPEN + i opens OPERATORS[i]
IDS = {str(digit): digit for digit in range(10)} | {f"[{name}": OPEN + i for i, name in enumerate(OPERATORS)}
IDS |= {"]": CLOSE, "X": CLOSE}  # X: what many readers of these files turn ] into
MOST_ARGUMENTS = 10
NESTED = 0.25  # how likely a node is an operator

CHUNK = 4096  # trees drawn from one generator, most of them too short
BARREN = 64  # chunks in a row without a new tree: there are no more
BUCKETS = 4  # of lengths
ORDER: tuple[Split, ...] = ("test", "val", "train")  # so that `samples` doesn't change what is held out


class Listops(SampleTask):
    """Generated once per seed and sizes, or read from LRA's basic_train.tsv, _val and _test in `folder`."""

    name = "listops"
    VERSION = 1

    def __init__(
        self,
        min_length: int = 500,
        max_length: int = 2000,
        max_depth: int = 10,
        samples: int = 96_000,
        held_out: int = 2_000,
        seed: int = 0,
        folder: str | Path | None = None,
        vocab_size: int = VOCABULARY,
    ) -> None:
        """Both lengths are excluded, as in the original; digits are at most `max_depth` deep, the root is 1.

        UserError: no list could be so.
        """
        super().__init__(vocab_size, VOCABULARY, samples, held_out, seed)
        if max_depth < 2 or min_length < 0 or max_length < max(min_length + 2, 5):
            raise UserError(
                "task listops: expected max_depth of at least 2 and a length of 4 or more between min_length "
                f"and max_length, found {max_depth=}, {min_length=}, {max_length=}"
            )
        self.min_length, self.max_length, self.max_depth = min_length, max_length, max_depth
        self.folder = None if folder is None else Path(folder).expanduser()

    def split(self, name: Split) -> Texts:
        return self._splits[name]

    def references(self, texts: Texts) -> dict[str, float]:
        """Accuracy of three predictors that learn next to nothing.

        constant: the commonest answer; root operator: the commonest one given the first token (both as
        counted in the samples to train on); root digits: the root's value if it had no nested lists (where
        it has no digits, as before).
        """
        train = self._splits["train"]
        votes = np.zeros((VOCABULARY, 10), np.int64)
        np.add.at(votes, (train.roots, train.answers), 1)
        constant, by_root = int(votes.sum(0).argmax()), votes.argmax(1)
        hits = np.zeros(3)
        for document, length in enumerate(texts.lengths.tolist()):
            tokens, targets = texts.window(document, 0, length)
            root, digits = int(tokens[0]), direct_digits(tokens)
            guess = int(by_root[root])
            nested = value([root, *digits.tolist(), CLOSE]) if len(digits) else guess
            hits += np.array([constant, guess, nested]) == targets[-1]
        shares = (hits / len(texts.lengths)).tolist()
        return dict(zip(("constant", "root operator", "root digits"), shares, strict=True))

    def groups(self, texts: Texts, document: int) -> dict[str, str | int | float]:
        """The root's operator, and a quarter of the range of lengths."""
        root = int(texts.window(document, 0, 1)[0][0])
        edges = np.linspace(self.min_length, self.max_length - 1, BUCKETS + 1).astype(int)
        length = int(texts.lengths[document]) - 1
        bucket = min(int(np.searchsorted(edges[1:], length)), BUCKETS - 1)
        return {
            "root": OPERATORS[root - OPEN] if root >= OPEN else "digit",
            "length": f"{edges[bucket] + 1}-{edges[bucket + 1]}",
        }

    def check_unseen(self, trained: Task, split: Split) -> None:
        """Splits are cut from one stream of lists: another cut holds out what was trained on."""
        if isinstance(trained, Listops):
            known, own = set(trained._splits["train"].marks()), self._splits[split].marks()
            if again := sum(mark in known for mark in own):
                raise UserError(
                    f"task listops: {again:,} of the {len(own):,} {split} samples of these settings are ones "
                    "that the run trained on; expected its own held_out, lengths, depth and seed, or a folder"
                )

    @cached_property
    def _splits(self) -> dict[str, "ListopsTexts"]:
        if self.folder is None:
            lengths = f"{self.min_length}-{self.max_length}-{self.max_depth}"
            sizes = f"{self.counts['train']}-{self.counts['val']}"
            key = f"listops-v{self.VERSION}-s{self.seed}-{lengths}-{sizes}"
            path, index = cached(key, self._generate)
        else:
            sources = [Source(name, self.folder / f"basic_{name}.tsv") for name in ORDER]
            path, index = cached(key_of(f"listops {self.VERSION}", sources), self._read)
        counts = index["counts"]
        total = sum(counts) + 1
        offsets = np.fromfile(path, np.int64, total, offset=index["size"] - 8 * total)
        data = np.memmap(path, np.uint8, "r").view(np.ndarray)
        first = np.cumsum([0, *counts])
        return {
            name: ListopsTexts(data, offsets[start : start + min(size, self.counts[name]) + 1])
            for name, start, size in zip(ORDER, first[:-1].tolist(), counts, strict=True)
        }

    def _generate(self, out: BufferedWriter) -> dict[str, Any]:
        counts = [self.counts[name] for name in ORDER]
        trees = distinct(self.seed, self.min_length, self.max_length, self.max_depth, sum(counts))
        return _write(out, trees, counts)

    def _read(self, out: BufferedWriter) -> dict[str, Any]:
        assert self.folder is not None
        rows = [list(read_lra(self.folder / f"basic_{name}.tsv")) for name in ORDER]
        lines = (bytes([*tokens, END, answer]) for split in rows for tokens, answer in split)
        return _write(out, lines, [len(split) for split in rows])


class ListopsTexts(SampleTexts):
    """Lines of tokens, END and answer, one behind the other in memory-mapped bytes."""

    asked = 1

    def __init__(self, data: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " edges"]) -> None:
        self.data, self.offsets = data, offsets
        self.lengths = np.diff(offsets) - 1

    def line(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " symbols"]:
        first = int(self.offsets[document])
        return self.data[first + start : first + stop].astype(np.int64)

    def marks(self) -> list[bytes]:
        """Of every document one that no other has."""
        return [mark(self.data[start:stop].tobytes()) for start, stop in pairwise(self.offsets.tolist())]

    @property
    def roots(self) -> UInt8[np.ndarray, " documents"]:
        """First tokens."""
        return self.data[self.offsets[:-1]]

    @property
    def answers(self) -> UInt8[np.ndarray, " documents"]:
        return self.data[self.offsets[1:] - 1]


def mark(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()


def _write(out: BufferedWriter, lines: Iterator[bytes], counts: list[int]) -> dict[str, Any]:
    offsets = [0]
    for line in lines:
        out.write(line)
        offsets.append(offsets[-1] + len(line))
    out.write(bytes(-out.tell() % 8))
    out.write(np.array(offsets, np.int64).tobytes())
    return {"counts": counts}


# -- what a list is worth ------------------------------------------------------------------------------------


def value(tokens: str | Sequence[str | int] | Integer[np.ndarray, " n"] | Integer[Tensor, " n"]) -> int:
    """What a list comes to, from its tokens: ids, words such as "[MAX", or a line of LRA's files.

    UserError: it isn't one whole list, or a digit (END may follow).
    """
    symbols = parse(tokens) if isinstance(tokens, str) else list(tokens)
    ids = [IDS.get(token, -1) if isinstance(token, str) else int(token) for token in symbols]
    if ids and ids[-1] == END:
        del ids[-1]
    lists: list[list[int]] = [[]]  # those that are open: the operator, then the values so far
    for place, token in enumerate(ids):
        if lists[0]:
            raise UserError(
                f"expected one list, found another token at {place} behind its end: {symbols[place]!r}"
            )
        if 0 <= token < 10:
            lists[-1].append(token)
        elif OPEN <= token < CLOSE:
            lists.append([token])
        elif token != CLOSE or len(lists[-1]) < 2 or len(lists) == 1:
            raise UserError(f"expected a token of a list, found {symbols[place]!r} at {place}")
        else:
            operator, *values = lists.pop()
            lists[-1].append(_applied(OPERATORS[operator - OPEN], values))
    if len(lists) > 1 or not lists[0]:
        raise UserError(f"expected a whole list, found {len(ids)} tokens and {len(lists) - 1} brackets open")
    return lists[0][0]


def _applied(operator: str, values: list[int]) -> int:
    ordered = sorted(values)
    if operator == "MAX":
        return ordered[-1]
    if operator == "MIN":
        return ordered[0]
    if operator == "SM":
        return sum(values) % 10
    half = len(ordered) // 2
    return (ordered[half] + ordered[-1 - half]) // 2


def direct_digits(tokens: Integer[np.ndarray, " tokens"]) -> Integer[np.ndarray, " digits"]:
    """The digits that stand in the root itself."""
    opens = (tokens >= OPEN) & (tokens < CLOSE)
    depth = np.cumsum(opens.astype(np.int64) - (tokens == CLOSE))
    direct: Bool[np.ndarray, " tokens"] = (tokens < 10) & (depth == 1)
    return tokens[direct]


def parse(source: str) -> list[str]:
    """The words of a list; LRA's files nest them in round parentheses, which carry no information."""
    return source.replace("(", " ").replace(")", " ").split()


def read_lra(path: str | Path) -> Iterator[tuple[list[int], int]]:
    """Tokens and answer of every row of a file in LRA's format; UserError: it isn't one."""
    try:
        rows = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"cannot read {path}: {problem}") from problem
    if not rows or rows[0].split("\t") != ["Source", "Target"]:
        raise UserError(f"{path}: expected a first row `Source<TAB>Target`, found {''.join(rows[:1])[:40]!r}")
    for number, row in enumerate(rows[1:], 2):
        source, _, target = row.partition("\t")
        words = parse(source)
        if not words or not set(words) <= IDS.keys() or target not in IDS or IDS[target] > 9:
            raise UserError(
                f"{path}, row {number}: expected a list and its value, found {row[:20]!r} … {target!r}"
            )
        yield [IDS[word] for word in words], IDS[target]


# -- the generator -------------------------------------------------------------------------------------------

APPLY: tuple[Callable[[list[int]], int], ...] = (
    max,
    min,
    lambda values: int(statistics.median(values)),
    lambda values: sum(values) % 10,
)


class _TooLongError(Exception):
    pass


def tree(draw: Callable[[], float], max_length: int, max_depth: int) -> bytes | None:
    """One tree from uniform numbers in [0, 1), as tokens, END and answer; None as soon as it is too long."""
    if draw() > NESTED:
        digit = int(10 * draw())
        return bytes([digit, END, digit])
    line = bytearray()
    try:
        answer = _grow(line, draw, 1, max_length, max_depth)
    except _TooLongError:
        return None
    return bytes([*line, END, answer])


def _grow(line: bytearray, draw: Callable[[], float], depth: int, max_length: int, max_depth: int) -> int:
    """Append an operator's list at this depth; its value."""
    operator = int(len(OPERATORS) * draw())
    line.append(OPEN + operator)
    if len(line) >= max_length:
        raise _TooLongError
    values = []
    for _ in range(2 + int((MOST_ARGUMENTS - 1) * draw())):
        if depth + 1 < max_depth and draw() <= NESTED:
            values.append(_grow(line, draw, depth + 1, max_length, max_depth))
        else:
            line.append(int(10 * draw()))
            values.append(line[-1])
    line.append(CLOSE)
    return APPLY[operator](values)


def chunk(seed: int, number: int, min_length: int, max_length: int, max_depth: int) -> list[bytes]:
    """The trees of the right length among CHUNK of them: a function of its arguments alone."""
    draw = random.Random(f"{seed} {number}").random  # whose numbers Python promises to keep
    drawn = (tree(draw, max_length, max_depth) for _ in range(CHUNK))
    return [line for line in drawn if line is not None and min_length < len(line) - 2 < max_length]


def distinct(
    seed: int, min_length: int, max_length: int, max_depth: int, total: int, workers: int | None = None
) -> Iterator[bytes]:
    """So many different trees, in an order that doesn't depend on the processes that draw them.

    `workers`: at most so many, all cores by default.  UserError: there aren't so many trees.
    """
    arguments = (seed, min_length, max_length, max_depth)
    seen: set[bytes] = set()
    barren = 0
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        shown = bar.add_task("generating listops", total=total)
        log.info("generating %s samples of listops, once for all runs", f"{total:,}")
        for trees in _chunks(arguments, workers or _cores(), total):
            before = len(seen)
            for line in trees:
                if (own := mark(line)) not in seen:
                    seen.add(own)
                    yield line
                    if len(seen) == total:
                        return
            bar.update(shown, completed=len(seen))
            barren = 0 if len(seen) > before else barren + 1
            if barren == BARREN:
                raise UserError(
                    f"task listops: expected {total} different lists of {min_length + 1} to {max_length - 1} "
                    f"tokens and depth up to {max_depth}, found {len(seen)}"
                )


def _chunks(arguments: tuple[int, int, int, int], workers: int, total: int) -> Iterator[list[bytes]]:
    """Every chunk in its order, without end; drawn in this process where few are enough."""
    seed, *limits = arguments
    numbers, found = count(), 0
    for number in islice(numbers, None if workers == 1 else 4):
        trees = chunk(seed, number, *limits)
        found += len(trees)
        yield trees
    if 0 < total <= 4 * found:
        for number in numbers:
            yield chunk(seed, number, *limits)
    # A fork starts at once, whatever script this is; it touches neither threads nor devices of its parent's.
    pool = ProcessPoolExecutor(workers, get_context("fork" if sys.platform == "linux" else "spawn"))
    ahead: deque[Future[list[bytes]]] = deque()
    try:
        for number in numbers:
            ahead.append(pool.submit(chunk, seed, number, *limits))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
