"""Text to hide things in: sentences of a corpus, and samples woven of them and of lines of their own."""

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Int64, UInt8

from zoo.errors import UserError
from zoo.train.documents import Documents
from zoo.train.lm import END
from zoo.train.samples import SPLITS, SampleTexts
from zoo.train.task import Split

# A sentence ends at . ! or ?, quotes and brackets closed behind it, before white space; or at an empty line.
SENTENCE_END = re.compile(rb"""[.!?](?:["')\]]|\xe2\x80[\x99\x9d])*\s+|\n\s*\n""")
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

    def sentences(self, start: int, size: int, shortest: int) -> list[range]:
        """Where whole sentences lie from the first one behind `start` on, white space at their ends included.

        Shorter ones than `shortest` bytes are skipped, and the last one is cut: `size` bytes in all.
        UserError: there are none so long.
        """
        found: list[range] = []
        at, missing = start + self.sentence_ends(start, CHUNK)[1], size
        while missing > 0:
            ends = self.sentence_ends(at, max(CHUNK, 2 * missing))
            if len(ends) > 2:  # else it is a sentence by its length
                ends.pop()
            for first, last in pairwise(ends):
                if missing > 0 and last - first >= shortest:
                    found.append(range(at + first, at + min(last, first + missing)))
                    missing -= len(found[-1])
            at += ends[-1]
            if not found and at - start > len(self) + 2 * CHUNK:
                raise UserError(f"expected a corpus with sentences of {shortest} bytes or more, found none")
        return found

    def sentence_ends(self, start: int, size: int) -> list[int]:
        """Ends of sentences in so many bytes, counted from `start`; before them 0 and behind them `size`."""
        ends = [match.end() for match in SENTENCE_END.finditer(self.read(start, size).tobytes())]
        return [0, *(end for end in ends if end < size), size]


class Woven:
    """Spans of a ring (ranges) and texts of one's own, as one text that is never put together whole."""

    def __init__(self, ring: Ring, pieces: Sequence[bytes | range]) -> None:
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


class WovenTexts(SampleTexts):
    """Samples of bytes behind the END that opens any document of task lm, drawn when they are read."""

    def __init__(self, seed: int, split: Split, ring: Ring) -> None:
        self.ring, self._seed = ring, [seed, SPLITS.index(split)]
        self.woven: Callable[[int], Woven] = lru_cache(KEPT)(
            lambda document: Woven(ring, self.weave(document))
        )

    @abstractmethod
    def weave(self, document: int) -> list[bytes | range]:
        """The pieces of a sample, as many bytes in all as it has positions."""

    def line(self, document: int, start: int, stop: int) -> Int64[np.ndarray, " symbols"]:
        opening = np.full(int(start == 0 < stop), END, np.int64)
        said = self.woven(document).read(max(start, 1) - 1, max(stop, 1) - 1)
        return np.concatenate([opening, said])

    def generator(self, *numbers: int) -> np.random.Generator:
        """Of a sample of this split, or without a number of what all samples share."""
        return np.random.Generator(np.random.Philox([*self._seed, *numbers]))
