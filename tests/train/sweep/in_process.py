"""Sweeps whose runs train and are evaluated in this process, one after another: no interpreter is started."""

import contextlib
import io
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.train.commands import sweep
from zoo.train.runs.files import INHERITED_LOCK
from zoo.train.sweep import scheduler
from zoo.train.sweep.process import RunProcess


class InProcess(RunProcess):
    """In place of zoo.train.sweep.process.RunProcess; `deaths` are the numbers of the starts at which the
    sweep dies with its run."""

    starts, deaths = 0, frozenset[int]()
    exit_code = 0

    def __init__(
        self, folder: Path, args: list[str], environment: Any, slot: int, lock: Any, evaluates: bool = False
    ) -> None:
        self.folder, self.slot, self.start, self.evaluates = folder, slot, time.monotonic(), evaluates
        InProcess.starts += 1
        if InProcess.starts in InProcess.deaths:
            raise DeathError
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with pytest.MonkeyPatch.context() as patch, quiet[0], quiet[1]:
            patch.setenv(INHERITED_LOCK, str(lock.fileno()))
            if evaluates:
                zoo.evaluate_run(folder, *args[1:])
            else:
                zoo.train_run(*args)

    def stop(self) -> None:
        pass


class DeathError(BaseException):
    """Stands for SIGKILL of the sweep and its run."""


def run_sweep(monkeypatch: pytest.MonkeyPatch, *words: str, deaths: frozenset[int] = frozenset()) -> Any:
    """`zoo sweep …` in this process: its exit code, or "died"."""
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "RunProcess", InProcess)
        patch.setattr(scheduler, "POLL_INTERVAL", 0)
        patch.setattr(InProcess, "starts", 0)
        patch.setattr(InProcess, "deaths", deaths)
        patch.setattr(sys, "argv", ["zoo sweep", *words])
        try:
            sweep.main()
        except SystemExit as ended:
            return ended.code or 0
        except DeathError:
            return "died"
    raise AssertionError
