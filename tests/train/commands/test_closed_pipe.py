"""An output that its reader has closed, as `| head` does: no traceback, exit code 141, nothing is lost."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

SWEEP = ["model=rmt", "task=lm", "size=nano", "seeds=0:1", "steps=2"]
COMMANDS = {
    "help": ["--help"],
    "unknown": ["trian"],
    "help of a command": ["compare", "--help"],
    "help of train": ["train", "--help"],
    "list": ["list", "models", "size=nano"],
    "compare": ["compare", "whole", "out=out"],
    "evaluate": ["evaluate", "run=whole", "split=val"],
    "generate": ["generate", "run=whole", "prompt=a", "tokens=4"],
    "export": ["export", "run=whole", "to=exported"],
    "bench": ["bench", "model=rmt", "size=nano", "trainer.accelerator=cpu", "lengths=16", "rounds=1"],
    "sweep": ["sweep", *SWEEP, "data.corpus=text", "data.val_bytes=150", "trainer.accelerator=cpu"],
}


def run_closed(zoo: Any, *args: str, module: str = "zoo", errors_too: bool = False) -> tuple[int, str]:
    """Exit code and standard error of a command whose output has no reader from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", module, *args],
            cwd=zoo.folder,
            env=zoo.env,
            stdout=writer,
            stderr=writer if errors_too else subprocess.PIPE,
            text=True,
            timeout=300,
        )
    finally:
        os.close(writer)
    return ended.returncode, ended.stderr or ""


FAST = ("help", "unknown", "compare")


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in COMMANDS]
)
def test_a_command_ends_without_a_traceback(zoo: Any, command: str) -> None:
    zoo.train_whole()
    code, err = run_closed(zoo, *COMMANDS[command])
    assert code == 141, err
    assert not any(word in err for word in ("Traceback", "Exception ignored", "BrokenPipe", "Logging error"))
    if command == "compare":
        assert (zoo.folder / "out/index.html").is_file()


@pytest.mark.slow
def test_a_reader_of_everything_changes_nothing(zoo: Any) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "zoo", "list", "tasks"], cwd=zoo.folder, env=zoo.env, capture_output=True
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.parametrize("errors_too", [False, True], ids=["stdout", "both"])
def test_a_run_whose_output_is_closed_from_the_start_resumes(zoo: Any, errors_too: bool) -> None:
    code, err = run_closed(zoo, *zoo.with_settings(()), module="zoo.train", errors_too=errors_too)
    assert (code, err) == (141, "" if errors_too else "interrupted; continue with resume=run\n")
    assert zoo.run("resume=run").code == 0


def test_a_run_whose_reader_ends_saves_and_stops(zoo: Any) -> None:
    process = zoo.start_process("steps=900", "val_every=900")
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=300) == 141
    assert err == "SIGPIPE: saved; continue with resume=run\n"
    step = zoo.checkpoint("run")["global_step"]
    assert 0 < step < 900
    ended = zoo.run("resume=run", f"steps={step + 1}")
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_the_signal_of_a_closed_output_is_no_second_signal(zoo: Any) -> None:
    """Ctrl-C ends both sides of `zoo train | tee log`."""
    process = zoo.start_process("steps=900", "val_every=900")
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=300), err) == (130, "SIGINT: saved; continue with resume=run\n")
