"""A disk that is full, wherever a command writes: one line, exit code 2, nothing half-written."""

import errno
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.train.commands.test_train import check_refused
from tests.train.conftest import Completed
from tests.train.runs.test_import_published import checkpoint, published
from zoo.__main__ import call
from zoo.train.commands.cli import disk_problem, user_message
from zoo.train.commands.train import on_thread_error
from zoo.train.corpora.catalog import open_corpus

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
COMMANDS = {
    "export": ["run=whole", "to=new/out"],
    "evaluate": ["run=whole", "split=val"],
    "compare": ["whole", "out=new/out"],
    "import": ["from=there", "format=mamba", "run_dir=new/out"],
}


def refuse(*arguments: Any) -> None:
    raise FULL


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_writes(zoo: Any, capsys: pytest.CaptureFixture[str], command: str) -> None:
    zoo.train_whole()
    checkpoint(zoo.folder / "there", *published("mamba1/model_2layer"))
    before = {path for path in zoo.folder.rglob("*") if "cache" not in path.parts}
    zoo.monkeypatch.setattr(sys, "argv", [])
    open_corpus("text", "data")  # in the cache, which names itself in its own line
    zoo.monkeypatch.setattr("os.fsync", refuse)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        call(command, COMMANDS[command])
    printed = capsys.readouterr()
    *progress, last = printed.err.splitlines(keepends=True)  # an evaluation reports what it has measured
    assert all(line.startswith("memory ") or "too little text" in line for line in progress)
    check_refused(Completed(exit_.value.code, printed.out, last), "can't write: No space left on device")
    assert {path for path in zoo.folder.rglob("*") if "cache" not in path.parts} == before


def test_a_run_that_cannot_begin(zoo: Any) -> None:
    open_corpus("text", "data")  # in the cache, which names itself in its own line
    zoo.monkeypatch.setattr("os.fsync", refuse)
    ended = zoo.run()
    assert ended.code == 2
    assert ended.err == "error: can't write: No space left on device\n"
    assert not (zoo.folder / "run").exists()


def around(error: BaseException, cause: BaseException) -> BaseException:
    try:
        raise error from cause
    except type(error) as raised:
        return raised


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        around(RuntimeError("unexpected pos 64 vs 0"), FULL),  # torch
        ValueError("I/O error: No space left on device (os error 28)"),  # safetensors
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        OSError(errno.EIO, os.strerror(errno.EIO)),
    ],
    ids=repr,
)
def test_errors_that_are_the_disks(error: BaseException) -> None:
    assert disk_problem(error)
    assert user_message(error) == f"can't write: {disk_problem(error)}"


@pytest.mark.parametrize("error", [OSError(errno.ECONNRESET, "reset"), RuntimeError("shapes"), KeyError("a")])
def test_errors_that_are_not(error: BaseException) -> None:
    assert disk_problem(error) == ""
    assert user_message(error) is None


def test_a_thread_of_tensorboard_prints_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (FULL, KeyError("a bug")):
        on_thread_error(threading.ExceptHookArgs((type(error), error, None, threading.current_thread())))
    printed = capsys.readouterr().err
    assert "a bug" in printed
    assert "No space left" not in printed


def test_a_log_file_that_cannot_be_written_costs_nothing_else(zoo: Any) -> None:
    def emit(self: Any, record: Any) -> None:
        try:
            raise FULL
        except OSError:
            self.handleError(record)

    zoo.monkeypatch.setattr("logging.FileHandler.emit", emit)
    ended = zoo.run("steps=1", "val_every=1")
    assert (ended.code, ended.err) == (0, "")
    assert Path("run/metrics.json").exists()
