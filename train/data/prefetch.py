"""Reading ahead in a thread, so that a GPU doesn't wait for the next batch."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

from zoo.module import Batch
from zoo.train.data.loaders import Lanes


class Ahead:
    """Lanes read `depth` batches ahead, into pinned memory; otherwise the same loader in every respect.

    Its `state_dict` is the place of the last batch handed out: what was read but not used is read again.
    """

    def __init__(self, lanes: Lanes, depth: int = 2, pin: bool = True) -> None:
        self.lanes, self.depth, self.pin = lanes, depth, pin
        self._state = lanes.state_dict()
        self._resumed = False
        self._reader: _Reader | None = None

    def __len__(self) -> int:
        return len(self.lanes)

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self.lanes.load_state_dict(state)
        self._state, self._resumed = self.lanes.state_dict(), True

    def close(self) -> None:
        """Stop the thread, if one is running."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        # Back to where the last reader's consumer stopped; 0 batches given makes it a whole new epoch.
        self.lanes.load_state_dict(self._state if self._resumed else {**self._state, "given": 0})
        self._resumed = False
        self._reader = reader = _Reader(self.lanes, self.depth, self.pin)
        try:
            while (found := reader.get()) is not None:
                batch, self._state = found
                yield batch
        finally:  # also when the consumer stops early and this generator is dropped
            reader.close()


class _Reader:
    """The thread and its queue; an exception in there is raised by `get`."""

    def __init__(self, lanes: Lanes, depth: int, pin: bool) -> None:
        self._found: queue.Queue[tuple[Batch, dict[str, Any]] | BaseException | None] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(lanes, pin), name="read-ahead", daemon=True)
        self._thread.start()

    def _read(self, lanes: Lanes, pin: bool) -> None:
        try:
            for batch in lanes:
                ready = Batch(*(part.pin_memory() for part in batch)) if pin else batch
                if not self._put((ready, lanes.state_dict())):
                    return
            self._put(None)
        except BaseException as problem:
            self._put(problem)

    def _put(self, found: tuple[Batch, dict[str, Any]] | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._found.put(found, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def get(self) -> tuple[Batch, dict[str, Any]] | None:
        found = self._found.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        self._stop.set()
        if self._thread is not threading.current_thread():  # a generator may be collected in any thread
            self._thread.join()
