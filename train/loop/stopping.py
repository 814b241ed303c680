"""The end of a run whose rate is constant: a decay once it is solved, or once it has done its steps."""

import logging
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE, SequenceModule
from zoo.train.data.module import DataModule
from zoo.train.loop.curriculum import AT_CHANCE, WELL_ABOVE, chance
from zoo.train.loop.metrics import Metrics
from zoo.train.tasks.base import Dataset

log = logging.getLogger(__name__)

Totals = dict[str, float]


class DecayTail(L.Callback):
    """Begins the decay of `optim.schedule=wsd`, and ends the run with it.

    A run is solved at the second of two validations in a row (`stop_when_solved.validations`) whose score is
    at least `at_least`; in the decay too, which then goes on as it began.  Scores `beyond` and `gain` are of
    the targets whose evidence lies at least so many positions back: accuracy, and (ln 8 - loss) / (ln 8 -
    least possible loss), where ln 8 stands for what is lost without evidence (`Task.uninformed_nats`).
    """

    def __init__(self, cfg: DictConfig, data: DataModule, metrics: Metrics) -> None:
        rule = cfg.stop_when_solved
        self.metric, self.at_least, self.validations = rule.metric, rule.at_least, rule.validations
        self.beyond, self.steps = rule.beyond, cfg.steps
        self.data, self.metrics = data, metrics
        self.decay_start, self.streak = cfg.steps, 0
        self.solved_at: int | None = None
        self.peak = self.last = 0.0  # scores of validations, between chance, 0, and perfect, 1
        self.chance = chance(data.task) if rule.metric else 0.0
        self._totals: Tensor | None = None
        if self.beyond is not None:
            check_beyond(data, self.metric, self.beyond)

    @property
    def collapsed(self) -> bool:
        """True if the last validation is at chance, after one that was well above it."""
        return self.solved_at is None and self.peak >= WELL_ABOVE and self.last <= AT_CHANCE

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._set_end(trainer, pl_module)

    def _set_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        pl_module.optim.decay_start = self.decay_start
        trainer.fit_loop.epoch_loop.max_steps = pl_module.optim.total_steps

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._totals = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.beyond is None:
            return
        mask = (batch.targets != IGNORE) & (batch.evidence_distances >= self.beyond)
        parts = [mask, outputs["hits"], outputs["nats"]]
        if batch.bayes_nats is not None:
            parts.append(batch.bayes_nats)
        totals = torch.stack([torch.where(mask, part, 0).float().sum() for part in parts])
        self._totals = totals if self._totals is None else self._totals + totals

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before Metrics, which logs the scores."""
        if self._totals is None:
            return
        totals = self._totals
        if trainer.world_size > 1:
            totals = trainer.strategy.reduce(totals, reduce_op="sum")
        targets, hits, nats, *bayes = totals.tolist()
        scores = {"val/beyond": hits / max(targets, 1)}
        uninformed = self.data.task.uninformed_nats
        if bayes and uninformed is not None:
            scores["val/gain"] = (uninformed * targets - nats) / (uninformed * targets - bayes[0])
        self.metrics.further_val = scores

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.metric is None or self.solved_at is not None:
            return
        score = self.metrics.latest[f"val/{self.metric}"]
        is_share = self.metric in ("beyond", "accuracy")
        self.last = (score - self.chance) / (1 - self.chance) if is_share else score
        self.peak = max(self.peak, self.last)
        self.streak = self.streak + 1 if score >= self.at_least else 0
        if self.streak == self.validations:
            self.solved_at = trainer.global_step
            if self.solved_at <= self.decay_start:
                self.decay_start = self.solved_at
                self._set_end(trainer, pl_module)
            log.info("step %d: solved; the rate decays until step %d", self.solved_at, trainer.max_steps)

    @property
    def state_key(self) -> str:
        return "DecayTail"  # in checkpoints

    def state_dict(self) -> dict[str, Any]:
        names = ("steps", "decay_start", "streak", "solved_at", "peak", "last")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in ("streak", "solved_at", "peak", "last"):
            setattr(self, name, state_dict[name])
        if self.solved_at is not None:  # otherwise more steps begin it later
            self.decay_start = state_dict["decay_start"]


def check_beyond(data: DataModule, metric: str | None, beyond: int) -> None:
    """Raises UserError if validation has no target whose evidence lies that far back."""
    dataset, task = data.val_dataset(), data.task
    if metric == "gain" and task.uninformed_nats is None:
        raise UserError(
            f"stop_when_solved.metric=gain: task {task.name} doesn't know its least possible loss"
        )
    longest = max(
        (farthest(dataset, document) for document in range(min(64, len(dataset.lengths)))), default=-1
    )
    if longest < beyond:
        raise UserError(
            f"stop_when_solved.beyond: expected a distance to evidence in held-out samples of {task.name}, "
            f"at most {longest}, found {beyond}"
        )


def farthest(dataset: Dataset, document: int) -> int:
    """How far back the evidence of a document's targets lies at most, -1 where that isn't known."""
    distances = dataset.evidence_distances(document, 0, int(dataset.lengths[document]))
    return -1 if distances is None else int(np.max(distances, initial=-1))


def check_not_ended(saved: Any, step: int, steps: int) -> None:
    """Raises UserError if a run whose rate decays already is to have another number of steps.

    `saved`: the part of its checkpoint that `DecayTail` wrote.
    """
    has_begun = saved["solved_at"] is not None or step > saved["decay_start"]
    if has_begun and steps != saved["steps"]:
        raise UserError(
            f"resume: steps={saved['steps']} is fixed by the run, whose rate decays since step "
            f"{saved['decay_start']}, found {steps}"
        )
