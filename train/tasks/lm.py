"""Language modelling of bytes: a document is END, its bytes, END; the bytes and the last END are targets.

    bits per byte = nats of all targets, END's included / (ln 2 * bytes among the targets, END not counted)

On enwik8 this is the bits per character that papers report, but for the two ENDs of the whole split.

    word perplexity = exp(nats of all targets / words between white space, for any tokens)

which is PG-19's rule (arXiv:1911.05507).  WikiText counts an <eos> at every line's end as a word too.
"""

import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.corpora.documents import FIELD, Documents, count_words
from zoo.train.corpora.splits import WIKITEXT
from zoo.train.tasks.base import Dataset, Split, Task
from zoo.train.tasks.reads_corpus import ReadsCorpus

END = 256  # a document's first input and its last target
VOCAB_SIZE = 257
MIN_BYTES = 100  # of held-out text whose score says something
CHUNK = 1 << 20  # positions of a document read together


@dataclass(frozen=True)
class LanguageModelling(ReadsCorpus, Task):
    """Predict the next byte of a corpus: a name that `open_corpus` knows, or a path; `field` is where rows of
    JSON have their text, and `seed` draws the held-out documents where not all of them are read.

    Raises UserError if there is no such corpus, and for another vocabulary.
    """

    name = "lm"
    VERSION = 2
    metric = "bits_per_byte"
    target_noun = "byte"

    corpus: str
    root: str | Path
    vocab_size: int = VOCAB_SIZE
    field: str = FIELD
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"task.seed: expected at least 0, found {self.seed}")
        if self.vocab_size != VOCAB_SIZE:
            raise UserError(
                f"task lm: expected vocab_size {VOCAB_SIZE} (256 bytes and an end symbol), "
                f"found {self.vocab_size}"
            )
        _ = self.documents  # a missing corpus is an error now, not at the first step

    def split(self, name: Split) -> Dataset:
        return ByteDataset(self.documents.split(name))

    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        return ((targets != IGNORE) & (targets != END)).sum()

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Bits per byte of `xz -9` and of the order-0 entropy: the first scores that a model has to beat."""
        return text_baselines(dataset)

    def word_count(self, dataset: Dataset) -> tuple[int, str]:
        words, lines = words_and_lines(dataset)
        if self.documents.name in WIKITEXT:
            return words + lines, "word of WikiText's own, an <eos> per line among them"
        return words, "word between white space"


class ByteDataset(Dataset):
    """Documents of n bytes as n + 1 positions: tokens END, b0 … b(n-1), targets b0 … b(n-1), END."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self.lengths = documents.lengths + 1

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        self.check_window(document, start, stop)
        size = int(self.documents.lengths[document])
        symbols = np.full(stop - start + 1, END, np.int64)  # start..stop of END, b0 … b(size-1), END
        first, last = max(start, 1), min(stop, size)
        symbols[first - start : last - start + 1] = self.documents.bytes_of(document, first - 1, last)
        return symbols[:-1], symbols[1:]

    def text(self, document: int) -> bytes:
        return self.documents.bytes_of(document, 0, int(self.documents.lengths[document])).tobytes()


def draw_documents(dataset: Dataset, limit: int, seed: int) -> Dataset:
    """Documents of a byte dataset in an order drawn by `seed`, until they hold `limit` bytes; all of them
    where they hold no more.

    Documents are whole: the last one may go past the limit.  Only one that is longer than `limit` by itself
    is cut there, and has no END.
    """
    if limit < 1:
        raise UserError(f"expected at least 1 byte to read, found {limit}")
    return dataset if int((dataset.lengths - 1).sum()) <= limit else _DrawnDocuments(dataset, limit, seed)


def draw_held_out(task: Task, dataset: Dataset, limit: int) -> Dataset:
    """`draw_documents` by the task's seed; by 0 of a text task that has none."""
    return draw_documents(dataset, limit, getattr(task, "seed", 0))


class _DrawnDocuments(Dataset):
    def __init__(self, dataset: Dataset, limit: int, seed: int) -> None:
        # NumPy's raw random numbers stay the same between versions; its shuffles may not
        order = np.argsort(np.random.PCG64(seed).random_raw(len(dataset.lengths)), kind="stable")
        sizes = np.minimum(dataset.lengths[order] - 1, limit)
        self.dataset, self.documents = dataset, order[: int(np.searchsorted(sizes.cumsum(), limit)) + 1]
        lengths = dataset.lengths[self.documents]
        self.lengths = np.where(lengths - 1 > limit, limit, lengths)

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        self.check_window(document, start, stop)
        return self.dataset.window(int(self.documents[document]), start, stop)

    def text(self, document: int) -> bytes | None:
        return self.text_until(document, int(self.lengths[document]))

    def text_until(self, document: int, position: int) -> bytes | None:
        return self.dataset.text_until(int(self.documents[document]), position)

    def byte_length(self, document: int, position: int) -> int | None:
        return self.dataset.byte_length(int(self.documents[document]), position)


def too_short(size: int) -> str:
    """What is wrong with a score on a text of this many bytes, "" where nothing is."""
    return "" if size >= MIN_BYTES else f"too little text for a score that says anything (bytes: {size})"


def words_and_lines(dataset: Dataset) -> tuple[int, int]:
    """Words between white space and line ends in all targets of a byte dataset."""
    words = lines = 0
    for document, length in enumerate(dataset.lengths.tolist()):
        starts = range(0, length, CHUNK)
        windows = (dataset.window(document, start, min(start + CHUNK, length)) for start in starts)
        counts = count_words(targets[targets != END] for _, targets in windows)
        words, lines = words + counts[0], lines + counts[1]
    return words, lines


def text_baselines(dataset: Dataset) -> dict[str, float]:
    """`compression_baselines` of all texts of a dataset, joined."""
    texts = (dataset.text(document) or b"" for document in range(len(dataset.lengths)))
    return compression_baselines(b"".join(texts))


def compression_baselines(text: bytes) -> dict[str, float]:
    """Bits per byte of `xz -9` and of the order-0 entropy of a text."""
    if not text:
        raise UserError("expected text to compress, found 0 bytes")
    counts = np.bincount(np.frombuffer(text, np.uint8))
    shares = counts[counts > 0] / len(text)
    return {
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
        "order-0": abs(float((shares * np.log2(shares)).sum())),
    }
