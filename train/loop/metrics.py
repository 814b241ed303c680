"""Measurements of a run and their TensorBoard tags: the same for every model, x = tokens seen.

Tokens seen, loss and bits per byte count targets only (not IGNORE), over all ranks.
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
    """Sums of values per batch, added up without waiting for the device."""

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def add(self, *values: Tensor) -> None:
        self._batches.append(torch.cat([value.detach().float().view(-1) for value in values]))

    def pop_totals(self, trainer: L.Trainer) -> list[float]:
        """The totals over all ranks since the last call, [] if nothing was added; all ranks together."""
        if not self._batches:
            return []
        dtype = torch.float64 if self._batches[0].device.type != "mps" else None
        total = torch.stack(self._batches).sum(0, dtype=dtype)
        self._batches = []
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")
        return total.tolist()


class Metrics(L.Callback):
    """Counts, averages and logs; `latest` holds the last value of every tag."""

    SAVED = ("tokens_seen", "train_s", "wall_s", "pending", "pending_s", "latest", "validated_step")
    """Attributes that a checkpoint holds, under these names."""

    def __init__(self, task: Task, log_every: int, val_every: int) -> None:
        self.task, self.log_every, self.val_every = task, log_every, val_every
        self.validated_step = 0
        self.latest: dict[str, float] = {}
        self.tokens_seen = 0.0
        self.train_s = 0.0  # seconds of training steps, without validation and checkpoints
        self.pending = [0.0, 0.0, 0.0]  # tokens, nats and bytes since the last logged value
        self.pending_s = 0.0
        self.grad_norm: Tensor | float = math.nan
        self.learning_rate = math.nan  # of the last step
        self.wall_s, self.since = 0.0, time.perf_counter()  # of all the processes that trained this run
        self._train_sums, self._val_sums = RunningSums(), RunningSums()
        self._step_start, self._logged_step = 0.0, -1
        self._train_diagnostics: Collection[str] = ()
        self._position = torch.zeros(0, dtype=torch.long)  # in each row's document, of its next token

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.tokens_seen and not self.pending[0]:  # the logger purges what was logged at just this step
            training = {tag: value for tag, value in self.latest.items() if not tag.startswith("val/")}
            self._log(trainer, training)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._logged_step = trainer.global_step

    def validation_is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        return step != self.validated_step and (step % self.val_every == 0 or step == trainer.max_steps)

    # -- training

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        num_targets = (batch.targets != IGNORE).sum()
        self._train_sums.add(num_targets, outputs["nats"].sum(), self.task.byte_count(batch.targets))
        self.pending_s += time.perf_counter() - self._step_start
        step = trainer.global_step
        due = step % self.log_every == 0 or step == trainer.max_steps
        if due and step != self._logged_step:  # a step may be several batches
            self._logged_step = step
            self._log_training(trainer, pl_module)

    def _log_training(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        self._collect_train_sums(trainer)
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
        diagnostics = _diagnostics(pl_module, pl_module.train_state)
        self._train_diagnostics = diagnostics.keys()
        self._log(trainer, values | diagnostics)

    def _collect_train_sums(self, trainer: L.Trainer) -> None:
        """Add the sums since the last call to `tokens_seen` and `pending`; all ranks together."""
        if totals := self._train_sums.pop_totals(trainer):
            self.tokens_seen += totals[0]
            self.pending = [old + new for old, new in zip(self.pending, totals, strict=True)]

    # -- validation

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._val_sums, self._position = RunningSums(), torch.zeros(0, dtype=torch.long)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        targets_mask = batch.targets != IGNORE
        rows, seq_len = batch.tokens.shape
        device = batch.tokens.device
        if not len(self._position):
            self._position = torch.zeros(rows, dtype=torch.long, device=device)
        self._position = torch.where(batch.fresh, 0, self._position)
        positions = self._position[:, None] + torch.arange(seq_len, device=device)
        self._position = self._position + seq_len
        bucket = torch.bucketize(positions, torch.tensor(EDGES[1:], device=device), right=True)[targets_mask]
        nats, hits = outputs["nats"].float(), (outputs["hits"] & targets_mask).sum()
        by_bucket = [
            torch.zeros(len(EDGES), device=device).index_add_(0, bucket, values[targets_mask])
            for values in (nats, torch.ones_like(nats))
        ]
        num_bytes = self.task.byte_count(batch.targets)
        self._val_sums.add(targets_mask.sum(), nats.sum(), num_bytes, hits, *by_bucket)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        self.validated_step = trainer.global_step
        self._collect_train_sums(trainer)  # tokens_seen is the x of what is logged
        tokens, nats, bytes_, hits, *by_bucket = self._val_sums.pop_totals(trainer)
        values = {"val/loss": nats / max(tokens, 1), "val/accuracy": hits / max(tokens, 1)}
        if bytes_:
            values["val/bits_per_byte"] = nats / math.log(2) / bytes_
        losses, counts = by_bucket[: len(EDGES)], by_bucket[len(EDGES) :]
        for bucket, loss, count in zip(BUCKETS, losses, counts, strict=True):
            if count:
                values[f"val/loss_by_position/{bucket}"] = loss / count
        if pl_module.val_state is not None:  # of memories that stay empty in training
            diagnostics = _diagnostics(pl_module, pl_module.val_state)
            values |= {tag: v for tag, v in diagnostics.items() if tag not in self._train_diagnostics}
        self._log(trainer, values)

    # -- both

    def _log(self, trainer: L.Trainer, values: dict[str, float]) -> None:
        self.latest |= values
        for logger in trainer.loggers:
            logger.log_metrics(values, step=int(self.tokens_seen))

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._collect_train_sums(trainer)
        self.wall()
        checkpoint["metrics"] = self.saved()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for name in self.SAVED:
            setattr(self, name, checkpoint["metrics"][name])

    def saved(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.SAVED}

    def wall(self) -> float:
        """Seconds spent on this run; those of processes that were killed up to their last checkpoint."""
        now = time.perf_counter()
        self.wall_s, self.since = self.wall_s + now - self.since, now
        return self.wall_s


def _diagnostics(model: SequenceModule, state: Any) -> dict[str, float]:
    return {f"memory/{name}": value for name, value in model.diagnostics(state).items()}
