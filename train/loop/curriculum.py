"""The length curriculum inside a run: when a stage ends, and whether a run lost what it had learned."""

import logging
import math
from itertools import accumulate
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE, SequenceModule
from zoo.train.data.module import DataModule
from zoo.train.loop.metrics import Metrics
from zoo.train.tasks.base import Subset, Task

log = logging.getLogger(__name__)

AT_CHANCE, WELL_ABOVE = 0.05, 0.25
"""Scores between chance, 0, and perfect, 1: one that is lost, and one that there was something to lose."""

Totals = list[float]
"""Of a step: targets, hits, nats and the least possible nats."""


class Curriculum(L.Callback):
    """Ends the stages: at their shares of the steps, or by a gate.

    The gate opens where training accuracy over the last `every` steps is at least `accuracy`; where the least
    possible loss is known, where in each of these steps the loss is at most `nats` above it.  A stage ends
    after `patience` steps all the same.  The gate reads from the device once in `every` steps, in all stages
    but the last; there, as with shares, nothing is read but at logging points.

    `stages`: of each begun stage its label and the step before its first one.
    """

    def __init__(self, cfg: DictConfig, data: DataModule, metrics: Metrics) -> None:
        keys = cfg.data.curriculum
        self.data, self.metrics = data, metrics
        self.every, self.accuracy, self.nats = keys.every, keys.accuracy, keys.nats
        self.patience = keys.patience or max(1, cfg.steps // 4)
        self.ends: list[int] | None = None
        """The steps after which the stages end; None with the gate."""
        if keys.shares is not None:
            self.ends = [math.ceil(share * cfg.steps - 1e-9) for share in accumulate(keys.shares)]
        self.chance = chance(data.task)
        self.stages: list[list[int]] = [[data.stages[0].label, 0]]
        self.passed: list[bool] = []
        """Of each stage that ended: whether the gate opened."""
        self.totals: list[Totals] = []
        """Of the steps since the last measurement, over all ranks."""
        self.peak = self.last = 0.0
        """The best score of the measurements in the current stage, and the last score."""
        self.had_something = False
        """True if the stage before was passed, or ended when what had been learned was lost."""
        self._pending: list[Tensor] = []  # the same, on the device and of this rank
        self._step_totals: Tensor | None = None  # of the windows of an unfinished step
        self._step = 0

    @property
    def is_last(self) -> bool:
        return len(self.stages) == len(self.data.stages)

    @property
    def collapsed(self) -> bool:
        """True if training is at chance, after more in this stage or after a stage that was passed."""
        return (self.peak >= WELL_ABOVE or self.had_something) and self.last <= AT_CHANCE

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        assert self.data.curriculum is not None
        if self.data.curriculum.stage != len(self.stages) - 1:
            raise UserError(
                f"can't resume: expected data of stage {len(self.stages) - 1}, "
                f"found {self.data.curriculum.stage}"
            )
        pl_module.counts_hits = True
        self._step = trainer.global_step
        self._describe_window()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        totals = [(batch.targets != IGNORE).sum(), outputs["hits"].sum(), outputs["nats"].sum()]
        totals.append(totals[0] * 0 if batch.bayes_nats is None else batch.bayes_nats.sum())
        of_window = torch.stack([total.float() for total in totals])
        self._step_totals = of_window if self._step_totals is None else self._step_totals + of_window
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._pending.append(self._step_totals)
        self._step_totals = None
        self._after_step(trainer, pl_module)

    def _after_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps_in_stage = self._step - self.stages[-1][1]
        if self.is_last or self.ends is not None:
            if self._step % self.metrics.log_every == 0 or self._step == trainer.max_steps:
                self._measure(trainer)
            if self.ends is not None and not self.is_last and self._step >= self.ends[len(self.stages) - 1]:
                self._advance(pl_module, passed=False)
            return
        is_open = steps_in_stage % self.every == 0 and self._measure(trainer)
        if is_open or steps_in_stage >= self.patience:
            self._advance(pl_module, is_open)

    def _measure(self, trainer: L.Trainer) -> bool:
        """Read the steps since the last measurement; True if the gate is open by them."""
        steps, self.totals = self._collect(trainer), []
        targets, hits, nats, bayes = (sum(column) for column in zip(*steps, strict=True))
        if not targets:
            return False
        if bayes:
            uninformed = self.data.task.uninformed_nats or nats / targets
            self.last = (uninformed * targets - nats) / max(uninformed * targets - bayes, 1e-9)
            is_open = all(nats - bayes <= self.nats * targets for targets, _, nats, bayes in steps)
        else:
            self.last = (hits / targets - self.chance) / (1 - self.chance)
            is_open = hits / targets >= self.accuracy
        self.peak = max(self.peak, self.last)
        return is_open

    def _collect(self, trainer: L.Trainer) -> list[Totals]:
        """The totals since the last measurement; all ranks together."""
        if self._pending:
            pending, self._pending = torch.stack(self._pending), []
            if trainer.world_size > 1:
                pending = trainer.strategy.reduce(pending, reduce_op="sum")
            self.totals += pending.tolist()
        return self.totals

    def _advance(self, pl_module: Any, passed: bool) -> None:
        assert self.data.curriculum is not None
        self.data.curriculum.advance()
        self.passed.append(passed)
        self.had_something, self.peak = passed or self.collapsed, 0.0
        self.stages.append([self.data.stages[len(self.stages)].label, self._step])
        self._pending, self.totals = [], []
        pl_module.train_state = None  # of other rows
        self._describe_window()
        _, _, rows, window = self.data.stages[len(self.stages) - 1]
        log.info("step %d: stage %d, %d rows of %d", self._step, len(self.stages), rows, window)

    def _describe_window(self) -> None:
        self.metrics.further_train["data/seq_len"] = float(self.data.stages[len(self.stages) - 1].seq_len)

    @property
    def state_key(self) -> str:
        return "Curriculum"  # in checkpoints

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._collect(trainer)

    def state_dict(self) -> dict[str, Any]:
        names = ("stages", "passed", "totals", "peak", "last", "had_something", "ends")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises UserError for stages that would end at other steps."""
        if state_dict["ends"] != self.ends:
            raise UserError(
                f"resume: steps is fixed by data.curriculum.shares: expected stages that end at "
                f"{state_dict['ends']}, found {self.ends}"
            )
        for name, value in state_dict.items():
            setattr(self, name, value)


def chance(task: Task) -> float:
    """Accuracy of a guess, or of the best constant; 0 in text."""
    if task.metric == "bits_per_byte":
        return 0.0
    baselines = task.baselines(Subset(task.split("val"), 16))
    return baselines.get("chance", baselines.get("constant", 0.0))
