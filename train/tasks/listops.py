"""Long ListOps: the value of a nested list of operations on digits.

Nangia & Bowman 2018, arXiv:1804.06028; the long form is that of Long Range Arena (Tay et al. 2020,
arXiv:2011.04006, section 2.2.1), whose generator this is:

    node at depth d  =  an operator with probability 1/4 if d < max_depth, else a digit (the root has d = 1)
    digit            =  0..9, uniform                                                            1 token
    operator         =  [MAX, [MIN, [MED or [SM, uniform, 2..10 arguments, ]                     2 tokens more
    accepted         :  min_length < tokens < max_length, and no tree twice

MED is the median rounded down, SM the sum modulo 10.  The opening bracket and its operator are one token.

A sample is the list's tokens and END; there, at the last valid position, the target is the value: the same
for every model, none of which pools.  37 % need no more than the first token and 48 % none of the nested
lists: `baselines` gives the exact shares of the same samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedWriter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from zoo.errors import UserError
from zoo.train.corpora.cache import cached, key_of
from zoo.train.corpora.documents import Source
from zoo.train.tasks.base import Dataset, SampleDataset, SampleTask, Split, Symbols, Task
from zoo.train.tasks.listops_language import (
    CLOSE,
    END,
    IDS,
    OPEN,
    OPERATORS,
    VOCAB_SIZE,
    direct_digits,
    distinct_trees,
    evaluate,
    parse,
    tree_digest,
)

LENGTH_BUCKETS = 4
ORDER: tuple[Split, ...] = ("test", "val", "train")  # so that `samples` doesn't change held-out samples


@dataclass(frozen=True)
class Listops(SampleTask):
    """Generated once per seed and sizes, or read from LRA's basic_train.tsv, _val and _test in `folder`.

    Both lengths are excluded, as in the original; digits are at most `max_depth` deep, the root is 1.
    """

    name = "listops"
    VERSION = 1
    metric = "accuracy"

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    samples: int = 96_000
    eval_samples: int = 2_000
    seed: int = 0
    folder: str | Path | None = None
    vocab_size: int = VOCAB_SIZE

    def __post_init__(self) -> None:
        self.check_sizes(VOCAB_SIZE)
        min_length, max_length, max_depth = self.min_length, self.max_length, self.max_depth
        if max_depth < 2 or min_length < 0 or max_length < max(min_length + 2, 5):
            raise UserError(
                "task listops: expected max_depth of at least 2 and a length of 4 or more between min_length "
                f"and max_length, found {max_depth=}, {min_length=}, {max_length=}"
            )

    def split(self, name: Split) -> Dataset:
        return self._splits[name]

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Accuracy of three predictors that learn almost nothing.

        constant: the commonest answer; root operator: the commonest answer given the first token (both as
        counted in the training samples); root digits: the root's value if it had no nested lists (where it
        has no digits, the same as root operator).
        """
        train = self._splits["train"]
        counts = np.zeros((VOCAB_SIZE, 10), np.int64)
        np.add.at(counts, (train.roots, train.answers), 1)
        constant, by_root = int(counts.sum(0).argmax()), counts.argmax(1)
        hits = np.zeros(3)
        for document, length in enumerate(dataset.lengths.tolist()):
            tokens, targets = dataset.window(document, 0, length)
            root, digits = int(tokens[0]), direct_digits(tokens)
            root_guess = int(by_root[root])
            digits_guess = evaluate([root, *digits.tolist(), CLOSE]) if len(digits) else root_guess
            hits += np.array([constant, root_guess, digits_guess]) == targets[-1]
        shares = (hits / len(dataset.lengths)).tolist()
        return dict(zip(("constant", "root operator", "root digits"), shares, strict=True))

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        """The root's operator, and a quarter of the range of lengths."""
        root = int(dataset.window(document, 0, 1)[0][0])
        edges = np.linspace(self.min_length, self.max_length - 1, LENGTH_BUCKETS + 1).astype(int)
        length = int(dataset.lengths[document]) - 1
        bucket = min(int(np.searchsorted(edges[1:], length)), LENGTH_BUCKETS - 1)
        return {
            "root": OPERATORS[root - OPEN] if root >= OPEN else "digit",
            "length": f"{edges[bucket] + 1}-{edges[bucket + 1]}",
        }

    def check_unseen(self, trained: Task, split: Split) -> None:
        """Splits are cut from one stream of lists: another cut holds out lists that were trained on."""
        if isinstance(trained, Listops):
            training, held_out = set(trained._splits["train"].digests()), self._splits[split].digests()
            if overlap := sum(digest in training for digest in held_out):
                raise UserError(
                    f"task listops: the run trained on {overlap:,} of the {len(held_out):,} {split} samples; "
                    "expected the run's eval_samples, lengths, depth and seed, or a folder"
                )

    @cached_property
    def _splits(self) -> dict[str, "ListopsDataset"]:
        if self.folder is None:
            lengths = f"{self.min_length}-{self.max_length}-{self.max_depth}"
            key = f"listops-v{self.VERSION}-s{self.seed}-{lengths}-{self.samples}-{self.eval_samples}"
            path, index = cached(key, self._generate)
        else:
            sources = [Source(name, path) for name, path in self._released_files().items()]
            path, index = cached(key_of(f"listops {self.VERSION}", sources), self._read_released)
        counts = index["counts"]
        num_offsets = sum(counts) + 1
        offsets = np.fromfile(path, np.int64, num_offsets, offset=index["size"] - 8 * num_offsets)
        data = np.memmap(path, np.uint8, "r").view(np.ndarray)
        first = np.cumsum([0, *counts])
        return {
            name: ListopsDataset(data, offsets[start : start + min(count, self.num_samples(name)) + 1])
            for name, start, count in zip(ORDER, first[:-1].tolist(), counts, strict=True)
        }

    def _generate(self, out: BufferedWriter) -> dict[str, Any]:
        counts = [self.num_samples(name) for name in ORDER]
        trees = distinct_trees(self.seed, self.min_length, self.max_length, self.max_depth, sum(counts))
        return write_lines(out, trees, counts)

    def _released_files(self) -> dict[Split, Path]:
        assert self.folder is not None
        folder = Path(self.folder).expanduser()
        return {name: folder / f"basic_{name}.tsv" for name in ORDER}

    def _read_released(self, out: BufferedWriter) -> dict[str, Any]:
        splits = [list(read_lra(path)) for path in self._released_files().values()]
        lines = (bytes([*tokens, END, answer]) for samples in splits for tokens, answer in samples)
        return write_lines(out, lines, [len(samples) for samples in splits])


class ListopsDataset(SampleDataset):
    """Lines of tokens, END and answer, in a row in memory-mapped bytes."""

    num_targets = 1

    def __init__(self, data: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " edges"]) -> None:
        self.data, self.offsets = data, offsets
        self.lengths = np.diff(offsets) - 1

    def symbols(self, document: int, start: int, stop: int) -> Symbols:
        first = int(self.offsets[document])
        return self.data[first + start : first + stop].astype(np.int64)

    def digests(self) -> list[bytes]:
        """A hash of every document."""
        return [
            tree_digest(self.data[start:stop].tobytes()) for start, stop in pairwise(self.offsets.tolist())
        ]

    @property
    def roots(self) -> UInt8[np.ndarray, " documents"]:
        """First tokens."""
        return self.data[self.offsets[:-1]]

    @property
    def answers(self) -> UInt8[np.ndarray, " documents"]:
        return self.data[self.offsets[1:] - 1]


def write_lines(out: BufferedWriter, lines: Iterator[bytes], counts: list[int]) -> dict[str, Any]:
    """Write lines and the offsets of their edges; returns the index of the cached file."""
    offsets = [0]
    for line in lines:
        out.write(line)
        offsets.append(offsets[-1] + len(line))
    out.write(bytes(-out.tell() % 8))
    out.write(np.array(offsets, np.int64).tobytes())
    return {"counts": counts}


def read_lra(path: str | Path) -> Iterator[tuple[list[int], int]]:
    """Tokens and answer of every row of a file in LRA's format.  Raises UserError for another one."""
    try:
        rows = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not rows or rows[0].split("\t") != ["Source", "Target"]:
        raise UserError(f"{path}: expected a first row `Source<TAB>Target`, found {''.join(rows[:1])[:40]!r}")
    for row_number, row in enumerate(rows[1:], 2):
        source, _, target = row.partition("\t")
        words = parse(source)
        if not words or not set(words) <= IDS.keys() or target not in IDS or IDS[target] > 9:
            raise UserError(
                f"{path}, row {row_number}: expected a list and its value, found {row[:20]!r} … {target!r}"
            )
        yield [IDS[word] for word in words], IDS[target]
