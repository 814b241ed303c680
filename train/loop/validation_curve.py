"""A run's validations: held-out loss by targets seen, and reading speed."""

import time
from typing import Any

import lightning as L
import torch

from zoo.module import IGNORE
from zoo.train.loop.metrics import Metrics

SCORES = ("val/loss", "val/bits_per_byte", "val/exact", "val/accuracy", "val/beyond", "val/gain")


class ValidationCurve(L.Callback):
    """`curve` holds a point per validation, also across resumes; runs after Metrics, which measures."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.curve: list[dict[str, float]] = []
        self.tokens_per_s = 0.0
        """Held-out targets per second in the last validation, over all ranks."""
        self._start, self._num_targets = 0.0, torch.zeros(())

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()
        self._num_targets = torch.zeros((), dtype=torch.long, device=pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._num_targets += (batch.targets != IGNORE).sum()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        num_targets = self._num_targets
        if trainer.world_size > 1:
            num_targets = trainer.strategy.reduce(num_targets, reduce_op="sum")
        self.tokens_per_s = int(num_targets) / max(time.perf_counter() - self._start, 1e-9)
        latest = self.metrics.latest
        point: dict[str, float] = {"step": trainer.global_step, "tokens_seen": int(self.metrics.tokens_seen)}
        point |= {tag: latest[tag] for tag in SCORES if tag in latest}
        self.curve = [old for old in self.curve if old["step"] < point["step"]] + [point]

    @property
    def state_key(self) -> str:
        return "Validations"  # in checkpoints, also those of earlier versions

    def state_dict(self) -> dict[str, Any]:
        return {"curve": self.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve = state_dict["curve"]
