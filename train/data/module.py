"""The one data module: any task, cut into windows for any model."""

import logging
from collections.abc import Iterable, Sequence

import lightning as L
import torch

from zoo.errors import UserError
from zoo.module import Batch
from zoo.train.data.batches import NO_EXTRAS, TargetExtras
from zoo.train.data.curriculum import CurriculumLoader, Loader, Stage
from zoo.train.data.loaders import EvalLoader, TrainLoader
from zoo.train.data.prefetch import Prefetcher
from zoo.train.tasks.base import Dataset, SampleTask, Subset, Task
from zoo.train.tasks.lm import draw_held_out

log = logging.getLogger(__name__)


class DataModule(L.LightningDataModule):
    """A task's loaders: endless streams to train on, and every document once to evaluate."""

    def __init__(
        self,
        task: Task,
        batch_size: int,
        seq_len: int,
        segment_len: int,
        seed: int,
        val_bytes: int | None = None,
        val_samples: int | None = None,
        stages: Sequence[Stage] = (),
        train_extras: TargetExtras = NO_EXTRAS,
        val_extras: TargetExtras = NO_EXTRAS,
        accumulate: int = 1,
    ) -> None:
        """`batch_size` rows per rank; `seq_len` positions per row and step: a multiple of the model's
        segment_len, or less than one segment if every sample fits into it.  `stages`: those of a curriculum.
        `accumulate`: batches of an optimiser step.

        Validation inside a run reads held-out documents drawn by the task's seed until they hold `val_bytes`;
        every document if None.  In a task of samples it reads the first `val_samples`; all if None.
        """
        super().__init__()
        if batch_size < 1 or seq_len < 1:
            raise UserError(
                f"expected data.batch_size and data.seq_len of at least 1, found {batch_size} and {seq_len}"
            )
        for stage in stages or (Stage(0, task, batch_size, seq_len),):
            _check_window(stage, segment_len)
        self.task, self.batch_size, self.seq_len, self.seed = task, batch_size, seq_len, seed
        self.segment_len, self.val_bytes, self.val_samples = segment_len, val_bytes, val_samples
        self.stages, self.train_extras, self.val_extras = stages, train_extras, val_extras
        self.accumulate = accumulate
        self.curriculum: CurriculumLoader | None = None
        """The training loader, once there is one, of a run with a curriculum."""

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def train_dataloader(self) -> Iterable[Batch]:
        dataset = self.task.split("train")
        rank, world = self._rank_and_world()
        positions, step = int(dataset.lengths.sum()), self.batch_size * self.seq_len * world
        if positions < step:
            log.warning("training has %s positions, less than the %s a step reads", positions, f"{step:,}")
        if isinstance(self.task, SampleTask) and rank == 0:
            segments = -(-dataset.lengths // self.segment_len)
            log.info(
                "segments per training sample: least %d, mean %.1f, most %d",
                *(segments.min(), segments.mean(), segments.max()),
            )
        if self.stages:
            self.curriculum = CurriculumLoader(self._stage_loader, len(self.stages))
            return self.curriculum
        return self._loader(dataset, self.batch_size, self.seq_len, self.seed)

    def _stage_loader(self, index: int) -> Loader:
        _, task, batch_size, seq_len = self.stages[index]
        return self._loader(task.split("train"), batch_size, seq_len, self.seed + index)

    def _loader(self, dataset: Dataset, batch_size: int, seq_len: int, seed: int) -> Loader:
        ranks = self._rank_and_world()
        loader = TrainLoader(
            dataset, batch_size, seq_len, seed, *ranks, extras=self.train_extras, accumulate=self.accumulate
        )
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Prefetcher(loader) if on_gpu else loader

    def val_dataloader(self) -> Iterable[Batch]:
        return self._eval_loader(self.val_dataset(), self.val_extras)

    def test_dataloader(self) -> Iterable[Batch]:
        return self._eval_loader(self.task.split("test"), NO_EXTRAS)

    def val_dataset(self) -> Dataset:
        """The documents that validation inside a run reads."""
        dataset = self.task.split("val")
        if self.val_samples is not None:
            if not isinstance(self.task, SampleTask):
                raise UserError(
                    f"data.val_samples: {self.val_samples} has no effect on task {self.task.name}, "
                    "whose held-out text is limited by data.val_bytes"
                )
            if self.val_samples > (available := len(dataset.lengths)):
                raise UserError(
                    f"data.val_samples: expected at most task.eval_samples={available}, "
                    f"found {self.val_samples}"
                )
            return Subset(dataset, self.val_samples)
        if self.val_bytes is None or self.task.metric != "bits_per_byte":
            return dataset
        return draw_held_out(self.task, dataset, self.val_bytes)

    @property
    def val_text(self) -> bytes:
        """The bytes of `val_dataset`; empty in a task without bytes."""
        dataset = self.val_dataset()
        return b"".join(dataset.text(document) or b"" for document in range(len(dataset.lengths)))

    def _eval_loader(self, dataset: Dataset, extras: TargetExtras) -> EvalLoader:
        return EvalLoader(dataset, self.batch_size, self.seq_len, *self._rank_and_world(), extras=extras)

    def _rank_and_world(self) -> tuple[int, int]:
        """Rank and number of ranks."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def _check_window(stage: Stage, segment_len: int) -> None:
    """Raises UserError unless a stage's window is of whole segments, or its samples of one short segment."""
    seq_len = stage.seq_len
    if not seq_len % segment_len:
        return
    if seq_len < segment_len and isinstance(stage.task, SampleTask):
        longest = int(stage.task.split("train").lengths.max())
        if longest <= seq_len:
            return
    below = seq_len // segment_len * segment_len
    multiples = " or ".join(str(length) for length in (below, below + segment_len) if length)
    raise UserError(
        f"data.seq_len: expected a multiple of segment_len={segment_len}, found {seq_len}; use {multiples}"
    )
