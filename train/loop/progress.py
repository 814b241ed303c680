"""Progress of a run: a bar on a terminal, elsewhere a line now and then, and progress.json for programs.

progress.json is written with every line, and on a terminal as often:

* `step`, `steps`: optimiser steps done, and those of the entire run
* `time`: when it was written, in UTC
* `loss`, `tokens_per_s`: of training as last logged, null before the first time; only loss targets count
* `val`: of the last validation `loss`, `accuracy` (per target) and, for text, `bits_per_byte`; `exact`, the
  share of samples of which every target was hit, where they have several; empty before the first
"""

import datetime
import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from zoo.train.loop.metrics import Metrics
from zoo.train.loop.validation_curve import SCORES
from zoo.train.runs.files import write_text
from zoo.train.runs.folder import PROGRESS_FILE
from zoo.train.tasks.base import score_names
from zoo.train.tasks.score_name import short_name

log = logging.getLogger(__name__)
LEAST_BAR = 4  # columns
SLOW_VALIDATION = 10  # seconds from which on a validation says how long it took
LINES = 20  # per run, about, where the output isn't a terminal


class ProgressReport(L.Callback):
    """Step, loss, bits per byte, tokens per second and time left; one line per validation."""

    def __init__(self, metrics: Metrics, run_dir: Path) -> None:
        self.metrics, self.run_dir = metrics, run_dir
        self.bar: Progress | None = None
        self._start, self._first_step, self._bar_step, self._line_step = 0.0, 0, 0, 0
        self._validation_start = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._start = time.perf_counter()
        self._first_step = self._bar_step = self._line_step = trainer.global_step
        log_every = self.metrics.log_every
        self._every = log_every * math.ceil(trainer.max_steps / LINES / log_every)
        if sys.stdout.isatty():
            console = Console()
            self.bar = Progress(ProgressLine(console), console=console)
            self.bar.add_task("train", total=trainer.max_steps, completed=trainer.global_step, scores=[])
            self.bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, steps = trainer.global_step, trainer.max_steps
        if not trainer.is_global_zero:
            return
        if self.bar and step != self._bar_step:
            self._bar_step = step
            self.bar.update(self.bar.task_ids[0], completed=step, scores=self._score_parts("train"))
        if step != self._line_step and (step % self._every == 0 or step == steps):
            self._line_step = step
            self._write_file(trainer)
            if not self.bar:
                spent = time.perf_counter() - self._start
                left = spent / max(1, step - self._first_step) * (steps - step)
                log.info("step %d/%d  %s  %s left", step, steps, self._scores("train"), _clock(left))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write_file(trainer)
            subject = "text" if self.metrics.task.metric == "bits_per_byte" else "samples"
            scores = self._scores("val")
            line = f"step {trainer.global_step}/{trainer.max_steps}  held-out {subject}: {scores}"
            spent = time.perf_counter() - self._validation_start
            line += f"  took {_clock(spent)}" if spent >= SLOW_VALIDATION else ""
            if self.bar:
                self.bar.console.print(line, highlight=False)
            else:
                log.info(line)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _write_file(self, trainer: L.Trainer) -> None:
        latest = self.metrics.latest
        progress = {
            "step": trainer.global_step,
            "steps": trainer.max_steps,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "loss": latest.get("train/loss"),
            "tokens_per_s": latest.get("cost/tokens_per_s"),
            "val": {tag.removeprefix("val/"): latest[tag] for tag in SCORES if tag in latest},
        }
        write_text(self.run_dir / PROGRESS_FILE, json.dumps(progress) + "\n")

    def _scores(self, split: str) -> str:
        return "  ".join(self._score_parts(split))

    def _score_parts(self, split: str) -> list[str]:
        latest, parts = self.metrics.latest, []
        if f"{split}/loss" in latest:
            parts.append(f"loss {latest[f'{split}/loss']:.3f}")
        if f"{split}/bits_per_byte" in latest:
            parts.append(f"{latest[f'{split}/bits_per_byte']:.3f} bits/byte")
        elif split == "val":
            names = score_names(self.metrics.task)
            parts += [f"{short_name(names[tag])} {latest[tag]:.1%}" for tag in names if tag in latest]
        if split == "train" and "cost/tokens_per_s" in latest:
            parts.append(f"{latest['cost/tokens_per_s']:,.0f} targets/s")
        return parts


class ProgressLine(ProgressColumn):
    """The whole line of a run's progress, as wide as the terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def render(self, task: Task) -> Text:
        left = "-:--:--" if task.time_remaining is None else _clock(task.time_remaining)
        steps = f"step {task.completed:.0f}/{task.total:.0f}"
        parts = [steps, *task.fields["scores"], f"{left} left"]
        return Text(progress_line(parts, task.percentage / 100, self.console.width - 1), no_wrap=True)


def progress_line(parts: list[str], share: float, width: int) -> str:
    """The parts with a bar behind the first one, which takes the columns that are left; where they don't fit
    even without a bar, bits per byte give way, which follow from the loss."""
    if len("  ".join(parts)) > width:
        parts = [part for part in parts if not part.endswith("bits/byte")]
    room = width - len("  ".join(parts)) - 2
    if room < LEAST_BAR:
        return "  ".join(parts)
    filled = round(share * room)
    return "  ".join([parts[0], "━" * filled + "─" * (room - filled), *parts[1:]])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
