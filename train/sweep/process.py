"""The process of one run, which holds the lock of the run's folder as long as it lives."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from zoo.train.runs.files import INHERITED_LOCK, LOCK

PROGRAM = (sys.executable, "-m", "zoo.train")
EVALUATE = (sys.executable, "-m", "zoo", "evaluate")
OUTPUT = "output.log"


@contextlib.contextmanager
def try_lock(folder: Path) -> Iterator[IO[Any] | None]:
    """The folder's lock, to hand to a process; None where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock


class RunProcess:
    """A process that trains a run or evaluates it; its output is appended to a file in the run's folder."""

    def __init__(
        self,
        folder: Path,
        args: list[str],
        environment: Mapping[str, str],
        slot: int,
        lock: IO[Any],
        evaluates: bool = False,
    ) -> None:
        self.folder, self.slot, self.start, self.evaluates = folder, slot, time.monotonic(), evaluates
        with (folder / OUTPUT).open("ab") as output:
            self.process = subprocess.Popen(
                [*(EVALUATE if evaluates else PROGRAM), *args],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, INHERITED_LOCK: str(lock.fileno())},
                pass_fds=(lock.fileno(),),
                start_new_session=True,  # Ctrl-C reaches it through the sweep, once
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal that ended it."""
        return self.process.poll()

    def stop(self) -> None:
        """Signal it to finish its step, save and exit; called again, to exit at once."""
        if self.exit_code is None:
            self.process.send_signal(signal.SIGTERM)

    def failure(self) -> str:
        """Exit code or signal, and the last line of its output."""
        code = self.process.returncode
        cause = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        lines = tail(self.folder / OUTPUT) or ["nothing"]
        return f"{cause}: {lines[-1].removeprefix('error: ')}"


def tail(path: Path, size: int = 8192) -> list[str]:
    """The last lines of a file that aren't empty."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []
