"""Whole runs, in this process or in one of their own, on a corpus of a few hundred bytes."""

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
COUNTERS = {
    "epoch",
    "epoch_progress",
    "epoch_loop.val_loop.batch_progress",
    "validate_loop",
}  # nobody reads these
BEARTYPES = "python"  # beartype throws them at every check of a list
CLOCKED = {
    "train_s",
    "wall_s",
    "pending_s",
    "tokens_per_s",
    "eval_tokens_per_s",
    "cost/tokens_per_s",
    "cost/peak_gib",
}


class KilledError(BaseException):
    """What SIGKILL is to a process: nothing of ours that runs after it may save anything."""


class Ended(NamedTuple):
    code: Any
    out: str
    err: str


class At(L.Callback):
    """Does something at one hook when so many optimiser steps are done, and only once."""

    def __init__(self, hook: str, step: int, do: Callable[[L.Trainer, L.LightningModule], Any]) -> None:
        def act(trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any, **named: Any) -> None:
            if trainer.global_step == step and not self.done:
                self.done = True
                do(trainer, pl_module)

        self.done = False
        setattr(self, hook, act)


class Zoo:
    """A folder with a corpus in it, from which runs are started."""

    finished: ClassVar[dict[tuple[str, ...], Path]] = {}

    At, KilledError, CLOCKED = At, KilledError, CLOCKED | {"date", "commit", "peak_memory_bytes"}

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
            for number, size in enumerate(sizes):
                line = f"{split} {number}: the keeper of the zoo counts what she remembers, twice a day. " * 3
                (folder / "text" / split / f"{number}.txt").write_text(line[:size])

    def words(self, words: Sequence[str]) -> list[str]:
        """The settings above, but for what `words` say; a resumed run has its own."""
        if any(word.startswith("resume=") for word in words):
            return list(words)
        given = {word.partition("=")[0] for word in words}
        return [word for word in SETTINGS if word.partition("=")[0] not in given] + list(words)

    def run(self, *words: str, callbacks: Sequence[L.Callback] = (), as_given: bool = False) -> Ended:
        """`python -m zoo.train …`, but in this process and with further callbacks behind its own."""

        def make_trainer(*given: Any) -> L.Trainer:
            trainer = made(*given)
            trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
            return trainer

        resumed = [word[7:] for word in words if word.startswith("resume=")]
        if any(map(self.has_events_of_this_second, resumed)):
            time.sleep(1 - time.time() % 1)
        made = loop_trainer.make_trainer
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with self.monkeypatch.context() as patch, contextlib.redirect_stdout(out):
            patch.setattr(loop_trainer, "make_trainer", make_trainer)
            patch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # composes again, for one unused key
            patch.setattr(sys, "argv", ["zoo train", *(words if as_given else self.words(words))])
            with contextlib.redirect_stderr(err):
                try:
                    train.main()
                except SystemExit as left:
                    code = left.code
                except KilledError:
                    code = "killed"
        return Ended(code, out.getvalue(), err.getvalue())

    def has_events_of_this_second(self, run: str) -> bool:
        """True where a new event file might sort before the last: by second, process, index as text."""
        seconds = [int(path.name.split(".")[3]) for path in (self.folder / run / "tb").glob("events.*")]
        return max(seconds, default=0) >= int(time.time())

    def whole(self, *words: str) -> None:
        """A run that nothing happens to, in `whole`; the same words are trained with once a session."""
        if words not in self.finished:
            assert self.run(*words, "run_dir=whole").code == 0
            kept = self.folder.parent / f"whole-{len(self.finished)}"
            self.finished[words] = shutil.copytree(self.folder / "whole", kept)
        else:
            shutil.copytree(self.finished[words], self.folder / "whole")

    def start(self, *words: str, module: str = "zoo.train") -> subprocess.Popen[str]:
        """The same in a process of its own, whose lines can be read as they come."""
        return subprocess.Popen(
            [sys.executable, "-u", "-m", module, *self.words(words)],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *words: str, module: str = "zoo.train") -> Ended:
        process = self.start(*words, module=module)
        out, err = process.communicate(timeout=300)
        return Ended(process.returncode, out, err)

    def start_and_signal(self, number: int, step: int, *words: str) -> Ended:
        """Send a signal as soon as the process says that it has done so many steps."""
        process = self.start(*words)
        assert process.stdout is not None
        out = []
        for line in process.stdout:
            out.append(line)
            if line.startswith(f"step {step}/"):
                process.send_signal(number)
                break
        rest, err = process.communicate(timeout=300)
        return Ended(process.returncode, "".join(out) + rest, err)

    def metrics(self, run: str) -> dict[str, Any]:
        return json.loads((self.folder / run / "metrics.json").read_text())

    def kill(self, hook: str, step: int) -> At:
        def killed(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            raise KilledError

        return At(hook, step, killed)

    def checkpoint(self, run: str, name: str = "last.ckpt") -> dict[str, Any]:
        return torch.load(self.folder / run / "checkpoints" / name, weights_only=True)

    def scalars(self, run: str) -> dict[str, list[tuple[int, float]]]:
        """(x, value) of every tag, as TensorBoard shows them; what a clock says is left out."""
        events = self.events(run)
        tags = [tag for tag in events.Tags()["scalars"] if tag not in CLOCKED]
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}

    def events(self, run: str) -> EventAccumulator:
        return EventAccumulator(str(self.folder / run / "tb"), size_guidance={"scalars": 0}).Reload()


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two checkpoints aren't the same bit for bit, but for what a clock says."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        return [
            found
            for key in keys
            if key not in CLOCKED | COUNTERS | {BEARTYPES}
            for found in differences(ours.get(key), theirs.get(key), f"{where}/{key}")
        ]
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [found for n, pair in pairs for found in differences(*pair, f"{where}/{n}")]
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [where]
    same = ours == theirs or (ours != ours and theirs != theirs)
    return [] if same else [f"{where}: {ours!r} is not {theirs!r}"]


@pytest.fixture
def same_checkpoints() -> Callable[[Any, Any], list[str]]:
    return differences


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zoo]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Zoo(tmp_path, monkeypatch)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in ("", "zoo.train.commands.train"):
        logger = logging.getLogger(name)
        for sink in [sink for sink in logger.handlers if type(sink).__module__ == "logging"]:
            logger.removeHandler(sink)
            sink.close()
