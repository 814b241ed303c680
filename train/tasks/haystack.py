"""Text to hide things in: sentences of a corpus, and samples woven of them and of lines of their own."""

import re
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from zoo.errors import UserError
from zoo.train.corpora.documents import Documents
from zoo.train.tasks.base import SPLITS, SampleDataset, Split
from zoo.train.tasks.lm import END

# A sentence ends at . ! or ?, quotes and brackets closed behind it, before white space; or at an empty line.
SENTENCE_END = re.compile(rb"""[.!?](?:["')\]]|\xe2\x80[\x99\x9d])*\s+|\n\s*\n""")
ENDING = b".!?\"')]\xe2\x80\x99\x9d \t\n\r\f\v"  # what an end is made of
BLOCK = 1 << 16  # bytes read at a time, whatever the length of a sample
MARK = 1 << 16  # bytes of a book between places that are kept
CHUNK = 4096  # bytes looked through for sentences, at least
KEPT = 64  # samples of which it is remembered what they are made of: more than are read side by side


class Ring:
    """All bytes of a corpus one behind the other, the first again behind the last: filler without end."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self._ends = np.cumsum(documents.lengths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, size: int) -> UInt8[np.ndarray, " bytes"]:
        found = [np.empty(0, np.uint8)]
        while size:
            start %= len(self)
            document = int(np.searchsorted(self._ends, start, side="right"))
            length = int(self.documents.lengths[document])
            inside = start - int(self._ends[document]) + length
            found.append(self.documents.bytes_of(document, inside, min(inside + size, length)))
            start, size = start + len(found[-1]), size - len(found[-1])
        return np.concatenate(found)

    def sentence_ends(self, start: int, size: int) -> Iterator[int]:
        """Where sentences end inside so many bytes, counted from `start`: those after 0 and before `size`."""
        held, at = b"", 0  # bytes that a block left over, and where they begin
        while (read := at + len(held)) < size:
            held += self.read(start + read, min(BLOCK, size - read)).tobytes()
            # an end may go on in the next block, if all from there on may be part of one
            sure = len(held.rstrip(ENDING)) if at + len(held) < size else len(held)
            for match in SENTENCE_END.finditer(held, 0, sure):
                if at + match.end() < size:
                    yield at + match.end()
            held, at = held[sure:], at + sure

    def sentence_edges(self, start: int, size: int, depths: Sequence[float | int]) -> list[int]:
        """Edges of sentences in so many bytes, counted from `start`, at shares of all from 0 to `size`."""
        last = sum(1 for _ in self.sentence_ends(start, size)) + 1
        wanted = [int(last * depth) for depth in depths]
        edges = {0: 0, last: size}
        for number, end in enumerate(islice(self.sentence_ends(start, size), max(wanted, default=0)), 1):
            if number in wanted:
                edges[number] = end
        return [edges[number] for number in wanted]


class Place(NamedTuple):
    """Where a sentence of a book begins, and what is to be known to go on from there."""

    at: int  # in the ring
    stretch: int  # bytes from there on that are looked through for sentences; 0: to be said anew
    alone: bool  # whether no end was found in the stretch so far
    missing: int  # bytes of the book from there on


class Book:
    """Whole sentences of a ring from the first one behind `start` on, white space at their ends included.

    Shorter ones than `shortest` bytes are skipped; the last one is cut, to a space at its end: `size` bytes
    in all.  Sentences are looked for anew whenever they are read, from the last of the places that are kept,
    one in MARK bytes.  UserError: there are none so long.
    """

    def __init__(self, ring: Ring, start: int, size: int, shortest: int) -> None:
        self.ring, self.start, self.size, self.shortest = ring, start, size, shortest
        first = start + next(ring.sentence_ends(start, CHUNK), CHUNK)
        self._places = [Place(first, 0, True, size)]
        self.count = 0
        """Sentences."""
        for place, _ in self._from(self._places[0]):
            self.count += 1
            if self._places[-1].missing - place.missing >= MARK:
                self._places.append(place)

    def sentences(self) -> Iterator[range]:
        """Where they lie in the ring."""
        return (sentence for _, sentence in self._from(self._places[0]))

    def begins(self, numbers: Sequence[int]) -> list[int]:
        """Bytes before sentences by their numbers, of which self.count is the end."""
        edges, wanted = {self.count: self.size}, set(numbers)
        for number, (place, _) in enumerate(self._from(self._places[0])):
            if number in wanted:
                edges[number] = self.size - place.missing
        return [edges[number] for number in numbers]

    def read(self, start: int, size: int) -> UInt8[np.ndarray, " bytes"]:
        found = [np.empty(0, np.uint8)]
        stop = start + size
        mark = bisect_right(self._places, start - self.size, key=lambda place: -place.missing) - 1
        for place, sentence in self._from(self._places[max(0, mark)]):
            before = self.size - place.missing
            if before >= stop:
                break
            if own := sentence[max(0, start - before) : stop - before]:
                found.append(self.ring.read(own.start, len(own)))
        said = np.concatenate(found)
        if size and stop == self.size:
            said[-1] = ord(" ")
        return said

    def _from(self, place: Place) -> Iterator[tuple[Place, range]]:
        """Sentences, and where each of them begins."""
        at, stretch, alone, missing = place
        while missing > 0:
            stretch = stretch or max(CHUNK, 2 * missing)
            begin = 0
            for end in chain(self.ring.sentence_ends(at, stretch), [stretch]):
                if end == stretch and not alone:  # it may end further on
                    break
                if end - begin >= self.shortest:
                    sentence = range(at + begin, at + min(end, begin + missing))
                    yield Place(at + begin, stretch - begin, alone, missing), sentence
                    missing -= len(sentence)
                    if not missing:
                        return
                begin, alone = end, False
            at, stretch, alone = at + begin, 0, True
            if missing == self.size and at - self.start > len(self.ring) + 2 * CHUNK:
                raise UserError(
                    f"expected a corpus with sentences of {self.shortest} bytes or more, found none"
                )


class Woven:
    """Spans of a ring or a book (ranges) and texts of one's own, as one that is never put together whole."""

    def __init__(self, ring: Ring | Book, pieces: Sequence[bytes | range]) -> None:
        self.ring = ring
        own = [piece if isinstance(piece, bytes) else b"" for piece in pieces]
        self._own = np.frombuffer(b"".join(own), np.uint8)
        self._ends = np.cumsum([len(piece) for piece in pieces])
        # where each begins: in the ring, or in our own texts, counted from their end and so below 0
        places = np.cumsum([0, *map(len, own)]) - len(self._own) - 1
        self._starts = np.array(
            [
                piece.start if isinstance(piece, range) else place
                for piece, place in zip(pieces, places, strict=False)
            ],
            np.int64,
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, " bytes"]:
        found = [np.empty(0, np.uint8)]
        piece = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = int(self._ends[piece])
            begin = int(self._ends[piece - 1]) if piece else 0
            first, size = int(self._starts[piece]) + start - begin, min(end, stop) - start
            if self._starts[piece] >= 0:
                found.append(self.ring.read(first, size))
            else:
                first += len(self._own) + 1
                found.append(self._own[first : first + size])
            start, piece = start + size, piece + 1
        return np.concatenate(found)


class HaystackDataset(SampleDataset):
    """Samples of bytes behind the END that opens any document of task lm, drawn when they are read."""

    def __init__(self, seed: int, split: Split, ring: Ring) -> None:
        self.ring, self._seed = ring, [seed, SPLITS.index(split)]
        self.woven: Callable[[int], Woven] = lru_cache(KEPT)(self.weave)

    @abstractmethod
    def weave(self, document: int) -> Woven:
        """A sample, as many bytes as it has positions."""

    def line(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " symbols"]:
        opening = np.full(int(start == 0 < stop), END, np.int64)
        said = self.woven(document).read(max(start, 1) - 1, max(stop, 1) - 1)
        return np.concatenate([opening, said])

    def generator(self, *numbers: int) -> np.random.Generator:
        """Of a sample of this split, or without a number of what all samples share."""
        return np.random.Generator(np.random.Philox([*self._seed, *numbers]))
