"""Lightning, stopped anywhere and resumed, trains on the batches that it would have trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.module import IGNORE, Batch
from zoo.train.data.loaders import TrainLoader
from zoo.train.data.module import DataModule
from zoo.train.data.prefetch import Prefetcher
from zoo.train.tasks.base import Dataset, Split, Task

STEPS, EPOCH = 14, 5


class Counting(Dataset):
    def __init__(self) -> None:
        self.lengths = np.array([8, 21, 5, 13, 30])  # 2 + 6 + 2 + 4 + 8 windows of 4 for 5 rows

    def window(self, document: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.arange(start, stop) + 1000 * document
        return tokens, tokens


class Count(Task):
    name, VERSION, vocab_size, metric = "count", 1, 5000, "accuracy"

    def split(self, name: Split) -> Dataset:
        return Counting()

    def byte_count(self, targets: Tensor) -> Tensor:
        return (targets == IGNORE).sum() * 0


class Recorder(L.LightningModule):
    """Records its batches; its weight is a hash of the batches in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.records: list[tuple[int, int, list[Any], list[Any]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        epoch = self.trainer.current_epoch
        self.records.append((epoch, batch_idx, batch.tokens.tolist(), batch.fresh.tolist()))
        return self.weight * batch.tokens.sum() % 97

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Save(L.Callback):
    """Saves a checkpoint after every batch and every validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{len(pl_module.records)}.ckpt")

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"val{len(pl_module.records)}.ckpt")


class Prefetching(DataModule):
    """Prefetches, as on a GPU."""

    def train_dataloader(self) -> Prefetcher:
        loader = super().train_dataloader()
        assert isinstance(loader, TrainLoader)
        return Prefetcher(loader, pin=False)


def fit(
    steps: int,
    data_module: type[DataModule] = DataModule,
    checkpoint: Path | None = None,
    accumulate: int = 1,
    callbacks: Sequence[L.Callback] = (),
) -> tuple[Recorder, L.Trainer]:
    model = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(model, data_module(Count(), 5, 4, 2, seed=3), ckpt_path=checkpoint)
    return model, trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data_module", [DataModule, Prefetching])
def test_resumed_after_any_step(data_module: type[DataModule], tmp_path: Path) -> None:
    model, _ = fit(STEPS, data_module, callbacks=[Save(tmp_path)])
    assert [record[:2] for record in model.records] == [divmod(step, EPOCH) for step in range(STEPS)]
    loader = TrainLoader(Counting(), 5, 4, 3)
    batches = [batch.tokens.tolist() for _ in range(3) for batch in loader]
    assert [record[2] for record in model.records] == batches[:STEPS]
    for step in range(1, STEPS) if data_module is DataModule else (2, EPOCH, EPOCH + 1):
        resumed, _ = fit(STEPS, data_module, tmp_path / f"{step}.ckpt")
        assert resumed.records == model.records[step:], step
        assert torch.equal(resumed.weight, model.weight)


@pytest.mark.filterwarnings("ignore")
def test_resumed_after_validation_and_after_the_end(tmp_path: Path) -> None:
    model, _ = fit(STEPS, callbacks=[Save(tmp_path)])
    for step in (3, 9):
        resumed, _ = fit(STEPS, checkpoint=tmp_path / f"val{step}.ckpt")
        assert resumed.records == model.records[step:]
    for step in (EPOCH - 1, EPOCH, EPOCH + 1):  # a finished run, extended
        _, trainer = fit(step)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        resumed, _ = fit(STEPS, checkpoint=tmp_path / "end.ckpt")
        assert [record[2:] for record in resumed.records] == [record[2:] for record in model.records[step:]]


@pytest.mark.filterwarnings("ignore")
def test_resumed_between_accumulated_batches(tmp_path: Path) -> None:
    model, _ = fit(6, accumulate=2, callbacks=[Save(tmp_path)])
    for batches in (2, 4, 6):
        resumed, _ = fit(6, checkpoint=tmp_path / f"{batches}.ckpt", accumulate=2)
        assert resumed.records == model.records[batches:]
