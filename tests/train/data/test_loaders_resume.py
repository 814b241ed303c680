"""Lightning, stopped anywhere and resumed, trains on the batches it would have trained on."""

import lightning as L
import pytest
import torch

from zoo.module import IGNORE
from zoo.train.data.loaders import TrainLoader
from zoo.train.data.module import DataModule
from zoo.train.data.prefetch import Prefetcher
from zoo.train.tasks.base import Dataset, Task

STEPS, EPOCH = 14, 5


class Counting(Dataset):
    def __init__(self):
        self.lengths = torch.tensor([8, 21, 5, 13, 30]).numpy()  # 2 + 6 + 2 + 4 + 8 windows of 4 for 5 rows

    def window(self, document, start, stop):
        line = torch.arange(start, stop).numpy() + 1000 * document
        return line, line


class Numbers(Task):
    name, VERSION, vocab_size, metric = "numbers", 1, 5000, "accuracy"

    def split(self, name):
        return Counting()

    def byte_count(self, targets):
        return (targets == IGNORE).sum() * 0


class Diary(L.LightningModule):
    """Writes down what it is given; its weight is a hash of the batches in their order."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.lines = []

    def training_step(self, batch, batch_idx):
        self.lines.append(
            (self.trainer.current_epoch, batch_idx, batch.tokens.tolist(), batch.fresh.tolist())
        )
        return self.weight * batch.tokens.sum() % 97

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Save(L.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"{len(pl_module.lines)}.ckpt")

    def on_validation_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"val{len(pl_module.lines)}.ckpt")


class Eager(DataModule):
    """Reads ahead, as on a GPU."""

    def train_dataloader(self):
        return Prefetcher(super().train_dataloader(), pin=False)


def fit(steps, made=DataModule, ckpt=None, accumulate=1, callbacks=()):
    model = Diary()
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
    trainer.fit(model, made(Numbers(), 5, 4, 2, seed=3), ckpt_path=ckpt)
    return model, trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("made", [DataModule, Eager])
def test_resumed_after_any_step(made, tmp_path):
    model, _ = fit(STEPS, made, callbacks=[Save(tmp_path)])
    assert [line[:2] for line in model.lines] == [divmod(step, EPOCH) for step in range(STEPS)]
    alone = TrainLoader(Counting(), 5, 4, 3)
    batches = [batch.tokens.tolist() for _ in range(3) for batch in alone]
    assert [line[2] for line in model.lines] == batches[:STEPS]
    for step in range(1, STEPS) if made is DataModule else (2, EPOCH, EPOCH + 1):
        again, _ = fit(STEPS, made, tmp_path / f"{step}.ckpt")
        assert again.lines == model.lines[step:], step
        assert torch.equal(again.weight, model.weight)


@pytest.mark.filterwarnings("ignore")
def test_resumed_after_validation_and_after_the_end(tmp_path):
    model, _ = fit(STEPS, callbacks=[Save(tmp_path)])
    for step in (3, 9):
        again, _ = fit(STEPS, ckpt=tmp_path / f"val{step}.ckpt")
        assert again.lines == model.lines[step:]
    for step in (EPOCH - 1, EPOCH, EPOCH + 1):  # a finished run, made longer
        _, trainer = fit(step)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        again, _ = fit(STEPS, ckpt=tmp_path / "end.ckpt")
        assert [line[2:] for line in again.lines] == [line[2:] for line in model.lines[step:]], step


@pytest.mark.filterwarnings("ignore")
def test_resumed_between_accumulated_batches(tmp_path):
    model, _ = fit(6, accumulate=2, callbacks=[Save(tmp_path)])
    for batches in (2, 4, 6):
        again, _ = fit(6, ckpt=tmp_path / f"{batches}.ckpt", accumulate=2)
        assert again.lines == model.lines[batches:]
