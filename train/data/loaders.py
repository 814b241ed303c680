"""Loaders: lanes of text, each going on where it stopped.

A document begins at the start of a window and flags its row fresh; what is left of its last window is padding
(token 0, target IGNORE).  Every rank does the bookkeeping of all lanes and reads the texts of its own, so
that all ranks give the same number of batches and hold the same position.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from zoo.errors import UserError
from zoo.module import IGNORE, Batch
from zoo.train.tasks.base import Texts


class Piece(NamedTuple):
    """What one row of a batch reads: positions start..stop-1 of a document."""

    document: int
    start: int
    stop: int
    fresh: bool


def _batch(texts: Texts, window: int, pieces: Sequence[Piece | None]) -> Batch:
    """One row for every piece; a row without one is padding, and fresh."""
    tokens = np.zeros((len(pieces), window), np.int64)
    targets = np.full((len(pieces), window), IGNORE, np.int64)
    fresh = np.ones(len(pieces), np.bool_)
    for row, piece in enumerate(pieces):
        if piece is not None:
            size = piece.stop - piece.start
            tokens[row, :size], targets[row, :size] = texts.window(piece.document, piece.start, piece.stop)
            fresh[row] = piece.fresh
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(fresh))


def _windows(texts: Texts, window: int) -> Int64[np.ndarray, " documents"]:
    """Windows per document, after a look at what can't be read at all."""
    if not len(texts.lengths):
        raise UserError("expected at least one document to read, found none")
    return -(-texts.lengths // window)


class Lanes:
    """Training: an endless queue of documents, one permutation of them per pass, read by rows * world lanes.

    A lane whose document ends takes the next one from the queue, across passes, so that none is ever idle.  A
    document longer than a lane's share of a pass is cut, at multiples of the window, into pieces that lanes
    read at the same time: otherwise all lanes of a corpus that is one long text would read the same.  A piece
    begins fresh, its first token is the symbol before it, and every position is still asked once per pass.

    `len` is a nominal epoch, the batches it takes to read one pass; each `iter` gives that many, and the next
    goes on from there.  After `load_state_dict` the first `iter` gives what was left of the epoch (all of a
    new one if nothing was), which is what Lightning counts on.
    """

    def __init__(
        self, texts: Texts, rows: int, window: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        windows = _windows(texts, window)
        self.texts, self.rows, self.window, self.seed, self.rank = texts, rows, window, seed, rank
        lanes = rows * world
        share = max(1, int(windows.sum()) // lanes)  # windows
        cuts = -(-windows // share)
        self._documents = np.repeat(np.arange(len(windows)), cuts)
        first = np.repeat(np.cumsum(cuts) - cuts, cuts)
        self._starts = (np.arange(len(first)) - first) * share * window
        self._stops = np.minimum(self._starts + share * window, texts.lengths[self._documents])
        self._length = -(-int(windows.sum()) // lanes)
        self._pass = self._position = self._given = 0
        self._order = self._permutation()
        self._lanes = [_NOTHING] * lanes
        self._resumed = False

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        # Nothing happens before the first batch is asked for: Lightning may call iter twice in a row.
        if not self._resumed or self._given == self._length:
            self._given = 0
        self._resumed = False
        while self._given < self._length:
            self._given += 1
            yield self._next()

    def _next(self) -> Batch:
        pieces = []
        for lane, (document, start, end) in enumerate(self._lanes):
            if fresh := document < 0:
                document, start, end = self._take()
            stop = min(start + self.window, end)
            pieces.append(Piece(document, start, stop, fresh))
            self._lanes[lane] = (document, stop, end) if stop < end else _NOTHING
        return _batch(self.texts, self.window, pieces[self.rank * self.rows :][: self.rows])

    def _take(self) -> tuple[int, int, int]:
        if self._position == len(self._order):
            self._pass, self._position = self._pass + 1, 0
            self._order = self._permutation()
        piece = self._order[self._position]
        self._position += 1
        return int(self._documents[piece]), int(self._starts[piece]), int(self._stops[piece])

    def _permutation(self) -> Int64[np.ndarray, " pieces"]:
        # Raw numbers: NumPy keeps their stream for ever, that of its shuffles only within a version.
        draw = np.random.PCG64([self.seed, self._pass]).random_raw(len(self._documents))
        return np.argsort(draw, kind="stable").astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, the same on every rank: the place in the queue, (document, next position,
        end) of every lane, and the batches given in this epoch."""
        return {
            **self._shape(),
            "pass": self._pass,
            "position": self._position,
            "lanes": [list(lane) for lane in self._lanes],
            "given": self._given,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        UserError: it is of other texts, lanes, windows or another seed, or no such place exists.
        """

        def refuse(expected: str, found: str) -> UserError:
            return UserError(
                f"can't go on from the saved place in the data: expected {expected}, found {found}"
            )

        mine = self._shape()
        theirs = {key: state.get(key) for key in mine}
        if theirs != mine:
            expected, found = (
                ", ".join(f"{key}={one[key]}" for key in mine if mine[key] != theirs[key])
                for one in (mine, theirs)
            )
            raise refuse(expected, found)
        for key, most in (("pass", 2**63), ("position", len(self._order)), ("given", self._length)):
            number = state.get(key)
            if type(number) is not int or not 0 <= number <= most:
                raise refuse(f"{key} from 0 to {most}", repr(number))
        lanes = state.get("lanes")
        if (
            not isinstance(lanes, list)
            or len(lanes) != len(self._lanes)
            or not all(map(self._is_lane, lanes))
        ):
            raise refuse("lanes that end inside documents", f"{lanes!r:.200}")
        self._pass, self._position, self._given = state["pass"], state["position"], state["given"]
        self._lanes = [(document, start, end) for document, start, end in lanes]
        self._order = self._permutation()
        self._resumed = True

    def _is_lane(self, lane: Any) -> bool:
        """Whether it is what `state_dict` says of a lane."""
        if not (isinstance(lane, list) and len(lane) == 3 and all(type(number) is int for number in lane)):
            return False
        document, start, end = lane
        if document == _NOTHING[0]:
            return tuple(lane) == _NOTHING
        if not 0 <= document < len(self.texts.lengths):
            return False
        length = int(self.texts.lengths[document])
        return 0 < start < end <= length and start % self.window == 0

    def _shape(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "rows_of_all_ranks": len(self._lanes),
            "window": self.window,
            "documents": len(self.texts.lengths),
            "positions": int(self.texts.lengths.sum()),
        }


_NOTHING = (-1, 0, 0)  # a lane between two documents


class Reading:
    """Evaluation: every document once, whole, in order, each to the lane that is free first.

    No more lanes than documents, so that a single long text isn't read beside empty rows; a lane that has
    nothing left gives padding until all are done.  What is asked doesn't depend on rows or ranks.
    """

    def __init__(self, texts: Texts, rows: int, window: int, rank: int = 0, world: int = 1) -> None:
        windows = _windows(texts, window)
        rows = min(rows, -(-len(windows) // world))
        self.texts, self.window = texts, window
        plan: list[list[int]] = [[] for _ in range(rows * world)]
        free = [(0, lane) for lane in range(rows * world)]
        for document, size in enumerate(windows.tolist()):
            at, lane = free[0]
            plan[lane].append(document)
            heapq.heapreplace(free, (at + size, lane))
        self._length = max(at for at, _ in free)
        self._plan = plan[rank * rows : (rank + 1) * rows]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        for pieces in self.pieces():
            yield _batch(self.texts, self.window, pieces)

    def pieces(self) -> Iterator[list[Piece | None]]:
        """What every row of every batch reads, in step with `iter`; None where a row is padding."""
        lanes = [self._lane(documents) for documents in self._plan]
        for _ in range(self._length):
            yield [next(lane, None) for lane in lanes]

    def _lane(self, documents: list[int]) -> Iterator[Piece]:
        for document in documents:
            end = int(self.texts.lengths[document])
            for start in range(0, end, self.window):
                yield Piece(document, start, min(start + self.window, end), start == 0)
