"""Prefetching: the state of the last batch yielded, and a thread that stops."""

import threading

import numpy as np
import pytest

from tests.train.data.numbered import Numbered, equal, make_loader
from zoo.train.data.loaders import TrainLoader
from zoo.train.data.prefetch import Prefetcher


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_the_state_is_that_of_the_last_batch_yielded() -> None:
    loader, prefetcher = make_loader(TrainLoader), make_loader(Prefetcher)
    for expected, batch in zip(loader, prefetcher, strict=True):
        assert equal([batch], [expected])
        assert prefetcher.state_dict() == loader.state_dict()
    assert not reader_threads()


def test_the_thread_stops() -> None:
    prefetcher = make_loader(Prefetcher)
    assert isinstance(prefetcher, Prefetcher)
    iterator = iter(prefetcher)
    next(iterator)
    assert reader_threads()
    prefetcher.close()
    assert not reader_threads()
    iterator = iter(prefetcher)
    next(iterator)
    del iterator  # dropped in the middle, as by Lightning at the end of a run
    assert not reader_threads()


def test_an_error_in_the_thread_reaches_the_consumer() -> None:
    class Broken(Numbered):
        def window(self, document: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            if start >= 8:
                raise OSError("the disk is gone")
            return super().window(document, start, stop)

    iterator = iter(Prefetcher(TrainLoader(Broken([20]), 1, 4, 0), pin=False))
    next(iterator)
    next(iterator)
    with pytest.raises(OSError, match="the disk is gone"):
        next(iterator)
    assert not reader_threads()
