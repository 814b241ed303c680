"""Prefetching in a thread, so that a GPU doesn't wait for the next batch."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

from zoo.module import Batch
from zoo.train.data.loaders import TrainLoader

Prefetched = tuple[Batch, dict[str, Any]]  # a batch, and the loader's state after it


class Prefetcher:
    """A TrainLoader read `depth` batches ahead, into pinned memory; otherwise the same loader.

    Its `state_dict` is that after the last batch yielded: what was prefetched but not used is read again.
    """

    def __init__(self, loader: TrainLoader, depth: int = 2, pin: bool = True) -> None:
        self.loader, self.depth, self.pin = loader, depth, pin
        self._state = loader.state_dict()
        self._resumed = False
        self._worker: _Worker | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self.loader.load_state_dict(state)
        self._state, self._resumed = self.loader.state_dict(), True

    def close(self) -> None:
        """Stop the thread, if one is running."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        # Back to where the last consumer stopped; with 0 batches yielded it is a new epoch, in full.
        self.loader.load_state_dict(self._state if self._resumed else {**self._state, "given": 0})
        self._resumed = False
        self._worker = worker = _Worker(self.loader, self.depth, self.pin)
        try:
            while (prefetched := worker.get()) is not None:
                batch, self._state = prefetched
                yield batch
        finally:  # also when the consumer stops early and this generator is dropped
            worker.close()


def _pinned(batch: Batch) -> Batch:
    return batch.map_positions(lambda part: part.pin_memory())._replace(fresh=batch.fresh.pin_memory())


class _Worker:
    """The thread and its queue; `get` raises the thread's exception."""

    def __init__(self, loader: TrainLoader, depth: int, pin: bool) -> None:
        self._queue: queue.Queue[Prefetched | BaseException | None] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(loader, pin), name="read-ahead", daemon=True)
        self._thread.start()

    def _read(self, loader: TrainLoader, pin: bool) -> None:
        try:
            for batch in loader:
                ready = _pinned(batch) if pin else batch
                if not self._put((ready, loader.state_dict())):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Prefetched | BaseException | None) -> bool:
        """Add to the queue as soon as there is room; False if the thread was stopped before."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def get(self) -> Prefetched | None:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self._stop.set()
        if self._thread is not threading.current_thread():  # a generator may be collected in any thread
            self._thread.join()
