"""Signals while nothing of Python's runs: they end the process all the same.

Python calls its handlers between two instructions of the main thread.  A rank that waits in C++ for one that
never comes executes none, so that its handlers would wait as long.  The operating system's part of a handler
does run, and writes the signal's number into a pipe (`signal.set_wakeup_fd`), from which a thread reads it.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zoo.train.runs.stop_signals import stop_signals

GRACE_S = 3.0  # a step that takes longer is no reason to end a process


class SignalWatch:
    """Ends the process on a stop signal that no handler takes in time: on the first while the ranks wait for
    one another, else on the second, as the first has the step finished and saved."""

    def __init__(self, grace_s: float = GRACE_S, end: Callable[[int], None] = os._exit) -> None:
        self.grace_s, self.end = grace_s, end
        self.message = ""
        """Printed when it ends the process."""
        self.children: Sequence[Any] = ()
        """Processes with a `pid`: ranks that this one has started, which are ended with it."""
        self.meets = False
        """True while the ranks wait for one another."""
        self._handled_at = -1.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watches during the block, in a process's main thread; elsewhere it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.message, self.children, self.meets = "interrupted", (), False
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._watch, args=[reader], daemon=True, name="signals")
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous, warn_on_full_buffer=False)
            os.close(writer)  # the thread reads the end of the pipe
            thread.join()
            os.close(reader)

    def meet(self, message: str, children: Sequence[Any] = ()) -> None:
        """From now until `met` the ranks wait for one another: nothing is there to be saved."""
        self.message, self.children, self.meets = message, children, True

    def met(self) -> None:
        self.meets = False

    def handled(self) -> None:
        """Called by every handler."""
        self._handled_at = time.monotonic()

    def _watch(self, reader: int) -> None:
        numbers = {int(number) for number in stop_signals()}
        received = 0
        while byte := os.read(reader, 1):
            if byte[0] not in numbers:
                continue
            received, arrived = received + 1, time.monotonic()
            while not self._is_handled(arrived) and time.monotonic() < arrived + self.grace_s:
                time.sleep(0.02)
            if not self._is_handled(arrived) and (self.meets or received > 1):
                self._end(byte[0])

    def _is_handled(self, arrived: float) -> bool:
        return self._handled_at >= arrived - 0.1  # a handler may be faster than this thread

    def _end(self, number: int) -> None:
        print(self.message, file=sys.stderr, flush=True)
        for child in self.children:
            with contextlib.suppress(OSError):
                os.kill(child.pid, number)
        self.end(128 + number)


WATCH = SignalWatch()
"""That of `python -m zoo.train`."""
