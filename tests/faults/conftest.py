"""Runs as processes that can be killed at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.train.conftest import Workspace, same_checkpoints, zoo

__all__ = ["same_checkpoints", "zoo"]

SERVER = Path(__file__).with_name("server.py")


class Ran(NamedTuple):
    code: int
    out: str
    seconds: float


class Runs:
    """One process after another, each the child of a server that has imported everything."""

    def __init__(self, zoo: Workspace) -> None:
        self.zoo = zoo
        self.server = subprocess.Popen(
            [sys.executable, str(SERVER)],
            cwd=zoo.folder,
            env=zoo.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, until: Callable[[float], bool] | None = None) -> Ran:
        """A run to its end; SIGKILL as soon as `until(seconds since it began)` says so."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        if any(word.startswith("resume=") for word in words):
            time.sleep(1 - time.time() % 1)  # event files are read in the order of their names, by the second
        out = self.zoo.folder / "out"
        asked = {"words": self.zoo.with_settings(words), "out": str(out)}
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        process, began = int(self.server.stdout.readline()), time.perf_counter()
        if until is not None:
            while alive(process) and not until(time.perf_counter() - began):
                time.sleep(0.0002)
            if alive(process):
                os.kill(process, signal.SIGKILL)
        code = int(self.server.stdout.readline())
        return Ran(code, out.read_text() if out.exists() else "", time.perf_counter() - began)

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


def alive(process: int) -> bool:
    """Whether it runs: not gone, and no zombie that the server is about to bury."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def runs(zoo: Workspace) -> Iterator[Runs]:
    served = Runs(zoo)
    yield served
    served.close()
