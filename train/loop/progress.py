"""What a person sees while a run trains: a bar on a terminal, a line now and then elsewhere."""

import logging
import math
import sys
import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from zoo.train.loop.metrics import Metrics

log = logging.getLogger(__name__)
LINES = 20  # about so many in a run whose output is no terminal


class ProgressReport(L.Callback):
    """Step, loss, bits per byte, tokens per second and time left; one line per validation."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.bar: Progress | None = None
        self._began, self._first, self._said = 0.0, 0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._began, self._first = time.perf_counter(), trainer.global_step
        self._said = trainer.global_step
        log_every = self.metrics.log_every
        self._every = log_every * math.ceil(trainer.max_steps / LINES / log_every)
        if sys.stdout.isatty():
            self.bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[said]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(),
            )
            self.bar.add_task("train", total=trainer.max_steps, completed=trainer.global_step, said="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, steps = trainer.global_step, trainer.max_steps
        if not trainer.is_global_zero or step == self._said:
            return
        if self.bar:
            self._said = step
            self.bar.update(self.bar.task_ids[0], completed=step, said=self._words("train"))
        elif step % self._every == 0 or step == steps:
            self._said = step
            spent = time.perf_counter() - self._began
            left = spent / max(1, step - self._first) * (steps - step)
            log.info("step %d/%d  %s  %s left", step, steps, self._words("train"), _clock(left))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            line = f"step {trainer.global_step}/{trainer.max_steps}  held-out text: {self._words('val')}"
            if self.bar:
                self.bar.console.print(line, highlight=False)
            else:
                log.info(line)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _words(self, split: str) -> str:
        latest, words = self.metrics.latest, []
        if f"{split}/loss" in latest:
            words.append(f"loss {latest[f'{split}/loss']:.3f}")
        if f"{split}/bits_per_byte" in latest:
            words.append(f"{latest[f'{split}/bits_per_byte']:.3f} bits/byte")
        elif f"{split}/accuracy" in latest:
            words.append(f"accuracy {latest[f'{split}/accuracy']:.1%}")
        if split == "train" and "cost/tokens_per_s" in latest:
            words.append(f"{latest['cost/tokens_per_s']:,.0f} tokens/s")
        return "  ".join(words)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
