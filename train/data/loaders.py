"""Loaders: row i of every batch is the next window of stream i, where the previous batch stopped.

A window is seq_len positions, what one training step reads of a row.  A stream is an endless text, one
document (or chunk of one) after the other; a rank's batch has a row for each of its batch_size streams.  A
document or chunk begins at the start of a window and flags its row fresh, which resets the model's state in
that row; the rest of its last window is padding (token 0, target IGNORE).  Every rank tracks the cursors of
all streams and reads the documents of its rows only, so that all ranks yield the same number of batches and
save the same state.
"""

import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from zoo.errors import UserError
from zoo.module import Batch
from zoo.train.data.batches import NO_EXTRAS, Span, TargetExtras, collate
from zoo.train.tasks.base import Dataset


def _count_windows(dataset: Dataset, seq_len: int) -> Int64[np.ndarray, " documents"]:
    """Windows per document.  Raises UserError for a dataset without documents."""
    if not len(dataset.lengths):
        raise UserError("expected at least one document to read, found none")
    return -(-dataset.lengths // seq_len)


class StreamCursor(NamedTuple):
    """Where a stream is: the next unread position in its chunk (start), and the chunk's end."""

    document: int
    start: int
    end: int


SETTINGS = {"rows_of_all_ranks": "global_batch_size", "window": "seq_len"}
"""What messages call keys of stored checkpoints."""

_NO_DOCUMENT = StreamCursor(-1, 0, 0)  # the cursor of a stream that needs a new chunk


class TrainLoader:
    """Training: an endless queue of chunks, shuffled in every pass, read by batch_size * world_size streams.

    A chunk is a document, or a part of one that is longer than a stream's share of the data: such a document
    is cut at multiples of seq_len, so that several streams read it at the same time; otherwise all streams of
    a one-text corpus would read the same bytes.  A chunk starts with an empty state, but its first input is
    the last token of the preceding chunk, so that no target is lost at the cut.

    A pass is the queue with every chunk once, and so with every target once.  A stream whose chunk ends takes
    the next one, if need be of the next pass, so that none is ever idle.  Lightning's epoch is a number of
    batches, `len`: as many as the windows of a pass fill, rounded up to a multiple of `accumulate`, the
    batches of an optimiser step, since Lightning ends a step where an epoch ends.  Each `iter` yields one
    epoch, from where the last one stopped.  After `load_state_dict` the first `iter` yields the rest of the
    epoch (all of a new one if nothing is left), as Lightning expects.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seq_len: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        extras: TargetExtras = NO_EXTRAS,
        accumulate: int = 1,
    ) -> None:
        windows = _count_windows(dataset, seq_len)
        self.dataset, self.batch_size, self.seq_len, self.seed = dataset, batch_size, seq_len, seed
        self.rank, self.extras = rank, extras
        num_streams = batch_size * world_size
        windows_per_stream = max(1, int(windows.sum()) // num_streams)  # a stream's share of a pass
        num_chunks = -(-windows // windows_per_stream)
        self._chunk_document = np.repeat(np.arange(len(windows)), num_chunks)
        first_chunk = np.repeat(np.cumsum(num_chunks) - num_chunks, num_chunks)
        self._chunk_len = windows_per_stream * seq_len
        self._chunk_start = (np.arange(len(first_chunk)) - first_chunk) * self._chunk_len
        chunk_stop = self._chunk_start + self._chunk_len
        self._chunk_end = np.minimum(chunk_stop, dataset.lengths[self._chunk_document])
        self._length = -(-int(windows.sum()) // (num_streams * accumulate)) * accumulate
        self._pass_index = self._queue_index = self._batches_yielded = 0
        self._queue = self._shuffled_chunks()
        self._cursors = [_NO_DOCUMENT] * num_streams
        self._resumed = False

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        # Nothing changes before the first batch is requested: Lightning may call iter twice in a row.
        if not self._resumed or self._batches_yielded == self._length:
            self._batches_yielded = 0
        self._resumed = False
        while self._batches_yielded < self._length:
            self._batches_yielded += 1
            yield self._next_batch()

    def _next_batch(self) -> Batch:
        spans = []
        for i, cursor in enumerate(self._cursors):
            document, start, end = self._next_chunk() if cursor == _NO_DOCUMENT else cursor
            stop = min(start + self.seq_len, end)
            spans.append(Span(document, start, stop, start % self._chunk_len))
            self._cursors[i] = StreamCursor(document, stop, end) if stop < end else _NO_DOCUMENT
        rank_spans = spans[self.rank * self.batch_size :][: self.batch_size]
        return collate(self.dataset, self.seq_len, rank_spans, self.extras)

    def _next_chunk(self) -> StreamCursor:
        """A cursor at the start of the queue's next chunk; after the last one the next pass is shuffled."""
        if self._queue_index == len(self._queue):
            self._pass_index, self._queue_index = self._pass_index + 1, 0
            self._queue = self._shuffled_chunks()
        chunk = self._queue[self._queue_index]
        self._queue_index += 1
        return StreamCursor(
            int(self._chunk_document[chunk]), int(self._chunk_start[chunk]), int(self._chunk_end[chunk])
        )

    def _shuffled_chunks(self) -> Int64[np.ndarray, " chunks"]:
        # NumPy's raw random numbers stay the same between versions; its shuffles may not
        raw = np.random.PCG64([self.seed, self._pass_index]).random_raw(len(self._chunk_document))
        return np.argsort(raw, kind="stable").astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists, the same on every rank, under the keys that stored checkpoints have."""
        return {
            **self._data_and_settings(),
            "pass": self._pass_index,
            "position": self._queue_index,  # chunks taken from this pass's queue
            "lanes": [list(cursor) for cursor in self._cursors],  # document, start, end of every stream
            "given": self._batches_yielded,  # in this epoch
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`.

        Raises UserError for a state of other documents, batch_size, seq_len or seed, and for a cursor out of
        range.
        """
        self._check_data_and_settings(state)
        self._check_cursors(state)
        self._pass_index, self._queue_index = state["pass"], state["position"]
        self._batches_yielded = state["given"]
        self._cursors = [StreamCursor(*cursor) for cursor in state["lanes"]]
        self._queue = self._shuffled_chunks()
        self._resumed = True

    def _data_and_settings(self) -> dict[str, int]:
        """Seed, sizes and totals that must be equal for a saved state to be resumed, under the keys that
        stored checkpoints have."""
        return {
            "seed": self.seed,
            "rows_of_all_ranks": len(self._cursors),  # streams
            "window": self.seq_len,
            "documents": len(self.dataset.lengths),
            "positions": int(self.dataset.lengths.sum()),  # of all documents
        }

    def _check_data_and_settings(self, state: dict[str, Any]) -> None:
        expected = self._data_and_settings()
        changed = [key for key in expected if state.get(key) != expected[key]]
        if changed:
            raise _cannot_resume(
                ", ".join(f"{SETTINGS.get(key, key)}={expected[key]}" for key in changed),
                ", ".join(f"{SETTINGS.get(key, key)}={state.get(key)}" for key in changed),
            )

    def _check_cursors(self, state: dict[str, Any]) -> None:
        limits = {"pass": 2**63, "position": len(self._queue), "given": self._length}
        for key, maximum in limits.items():
            if type(state.get(key)) is not int or not 0 <= state[key] <= maximum:
                raise _cannot_resume(f"{key} from 0 to {maximum}", repr(state.get(key)))
        cursors = state.get("lanes")
        if (
            not isinstance(cursors, list)
            or len(cursors) != len(self._cursors)
            or not all(map(self._is_valid_cursor, cursors))
        ):
            raise _cannot_resume(
                "lanes (streams) with a position inside a document each", f"{cursors!r:.200}"
            )

    def _is_valid_cursor(self, cursor: Any) -> bool:
        if not (
            isinstance(cursor, list) and len(cursor) == 3 and all(type(field) is int for field in cursor)
        ):
            return False
        document, start, end = cursor
        if document == _NO_DOCUMENT.document:
            return StreamCursor(*cursor) == _NO_DOCUMENT
        if not 0 <= document < len(self.dataset.lengths):
            return False
        length = int(self.dataset.lengths[document])
        return 0 < start < end <= length and start % self.seq_len == 0


def _cannot_resume(expected: str, actual: str) -> UserError:
    return UserError(f"can't resume from the saved position in the data: expected {expected}, found {actual}")


class EvalLoader:
    """Evaluation: every document once, uncut, in order, each in the row with the fewest windows so far.

    There are no more rows than documents, so that a single long text isn't read beside empty rows; a row
    without documents left is padding until all are read.  The set of targets doesn't depend on batch_size or
    the number of ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seq_len: int,
        rank: int = 0,
        world_size: int = 1,
        extras: TargetExtras = NO_EXTRAS,
    ) -> None:
        windows = _count_windows(dataset, seq_len)
        batch_size = min(batch_size, -(-len(windows) // world_size))
        self.dataset, self.seq_len, self.extras = dataset, seq_len, extras
        documents_of_row: list[list[int]] = [[] for _ in range(batch_size * world_size)]
        loads = [(0, row) for row in range(batch_size * world_size)]  # heap of each row's windows
        for document, size in enumerate(windows.tolist()):
            load, row = loads[0]
            documents_of_row[row].append(document)
            heapq.heapreplace(loads, (load + size, row))
        self._length = max(load for load, _ in loads)
        self._documents_of_row = documents_of_row[rank * batch_size : (rank + 1) * batch_size]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        for spans in self.spans():
            yield collate(self.dataset, self.seq_len, spans, self.extras)

    def spans(self) -> Iterator[list[Span | None]]:
        """The spans that every row of every batch reads, in step with `iter`; None where a row is padding."""
        rows = [self._spans_of(documents) for documents in self._documents_of_row]
        for _ in range(self._length):
            yield [next(row, None) for row in rows]

    def _spans_of(self, documents: list[int]) -> Iterator[Span]:
        for document in documents:
            end = int(self.dataset.lengths[document])
            for start in range(0, end, self.seq_len):
                yield Span(document, start, min(start + self.seq_len, end), start)
