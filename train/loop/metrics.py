"""Measurements of a run and their TensorBoard tags: the same for every model, x = targets seen.

All counts are of loss targets, over all ranks: `tokens_seen` and `tokens_per_s` count only positions whose
target isn't IGNORE, and losses are means over these.  In a task of samples, where only answers are targets,
both are far smaller than the positions that the model reads.
"""

import math
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from zoo.module import IGNORE, SequenceModule
from zoo.train.loop.exact_match import ExactMatchCounter
from zoo.train.runs.history import HistoryWriter
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

    STATE_KEYS: ClassVar = {
        "tokens_seen": "tokens_seen",
        "train_s": "train_s",
        "wall_s": "wall_s",
        "pending": "since_last_log",
        "pending_s": "seconds_since_last_log",
        "latest": "latest",
        "validated_step": "last_val_step",
    }
    """Attributes that a checkpoint holds, by their keys in it."""

    def __init__(self, task: Task, log_every: int, val_every: int, run_dir: Path) -> None:
        self.task, self.log_every, self.val_every, self.run_dir = task, log_every, val_every, run_dir
        self.last_val_step = 0
        self.further_train: dict[str, float] = {}  # other callbacks' values, logged with ours
        self.further_val: dict[str, float] = {}  # likewise, at validations
        self.latest: dict[str, float] = {}
        self.tokens_seen = 0.0  # targets only
        self.train_s = 0.0  # seconds of training steps, without validation and checkpoints
        self.since_last_log = [0.0, 0.0, 0.0]  # targets, nats and bytes
        self.seconds_since_last_log = 0.0
        self.grad_norm: Tensor | float = math.nan
        self.learning_rate = math.nan  # of the last step
        self.wall_s, self.wall_start = 0.0, time.perf_counter()  # of all the processes that trained this run
        self._train_sums, self._val_sums, self._exact_sums = RunningSums(), RunningSums(), RunningSums()
        self._exact_match = ExactMatchCounter()
        self._clock_start: float | None = None  # None while it stands
        self._logged_step, self._constants = -1, dict[str, float]()
        self._history: HistoryWriter | None = None
        self._train_diagnostic_tags: Collection[str] = ()
        self._position = torch.zeros(0, dtype=torch.long)  # of each row's next token in its document

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        resumes_at_log = self.tokens_seen and not self.since_last_log[0]
        if resumes_at_log:  # the logger purges what was logged at this step
            training = {tag: value for tag, value in self.latest.items() if not tag.startswith("val/")}
            self._log(trainer, training, "train")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        self._logged_step = trainer.global_step
        self._share(trainer)  # those of before, of a resumed run
        self._constants = {
            "cost/state_bytes": state_bytes(pl_module),
            "cost/parameters": pl_module.count_parameters(),
        }
        if trainer.is_global_zero:
            self._history = HistoryWriter(self.run_dir, trainer.global_step)

    def validation_is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        return step != self.last_val_step and (step % self.val_every == 0 or step == trainer.max_steps)

    # -- training

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._clock_start is None:
            self._clock_start = time.perf_counter()

    def _stop_clock(self) -> None:
        """Add the time since it was started, at a step, to `seconds_since_last_log`.

        The steps are measured together, since the host may be steps ahead of the device: the clock runs until
        the results of the last one have been read.
        """
        if self._clock_start is not None:
            self.seconds_since_last_log += time.perf_counter() - self._clock_start
            self._clock_start = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        num_targets = (batch.targets != IGNORE).sum()
        self._train_sums.add(num_targets, outputs["nats"].sum(), self.task.byte_count(batch.targets))
        if self.log_is_due(trainer):
            self._logged_step = trainer.global_step
            self._log_training(trainer, pl_module)

    def log_is_due(self, trainer: L.Trainer) -> bool:
        """True after a step that is logged, until it is; a step may be several batches."""
        step = trainer.global_step
        return step != self._logged_step and (step % self.log_every == 0 or step == trainer.max_steps)

    def _log_training(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        self._collect_train_sums(trainer)
        self._stop_clock()
        (targets, nats, bytes_), seconds = self.since_last_log, self.seconds_since_last_log
        self.since_last_log, self.seconds_since_last_log = [0.0, 0.0, 0.0], 0.0
        self.train_s += seconds
        values = {"train/loss": nats / max(targets, 1)}
        if bytes_:
            values["train/bits_per_byte"] = nats / math.log(2) / bytes_
        values |= {
            "train/learning_rate": self.learning_rate,
            "train/grad_norm": float(self.grad_norm),
            "cost/tokens_per_s": targets / max(seconds, 1e-9),
            "cost/peak_gib": peak_memory_bytes(pl_module.device) / 2**30,
            **self._constants,
        }
        values |= self.further_train
        diagnostics = _diagnostics(pl_module, pl_module.train_state)
        self._train_diagnostic_tags = diagnostics.keys()
        self._log(trainer, values | diagnostics, "train")

    def _collect_train_sums(self, trainer: L.Trainer) -> None:
        """Add the sums since the last call to `tokens_seen` and `since_last_log`; all ranks together."""
        if totals := self._train_sums.pop_totals(trainer):
            self.tokens_seen += totals[0]
            self.since_last_log = [old + new for old, new in zip(self.since_last_log, totals, strict=True)]

    # -- validation

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_clock()
        self._val_sums, self._exact_sums = RunningSums(), RunningSums()
        self._exact_match, self._position = ExactMatchCounter(), torch.zeros(0, dtype=torch.long)

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
        fresh = batch.fresh.to(device, non_blocking=True)
        self._position = torch.where(fresh, 0, self._position)
        positions = self._position[:, None] + torch.arange(seq_len, device=device)
        self._position = self._position + seq_len
        edges = torch.tensor(EDGES[1:], device=device)
        bucket_index = torch.bucketize(positions, edges, right=True)[targets_mask]
        nats, hits = outputs["nats"].float(), (outputs["hits"] & targets_mask).sum()
        nats_by_bucket, targets_by_bucket = (
            torch.zeros(len(EDGES), device=device).index_add_(0, bucket_index, values[targets_mask])
            for values in (nats, torch.ones_like(nats))
        )
        num_bytes = self.task.byte_count(batch.targets)
        self._val_sums.add(targets_mask.sum(), nats.sum(), num_bytes, hits, nats_by_bucket, targets_by_bucket)
        if self.task.metric == "exact":
            self._exact_sums.add(self._exact_match.add(fresh, targets_mask, outputs["hits"]))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        self.last_val_step = trainer.global_step
        self._collect_train_sums(trainer)  # tokens_seen is the x of the logged values
        targets, nats, bytes_, hits, *bucket_totals = self._val_sums.pop_totals(trainer)
        values = {"val/loss": nats / max(targets, 1), "val/accuracy": hits / max(targets, 1)}
        if bytes_:
            values["val/bits_per_byte"] = nats / math.log(2) / bytes_
        if (last_samples := self._exact_match.end()) is not None:
            self._exact_sums.add(last_samples)
            exact, samples = self._exact_sums.pop_totals(trainer)
            values["val/exact"] = exact / max(samples, 1)
        values |= self.further_val
        bucket_nats, bucket_targets = bucket_totals[: len(EDGES)], bucket_totals[len(EDGES) :]
        for bucket, total, count in zip(BUCKETS, bucket_nats, bucket_targets, strict=True):
            if count:
                values[f"val/loss_by_position/{bucket}"] = total / count
        if pl_module.val_state is not None:  # of memories that stay empty in training
            diagnostics = _diagnostics(pl_module, pl_module.val_state)
            values |= {tag: v for tag, v in diagnostics.items() if tag not in self._train_diagnostic_tags}
            costly = pl_module.costly_diagnostics(pl_module.val_state)
            values |= {f"memory/{name}": value for name, value in costly.items()}
        self._log(trainer, values, "val")

    # -- both

    def _log(self, trainer: L.Trainer, values: dict[str, float], split: str) -> None:
        self.latest |= values
        self._share(trainer)
        if self._history:
            self._history.append(split, trainer.global_step, int(self.tokens_seen), values)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=int(self.tokens_seen))

    def _share(self, trainer: L.Trainer) -> None:
        """Where Lightning's callbacks, and others, look for values to monitor."""
        trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in self.latest.items()})

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._collect_train_sums(trainer)
        self._stop_clock()
        self.update_wall_time()
        checkpoint["metrics"] = self.state()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for key, attribute in self.STATE_KEYS.items():
            setattr(self, attribute, checkpoint["metrics"][key])

    def state(self) -> dict[str, Any]:
        """The part of a checkpoint that `on_load_checkpoint` restores."""
        return {key: getattr(self, attribute) for key, attribute in self.STATE_KEYS.items()}

    def update_wall_time(self) -> float:
        """Adds the seconds since the last call to `wall_s`, and returns it.

        Of processes that were killed it counts the time up to their last checkpoint.
        """
        now = time.perf_counter()
        self.wall_s, self.wall_start = self.wall_s + now - self.wall_start, now
        return self.wall_s


def _diagnostics(model: SequenceModule, state: Any) -> dict[str, float]:
    return {f"memory/{name}": value for name, value in model.diagnostics(state).items()}
