"""What is measured, and under which TensorBoard tags: the same for every model, x = tokens seen.

Tokens seen, loss and bits per byte count asked targets only, over all ranks.
"""

import math
import time
from collections.abc import Collection
from typing import Any

import lightning as L
import torch
from torch import Tensor

from zoo.module import IGNORE, SequenceModule
from zoo.train.runs.resources import peak_memory_bytes, state_bytes
from zoo.train.tasks.base import BUCKETS, EDGES, Task


class RunningSums:
    """Adds up numbers per batch without waiting for the device; `take` gives their total over all ranks."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, *values: Tensor) -> None:
        self.rows.append(torch.cat([value.detach().float().view(-1) for value in values]))

    def take(self, trainer: L.Trainer) -> list[float]:
        if not self.rows:
            return []
        total = torch.stack(self.rows).sum(
            0, dtype=torch.float64 if self.rows[0].device.type != "mps" else None
        )
        self.rows = []
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")
        return total.tolist()


class Metrics(L.Callback):
    """Counts, averages and logs; `latest` holds the last value of every tag."""

    def __init__(self, task: Task, log_every: int, val_every: int) -> None:
        self.task, self.log_every, self.val_every = task, log_every, val_every
        self.validated_step = 0
        self.latest: dict[str, float] = {}
        self.tokens_seen, self.train_s = (
            0.0,
            0.0,
        )  # seconds of training steps, without validation and checkpoints
        self.pending, self.pending_s = (
            [0.0, 0.0, 0.0],
            0.0,
        )  # tokens, nats and bytes since the last logged value
        self.grad_norm: Tensor | float = math.nan
        self.learning_rate = math.nan  # of the last step
        self.wall_s, self.since = 0.0, time.perf_counter()  # of all the processes that trained this run
        self._sums, self._heard = RunningSums(), RunningSums()
        self._started, self._logged_step = 0.0, -1
        self._said_in_training: Collection[str] = ()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.tokens_seen and not self.pending[0]:  # logged at this very place, where a resume purges
            self._log(trainer, {tag: said for tag, said in self.latest.items() if not tag.startswith("val/")})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._logged_step = trainer.global_step

    def validation_is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        return step != self.validated_step and (step % self.val_every == 0 or step == trainer.max_steps)

    # -- training

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        asked = (batch.targets != IGNORE).sum()
        self._sums.add(asked, outputs["nats"].sum(), self.task.byte_count(batch.targets))
        self.pending_s += time.perf_counter() - self._started
        step = trainer.global_step
        due = step % self.log_every == 0 or step == trainer.max_steps
        if due and step != self._logged_step:  # a step may be several batches
            self._logged_step = step
            self._log_training(trainer, pl_module)

    def _log_training(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        self._settle(trainer)
        (tokens, nats, bytes_), seconds = self.pending, self.pending_s
        self.pending, self.pending_s = [0.0, 0.0, 0.0], 0.0
        self.train_s += seconds
        values = {"train/loss": nats / max(tokens, 1)}
        if bytes_:
            values["train/bits_per_byte"] = nats / math.log(2) / bytes_
        values |= {
            "train/learning_rate": self.learning_rate,
            "train/grad_norm": float(self.grad_norm),
            "cost/tokens_per_s": tokens / max(seconds, 1e-9),
            "cost/peak_gib": peak_memory_bytes(pl_module.device) / 2**30,
            "cost/state_bytes": state_bytes(pl_module),
            "cost/parameters": pl_module.count_parameters(),
        }
        said = {f"memory/{name}": said for name, said in pl_module.diagnostics(pl_module.train_state).items()}
        self._said_in_training = said.keys()
        self._log(trainer, values | said)

    def _settle(self, trainer: L.Trainer) -> None:
        """Bring what ranks and devices have counted into the totals; all ranks together."""
        new = self._sums.take(trainer)
        if new:
            self.tokens_seen += new[0]
            self.pending = [old + more for old, more in zip(self.pending, new, strict=True)]

    # -- validation

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._heard, self._place = RunningSums(), torch.zeros(0, dtype=torch.long)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        asked = batch.targets != IGNORE
        if not len(self._place):
            self._place = torch.zeros(len(batch.tokens), dtype=torch.long, device=batch.tokens.device)
        self._place = torch.where(batch.fresh, 0, self._place)
        place = self._place[:, None] + torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        self._place = self._place + batch.tokens.shape[1]
        bucket = torch.bucketize(place, torch.tensor(EDGES[1:], device=place.device), right=True)[asked]
        nats, hits = outputs["nats"].float(), (outputs["hits"] & asked).sum()
        by_place = [
            torch.zeros(len(EDGES), device=place.device).index_add_(0, bucket, part[asked])
            for part in (nats, torch.ones_like(nats))
        ]
        self._heard.add(asked.sum(), nats.sum(), self.task.byte_count(batch.targets), hits, *by_place)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        self.validated_step = trainer.global_step
        self._settle(trainer)  # the x of what is logged
        tokens, nats, bytes_, hits, *by_place = self._heard.take(trainer)
        values = {"val/loss": nats / max(tokens, 1), "val/accuracy": hits / max(tokens, 1)}
        if bytes_:
            values["val/bits_per_byte"] = nats / math.log(2) / bytes_
        for bucket, total, count in zip(BUCKETS, by_place[: len(EDGES)], by_place[len(EDGES) :], strict=True):
            if count:
                values[f"val/loss_by_position/{bucket}"] = total / count
        if pl_module.val_state is not None:  # of memories that stay empty in training
            said = {
                f"memory/{name}": said for name, said in pl_module.diagnostics(pl_module.val_state).items()
            }
            values |= {tag: value for tag, value in said.items() if tag not in self._said_in_training}
        self._log(trainer, values)

    # -- both

    def _log(self, trainer: L.Trainer, values: dict[str, float]) -> None:
        self.latest |= values
        for logger in trainer.loggers:
            logger.log_metrics(values, step=int(self.tokens_seen))

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._settle(trainer)
        self.wall()
        checkpoint["metrics"] = {name: getattr(self, name) for name in self.KEPT}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for name, value in checkpoint["metrics"].items():
            setattr(self, name, value)

    def wall(self) -> float:
        """Seconds spent on this run, those of processes that were killed up to their last checkpoint."""
        now = time.perf_counter()
        self.wall_s, self.since = self.wall_s + now - self.since, now
        return self.wall_s

    KEPT = ("tokens_seen", "train_s", "wall_s", "pending", "pending_s", "latest", "validated_step")
