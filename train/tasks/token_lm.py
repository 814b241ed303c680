"""Language modelling of a tokenizer's tokens: a document is the start symbol, its ids, the end symbol.

    bits per byte = nats of all targets, the end symbol's included / (ln 2 * bytes of the text)

over the bytes of the text as it lies on disk, whatever the tokenizer makes of them: so scores of different
tokenizers, and of bytes (tasks/lm.py), are in one unit.  Where a tokenizer has no start symbol, a document's
first token is no target, and its bytes don't count.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Int64, Integer
from torch import Tensor

from zoo.errors import UserError
from zoo.train.corpora.catalog import Corpus
from zoo.train.corpora.documents import FIELD, count_words
from zoo.train.corpora.splits import WIKITEXT
from zoo.train.corpora.token_files import (
    TokenCorpus,
    TokenSplit,
    cached_tokens,
    is_token_folder,
    open_tokens,
)
from zoo.train.corpora.tokenizer import Tokenizer
from zoo.train.tasks.base import Dataset, Split, Task
from zoo.train.tasks.lm import text_baselines
from zoo.train.tasks.reads_corpus import ReadsCorpus


@dataclass(frozen=True)
class TokenLanguageModelling(ReadsCorpus, Task):
    """Predict the next token of a text.

    `corpus` is a folder that `zoo prepare` wrote, or, with a `tokenizer` (a tokenizer.json), any corpus that
    `open_corpus` knows; `start` and `end` are then the ids that open and close a document.  `vocab_size` is
    then that of the model, which may have more symbols than the tokenizer.  `seed` draws the held-out
    documents where not all of them are read.

    Raises UserError if there is no such corpus, and for another number of symbols.  "" is no corpus yet:
    an imported run's, which `zoo evaluate data.corpus=…` names.
    """

    name = "token_lm"
    VERSION = 1
    metric = "bits_per_byte"
    target_noun = "token"

    corpus: str
    root: str | Path
    vocab_size: int
    tokenizer: str | None = None
    start: int | None = None
    end: int | None = None
    field: str = FIELD
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"task.seed: expected at least 0, found {self.seed}")
        if self.corpus:
            _ = self.tokens  # a missing corpus is an error now, not at the first step

    @cached_property
    def tokens(self) -> TokenCorpus:
        if not self.corpus:
            raise UserError("expected a text for this run's tokenizer, found none: data.corpus=…")
        if is_token_folder(self.corpus):
            tokens = open_tokens(self.corpus)
            self._check_prepared(tokens)
        elif self.tokenizer is None:
            raise UserError(
                f"data.corpus: expected a folder that zoo prepare wrote, found {self.corpus}; "
                "zoo prepare data.corpus=… tokenizer=… to=… writes one"
            )
        else:
            tokens = cached_tokens(self.documents, Tokenizer(Path(self.tokenizer)), self.start, self.end)
        is_enough = tokens.vocab_size <= self.vocab_size
        if not is_enough or (self.tokenizer is None and tokens.vocab_size != self.vocab_size):
            raise UserError(
                f"task.vocab_size: expected {tokens.vocab_size}, the symbols of the tokenizer, found "
                f"{self.vocab_size}"
            )
        return tokens

    def opened_corpus(self) -> Corpus | None:
        return None if not self.corpus or is_token_folder(self.corpus) else self.documents

    def _check_prepared(self, tokens: TokenCorpus) -> None:
        """Raises UserError if the folder was written by another tokenizer than the run's."""
        if self.tokenizer is not None and Tokenizer(Path(self.tokenizer)).digest != tokens.tokenizer:
            raise UserError(
                f"data.corpus: expected texts in the tokens of the run's tokenizer, found {self.corpus}, "
                "which was written by another one"
            )
        for name in ("start", "end"):
            expected, actual = getattr(self, name), getattr(tokens, name)
            if expected not in (None, actual):
                raise UserError(f"task.{name}: {expected}, but {self.corpus} was prepared with {actual}")

    @cached_property
    def sizes(self) -> Int[Tensor, " ids"]:
        """The bytes of every id, and at the end 0 for IGNORE."""
        table = self.tokens.token_bytes()
        return torch.from_numpy(np.pad(table, (0, self.vocab_size + 1 - len(table))))

    def split(self, name: Split) -> Dataset:
        return TokenDataset(self.tokens, self.tokens.split(name))

    def content_digest(self) -> str:
        return f"{self.tokens.digest} {self.tokens.tokenizer}"

    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        """The bytes of the targets' tokens: a sum for the whole text that evaluations take from the text."""
        return self.sizes.to(targets.device, non_blocking=True)[targets.clamp(min=-1)].sum()

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Bits per byte of `xz -9` and of the order-0 entropy of the text."""
        return text_baselines(dataset)

    def word_count(self, dataset: Dataset) -> tuple[int, str]:
        words = lines = 0
        for document in range(len(dataset.lengths)):
            text = np.frombuffer(dataset.text(document) or b"", np.uint8)
            counts = count_words([text])
            words, lines = words + counts[0], lines + counts[1]
        if self.tokens.name in WIKITEXT:
            return words + lines, "word of WikiText's own, an <eos> per line among them"
        return words, "word between white space"


class TokenDataset(Dataset):
    """Documents of k ids as tokens start, i0 … i(k-1), targets i0 … i(k-1), end, where the corpus has these
    symbols."""

    def __init__(self, corpus: TokenCorpus, split: TokenSplit) -> None:
        self.start, self.end = corpus.start, corpus.end
        around = (self.start is not None) + (self.end is not None) - 1
        long_enough = split.counts[:, 0] + around > 0
        firsts = np.cumsum(split.counts, axis=0) - split.counts
        self.ids: Integer[np.ndarray, " tokens"] = split.ids
        self.firsts, self.counts = firsts[long_enough], split.counts[long_enough]
        self.lengths = self.counts[:, 0] + around
        self.path, self.sizes = split.text, corpus.token_bytes()

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        self.check_window(document, start, stop)
        before = int(self.start is not None)
        symbols = np.full(stop - start + 1, -1 if self.end is None else self.end, np.int64)
        if self.start is not None and start == 0:
            symbols[0] = self.start
        low, high = max(start - before, 0), min(stop + 1 - before, int(self.counts[document, 0]))
        symbols[low + before - start : high + before - start] = self.document_ids(document)[low:high]
        return symbols[:-1], symbols[1:]

    def document_ids(self, document: int) -> Integer[np.ndarray, " tokens"]:
        first, count = int(self.firsts[document, 0]), int(self.counts[document, 0])
        return self.ids[first : first + count]

    def text(self, document: int) -> bytes:
        """The bytes that the targets stand for: without a start symbol those after the first token."""
        first, size = int(self.firsts[document, 1]), int(self.counts[document, 1])
        with self.path.open("rb") as file:
            file.seek(first)
            return file.read(size)[self._untargeted_bytes(document) :]

    def _untargeted_bytes(self, document: int) -> int:
        return 0 if self.start is not None else int(self.sizes[self.document_ids(document)[0]])

    def text_until(self, document: int, position: int) -> bytes:
        if position >= self.lengths[document]:
            return self.text(document)
        targets = self.document_ids(document)[int(self.start is None) :][:position]
        return self.text(document)[: int(self.sizes[targets].sum())]

    def byte_length(self, document: int, position: int) -> int:
        if position >= self.lengths[document]:
            return int(self.counts[document, 1]) - self._untargeted_bytes(document)
        return len(self.text_until(document, position))
