"""Background text of the needle and BABILong tasks, and of passkeys in books: a corpus read as one cyclic
text, its sentences, and samples of bytes in which lines are spliced into it."""

import re
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from zoo.errors import UserError
from zoo.train.corpora.documents import Documents
from zoo.train.tasks.base import SampleDataset, Split, Symbols, sample_rng
from zoo.train.tasks.lm import END

# A sentence ends at . ! or ?, with closing quotes and brackets, before white space; or at an empty line.
SENTENCE_END = re.compile(rb"""[.!?](?:["')\]]|\xe2\x80[\x99\x9d])*\s+|\n\s*\n""")
END_BYTES = b".!?\"')]\xe2\x80\x99\x9d \t\n\r\f\v"  # the bytes that a sentence end can consist of
BLOCK = 1 << 16  # bytes read together, for a sample of any length
CURSOR_SPACING = 1 << 16  # bytes of background between stored cursors
MIN_LOOKAHEAD = 4096  # bytes searched for sentences, at least
CACHED_SAMPLES = 64  # more than are read side by side

Bytes = UInt8[np.ndarray, " _"]


class CyclicText:
    """All documents of a corpus one after the other, the first again after the last: endless filler."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self._ends = np.cumsum(documents.lengths)

    def __len__(self) -> int:
        """Bytes until the text repeats."""
        return int(self._ends[-1])

    def read(self, start: int, size: int) -> Bytes:
        parts = [np.empty(0, np.uint8)]
        while size:
            start %= len(self)
            document = int(np.searchsorted(self._ends, start, side="right"))
            length = int(self.documents.lengths[document])
            offset = start - int(self._ends[document]) + length
            parts.append(self.documents.bytes_of(document, offset, min(offset + size, length)))
            start, size = start + len(parts[-1]), size - len(parts[-1])
        return np.concatenate(parts)

    def sentence_ends(self, start: int, size: int) -> Iterator[int]:
        """Ends of sentences in the `size` bytes from `start` on, as offsets from `start`: those strictly
        between 0 and `size`."""
        unsearched, offset = b"", 0  # bytes that are read but not searched yet, and their offset
        while (end := offset + len(unsearched)) < size:
            unsearched += self.read(start + end, min(BLOCK, size - end)).tobytes()
            complete = len(unsearched)
            if offset + len(unsearched) < size:  # a sentence end may continue in the next block
                complete = len(unsearched.rstrip(END_BYTES))
            for match in SENTENCE_END.finditer(unsearched, 0, complete):
                if offset + match.end() < size:
                    yield offset + match.end()
            unsearched, offset = unsearched[complete:], offset + complete

    def sentence_edges(self, start: int, size: int, depths: Sequence[float | int]) -> list[int]:
        """Edges of sentences in the `size` bytes from `start` on, as offsets from `start`: for every depth in
        0..1 the edge after that share of the sentences."""
        num_sentences = sum(1 for _ in self.sentence_ends(start, size)) + 1
        requested = [int(num_sentences * depth) for depth in depths]
        edges = {0: 0, num_sentences: size}
        ends = islice(self.sentence_ends(start, size), max(requested, default=0))
        for index, end in enumerate(ends, 1):
            if index in requested:
                edges[index] = end
        return [edges[index] for index in requested]


class Cursor(NamedTuple):
    """The start of a sentence of background, and the state of the search there."""

    position: int  # in the cyclic text
    lookahead: int  # bytes from there on that are searched for sentences; 0: to be set
    unbroken: bool  # no sentence end in the lookahead so far
    remaining: int  # bytes of background from there on


class BackgroundText:
    """Complete sentences of a cyclic text from the first one after `start` on, with the white space that ends
    them: `size` bytes in all.

    Sentences under `min_sentence` bytes are skipped; the last one is cut and ends in a space.  They are
    searched for at every read, from the last stored cursor on, one in CURSOR_SPACING bytes.
    Raises UserError for a corpus without sentences of that length.
    """

    def __init__(self, source: CyclicText, start: int, size: int, min_sentence: int) -> None:
        self.source, self.start, self.size, self.min_sentence = source, start, size, min_sentence
        first = start + next(source.sentence_ends(start, MIN_LOOKAHEAD), MIN_LOOKAHEAD)
        self._cursors = [Cursor(first, 0, True, size)]
        self.num_sentences = 0
        for cursor, _ in self._scan(self._cursors[0]):
            self.num_sentences += 1
            if self._cursors[-1].remaining - cursor.remaining >= CURSOR_SPACING:
                self._cursors.append(cursor)

    def sentences(self) -> Iterator[range]:
        """Spans of the cyclic text."""
        return (sentence for _, sentence in self._scan(self._cursors[0]))

    def offsets(self, indices: Sequence[int]) -> list[int]:
        """Bytes before sentences, by their indices; index num_sentences stands for the end."""
        offsets, requested = {self.num_sentences: self.size}, set(indices)
        for index, (cursor, _) in enumerate(self._scan(self._cursors[0])):
            if index in requested:
                offsets[index] = self.size - cursor.remaining
        return [offsets[index] for index in indices]

    def read(self, start: int, size: int) -> Bytes:
        parts = [np.empty(0, np.uint8)]
        stop = start + size
        nearest = bisect_right(self._cursors, start - self.size, key=lambda cursor: -cursor.remaining) - 1
        for cursor, sentence in self._scan(self._cursors[max(0, nearest)]):
            offset = self.size - cursor.remaining
            if offset >= stop:
                break
            if overlap := sentence[max(0, start - offset) : stop - offset]:
                parts.append(self.source.read(overlap.start, len(overlap)))
        text = np.concatenate(parts)
        if size and stop == self.size:
            text[-1] = ord(" ")
        return text

    def _scan(self, cursor: Cursor) -> Iterator[tuple[Cursor, range]]:
        """Every sentence from a cursor on, with its own cursor."""
        position, lookahead, unbroken, remaining = cursor
        while remaining > 0:
            lookahead = lookahead or max(MIN_LOOKAHEAD, 2 * remaining)
            sentence_start = 0
            for end in chain(self.source.sentence_ends(position, lookahead), [lookahead]):
                if end == lookahead and not unbroken:  # the sentence may continue after the lookahead
                    break
                if end - sentence_start >= self.min_sentence:
                    first, stop = position + sentence_start, position + min(end, sentence_start + remaining)
                    sentence = range(first, stop)
                    yield Cursor(first, lookahead - sentence_start, unbroken, remaining), sentence
                    remaining -= len(sentence)
                    if not remaining:
                        return
                sentence_start, unbroken = end, False
            position, lookahead, unbroken = position + sentence_start, 0, True
            searched = position - self.start
            if remaining == self.size and searched > len(self.source) + 2 * MIN_LOOKAHEAD:
                raise UserError(
                    f"expected a corpus with sentences of {self.min_sentence} bytes or more, found none"
                )


class SplicedText:
    """Spans of a source (ranges) and literal bytes, read as one text that is never built in full."""

    def __init__(self, source: CyclicText | BackgroundText, parts: Sequence[bytes | range]) -> None:
        self.source = source
        literals = [part if isinstance(part, bytes) else b"" for part in parts]
        self._literals = np.frombuffer(b"".join(literals), np.uint8)
        self._is_literal = [isinstance(part, bytes) for part in parts]
        self._ends = np.cumsum([len(part) for part in parts])
        # where each part starts: in the source, or in the literals
        literal_starts = np.cumsum([0, *map(len, literals)]).tolist()
        self._starts = [
            part.start if isinstance(part, range) else literal_start
            for part, literal_start in zip(parts, literal_starts, strict=False)
        ]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def part_starts(self) -> list[int]:
        """The byte that each part begins at."""
        return [0, *self._ends[:-1].tolist()]

    def read(self, start: int, stop: int) -> Bytes:
        texts = [np.empty(0, np.uint8)]
        part = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            part_start = int(self._ends[part - 1]) if part else 0
            size = min(int(self._ends[part]), stop) - start
            first = self._starts[part] + start - part_start
            if self._is_literal[part]:
                texts.append(self._literals[first : first + size])
            else:
                texts.append(self.source.read(first, size))
            start, part = start + size, part + 1
        return np.concatenate(texts)


class SplicedDataset(SampleDataset):
    """Samples of bytes after END, every document's first input as in task lm; drawn when they are read."""

    def __init__(self, seed: int, split: Split, source: CyclicText) -> None:
        self.source, self.seed, self.split = source, seed, split
        self._cached_splice: Callable[[int], SplicedText] = lru_cache(CACHED_SAMPLES)(self.splice)

    @abstractmethod
    def splice(self, document: int) -> SplicedText:
        """A sample, of as many bytes as it has positions."""

    def symbols(self, document: int, start: int, stop: int) -> Symbols:
        opening = [END] if start == 0 < stop else []
        text = self._cached_splice(document).read(max(start, 1) - 1, max(stop, 1) - 1)
        return np.concatenate([np.array(opening, np.int64), text])

    def rng(self, *index: int) -> np.random.Generator:
        """Generator of a sample, by its index; without one, of the split."""
        return sample_rng(self.seed, self.split, *index)
