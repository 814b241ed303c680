"""Training runs on a corpus of a few hundred bytes, in this process or in a separate one."""

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning as L
import pytest
import torch
from hydra._internal.hydra import Hydra
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from zoo.train.commands import train
from zoo.train.loop import trainer as loop_trainer
from zoo.train.runs.stop_signals import stop_signals

ROOT = Path(__file__).parents[2]
SETTINGS = (  # 3 batches a pass, so that 8 steps are nearly three of them
    "model=rmt",
    "size=nano",
    "data.corpus=text",
    "data.seq_len=32",
    "data.val_bytes=150",
    "steps=8",
    "val_every=3",
    "checkpoint_every=2",
    "trainer.accelerator=cpu",
    "trainer.log_every=1",
    "run_dir=run",
)
TEXT_TASKS = ("task=lm", "task=needle", "task=babilong")  # those that read data.corpus
UNUSED_COUNTERS = {
    "epoch",
    "epoch_progress",
    "epoch_loop.val_loop.batch_progress",
    "validate_loop",
}
BEARTYPE_RNG = "python"  # beartype draws from it at every check of a list
TIMED = {
    "train_s",
    "wall_s",
    "pending_s",
    "tokens_per_s",
    "eval_tokens_per_s",
    "cost/tokens_per_s",
    "cost/peak_gib",
    "resources/training targets per second",
    "resources/peak memory (GiB)",
}


class KilledError(BaseException):
    """Stands for SIGKILL inside this process: no code of ours that runs after it may save anything."""


class Completed(NamedTuple):
    """A finished command: its exit code ("killed" after a KilledError) and what it printed."""

    code: Any
    out: str
    err: str


class AtStep(L.Callback):
    """Calls a function at one hook, once, when that many optimiser steps are done."""

    def __init__(self, hook: str, step: int, action: Callable[[L.Trainer, L.LightningModule], Any]) -> None:
        def act(trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == step and not self.done:
                self.done = True
                action(trainer, pl_module)

        self.done = False
        setattr(self, hook, act)


class Workspace:
    """A folder with a corpus of five documents, in which training runs are started and read back."""

    finished: ClassVar[dict[tuple[str, ...], Path]] = {}
    """Copies of the runs of `train_whole` by their words, kept for the session."""

    AtStep, KilledError = AtStep, KilledError
    VOLATILE = TIMED | {"date", "commit", "peak_memory_bytes"}
    """Entries of metrics.json that differ between equal runs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ZOO", "PYTEST"))},
            "ZOO_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        }
        monkeypatch.chdir(folder)
        monkeypatch.setenv("ZOO_CACHE", str(folder / "cache"))
        monkeypatch.delenv("ZOO_DATA", raising=False)
        for split, sizes in {"train": (90, 130, 70), "val": (100, 80)}.items():
            (folder / "text" / split).mkdir(parents=True)
            for i, size in enumerate(sizes):
                line = f"{split} {i}: the keeper of the zoo counts what she remembers, twice a day. " * 3
                (folder / "text" / split / f"{i}.txt").write_text(line[:size])

    def with_settings(self, words: Sequence[str]) -> list[str]:
        """`words` after those SETTINGS that they don't set; alone where they resume a run."""
        if any(word.startswith("resume=") for word in words):
            return list(words)
        keys = {word.partition("=")[0] for word in words}
        if any(word.startswith("task=") and word not in TEXT_TASKS for word in words):
            keys.add("data.corpus")
        if any(word.startswith("task=") and word != "task=lm" for word in words):
            keys.add("data.val_bytes")
        return [word for word in SETTINGS if word.partition("=")[0] not in keys] + list(words)

    def run(self, *words: str, callbacks: Sequence[L.Callback] = (), as_given: bool = False) -> Completed:
        """`python -m zoo.train …` in this process, with `callbacks` after the loop's; without SETTINGS where
        `as_given`."""
        resumed = [word[7:] for word in words if word.startswith("resume=")]
        if any(map(self.has_events_of_this_second, resumed)):
            time.sleep(1 - time.time() % 1)
        make_trainer = loop_trainer.make_trainer

        def make_trainer_with_callbacks(*args: Any) -> L.Trainer:
            trainer = make_trainer(*args)
            trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
            return trainer

        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with self.monkeypatch.context() as patch, contextlib.redirect_stdout(out):
            patch.setattr(loop_trainer, "make_trainer", make_trainer_with_callbacks)
            patch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # composes again, for one unused key
            patch.setattr(sys, "argv", ["zoo train", *(words if as_given else self.with_settings(words))])
            with contextlib.redirect_stderr(err):
                try:
                    train.main()
                except SystemExit as error:
                    code = error.code
                except KilledError:
                    code = "killed"
        return Completed(code, out.getvalue(), err.getvalue())

    def has_events_of_this_second(self, run: str) -> bool:
        """True where a new event file might sort before the last: by second, process, index as text."""
        seconds = [int(path.name.split(".")[3]) for path in (self.folder / run).glob("events.*")]
        return max(seconds, default=0) >= int(time.time())

    def train_whole(self, *words: str) -> None:
        """An uninterrupted run in the folder `whole`; the same words are trained with once a session."""
        if words not in self.finished:
            assert self.run(*words, "run_dir=whole").code == 0
            copy = self.folder.parent / f"whole-{len(self.finished)}"
            self.finished[words] = shutil.copytree(self.folder / "whole", copy)
        else:
            shutil.copytree(self.finished[words], self.folder / "whole")

    def start_process(self, *words: str) -> subprocess.Popen[str]:
        """`python -m zoo.train …` as a separate process, whose lines can be read as they come."""
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "zoo.train", *self.with_settings(words)],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_process(self, *words: str) -> Completed:
        """As `start_process`, to its end."""
        process = self.start_process(*words)
        out, err = process.communicate(timeout=300)
        return Completed(process.returncode, out, err)

    def signal_process(self, signal_number: int, step: int, *words: str) -> Completed:
        """As `run_process`, with a signal sent as soon as the process reports this step."""
        process = self.start_process(*words)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(f"step {step}/"):
                process.send_signal(signal_number)
                break
        out, err = process.communicate(timeout=300)
        return Completed(process.returncode, "".join(lines) + out, err)

    def kill_at(self, hook: str, step: int) -> AtStep:
        """A callback that raises KilledError."""

        def kill(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            raise KilledError

        return AtStep(hook, step, kill)

    def metrics(self, run: str) -> dict[str, Any]:
        return json.loads((self.folder / run / "metrics.json").read_text())

    def checkpoint(self, run: str, name: str = "last.ckpt") -> dict[str, Any]:
        return torch.load(self.folder / run / "checkpoints" / name, weights_only=True)

    def scalars(self, run: str) -> dict[str, list[tuple[int, float]]]:
        """(x, value) of every tag as TensorBoard reads them, without those that depend on the clock."""
        events = self.events(run)
        tags = [tag for tag in events.Tags()["scalars"] if tag not in TIMED]
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}

    def events(self, run: str) -> EventAccumulator:
        return EventAccumulator(str(self.folder / run), size_guidance={"scalars": 0}).Reload()


def differences(result: Any, expected: Any, path: str = "") -> list[str]:
    """The entries in which two checkpoints differ in any bit, times and unused counters left out."""
    if isinstance(result, dict) and isinstance(expected, dict):
        keys = [*result, *(key for key in expected if key not in result)]
        return [
            difference
            for key in keys
            if key not in TIMED | UNUSED_COUNTERS | {BEARTYPE_RNG}
            for difference in differences(result.get(key), expected.get(key), f"{path}/{key}")
        ]
    lists = isinstance(result, (list, tuple)) and isinstance(expected, (list, tuple))
    if lists and len(result) == len(expected):
        pairs = enumerate(zip(result, expected, strict=True))
        return [difference for i, pair in pairs for difference in differences(*pair, f"{path}/{i}")]
    if isinstance(result, Tensor) and isinstance(expected, Tensor):
        return [] if result.dtype == expected.dtype and torch.equal(result, expected) else [path]
    equal = result == expected or (result != result and expected != expected)
    return [] if equal else [f"{path}: {result!r} is not {expected!r}"]


@pytest.fixture
def same_checkpoints() -> Callable[[Any, Any], list[str]]:
    return differences


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    handlers = {number: signal.getsignal(number) for number in stop_signals()}
    yield Workspace(tmp_path, monkeypatch)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in ("", "zoo.train.commands.train"):
        logger = logging.getLogger(name)
        for sink in [sink for sink in logger.handlers if type(sink).__module__ == "logging"]:
            logger.removeHandler(sink)
            sink.close()
