"""Language modelling of bytes: a document is END, its bytes, END; each byte and the last END are asked once.

    bits per byte = nats of all targets, END's included / (ln 2 * bytes asked, END not counted)

On enwik8 this is the bits per character that papers report, but for the two ENDs of the whole split.

    word perplexity = exp(nats of all targets / words between white space, whatever the tokens are)

which is PG-19's own rule (arXiv:1911.05507).  WikiText counts an <eos> at every line's end as a word too.
"""

import lzma
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.corpora.catalog import open_corpus
from zoo.train.corpora.documents import Documents
from zoo.train.corpora.splits import WIKITEXT
from zoo.train.tasks.base import Dataset, Split, Task

END = 256  # opens a document as its first input and closes it as its last target
VOCABULARY = 257
CHUNK = 1 << 20  # positions of a document looked at together
NEWLINE = 10


class LanguageModelling(Task):
    """Predict the next byte of a corpus."""

    name = "lm"
    VERSION = 1
    metric = "bits_per_byte"

    def __init__(self, corpus: str, root: str | Path, vocab_size: int = VOCABULARY) -> None:
        """`corpus`: a name that `open_corpus` knows, or a path.  UserError: none such, other vocabulary."""
        if vocab_size != VOCABULARY:
            raise UserError(
                f"task lm: expected vocab_size {VOCABULARY} (256 bytes and an end symbol), found {vocab_size}"
            )
        self.vocab_size = vocab_size
        self.corpus = open_corpus(corpus, root)

    def split(self, name: Split) -> Dataset:
        return ByteDataset(self.corpus.split(name))

    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        return ((targets != IGNORE) & (targets != END)).sum()

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Bits per byte of `xz -9` and of the order-0 entropy: what a model has to come under first."""
        return baselines(b"".join(dataset.text(document) or b"" for document in range(len(dataset.lengths))))

    def words(self, dataset: Dataset) -> tuple[int, str]:
        """How many words the texts hold, and what counts as one in this corpus."""
        words, lines = count_words(dataset)
        if self.corpus.name in WIKITEXT:
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
        size = int(self.documents.lengths[document])
        if not 0 <= start <= stop <= size + 1:
            raise IndexError(f"positions {start}..{stop} of document {document}, which has {size + 1}")
        line = np.full(stop - start + 1, END, np.int64)  # symbols start..stop of END, b0 … b(size-1), END
        first, last = max(start, 1), min(stop, size)
        line[first - start : last - start + 1] = self.documents.bytes_of(document, first - 1, last)
        return line[:-1], line[1:]

    def text(self, document: int) -> bytes:
        return self.documents.bytes_of(document, 0, int(self.documents.lengths[document])).tobytes()


def prefix(dataset: Dataset, limit: int) -> Dataset:
    """The first documents of byte texts, `limit` bytes in all (or all there is), the last one cut short.

    A document that is cut asks the bytes that are left of it and no END.
    """
    if limit < 1:
        raise UserError(f"expected at least 1 byte to read, found {limit}")
    return _Prefix(dataset, limit)


class _Prefix(Dataset):
    def __init__(self, dataset: Dataset, limit: int) -> None:
        sizes = dataset.lengths - 1
        before = np.cumsum(sizes) - sizes
        count = int(np.count_nonzero(before < limit))
        self.dataset = dataset
        self.lengths = dataset.lengths[:count].copy()
        left = limit - int(before[count - 1])
        if left < sizes[count - 1]:
            self.lengths[-1] = left

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        return self.dataset.window(document, start, stop)

    def text(self, document: int) -> bytes | None:
        whole = self.dataset.text(document)
        return whole if whole is None else whole[: self.lengths[document]]


def count_words(dataset: Dataset) -> tuple[int, int]:
    """Runs of bytes between white space (as bytes.split has them), and line ends, in all that is asked."""
    words = lines = 0
    for document, size in enumerate(dataset.lengths.tolist()):
        inside = False
        for start in range(0, size, CHUNK):
            _, asked = dataset.window(document, start, min(start + CHUNK, size))
            letter = (asked != 32) & ((asked < 9) | (asked > 13)) & (asked != END)
            words += int((letter[1:] & ~letter[:-1]).sum()) + int(letter[0] and not inside)
            lines += int((asked == NEWLINE).sum())
            inside = bool(letter[-1])
    return words, lines


def baselines(text: bytes) -> dict[str, float]:
    """Bits per byte of `xz -9` and of the order-0 entropy of a text: what a model has to come under first."""
    if not text:
        raise UserError("expected text to compress, found 0 bytes")
    counts = np.bincount(np.frombuffer(text, np.uint8))
    shares = counts[counts > 0] / len(text)
    return {
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
        "order-0": float(-(shares * np.log2(shares)).sum()),
    }
