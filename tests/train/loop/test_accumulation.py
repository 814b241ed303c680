"""The gradient of a step is that of the mean loss over its targets, however they are divided into windows."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from zoo.module import IGNORE, Batch
from zoo.train.commands import train
from zoo.train.data.module import DataModule
from zoo.train.loop import trainer as loop_trainer
from zoo.train.runs import build
from zoo.train.runs.config import compose

ROWS, TIME = 8, 32
COUNTS = (32, 1, 0, 0, 7, 20, 0, 2)  # targets of each row: 33, 0, 27 and 2 of pairs, 33 and 29 of halves
WORDS = (
    "size=nano",
    "data.corpus=text",
    "data.seq_len=32",
    "data.val_bytes=150",
    "trainer.precision=64-true",
    "trainer.accelerator=cpu",
    "optim.clip=1e9",
    "val_every=100",
)


def documents(counts: Sequence[int] = COUNTS) -> Batch:
    """One window of a fresh document in each row, with that many targets."""
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(256, (2, len(counts), TIME), generator=generator)
    for row, count in enumerate(counts):
        targets[row, torch.randperm(TIME, generator=generator)[count:]] = IGNORE
    return Batch(tokens, targets, torch.ones(len(counts), dtype=torch.bool))


def split(batch: Batch, windows: int) -> list[Batch]:
    return [Batch(*parts) for parts in zip(*(part.chunk(windows) for part in batch[:3]), strict=True)]


class Windows:
    """A loader of these batches; a list would be one of several loaders."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Recorder(L.Callback):
    """The gradients of every step as the optimiser gets them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        grads = {name: weight.grad for name, weight in pl_module.named_parameters()}
        self.steps.append({name: grad.clone() for name, grad in grads.items() if grad is not None})


def recorded(zoo: Any, batches: list[Batch], *words: str) -> list[dict[str, Tensor]]:
    """The gradients of a run that reads these batches over and over."""
    recorder = Recorder()
    with zoo.monkeypatch.context() as patch:
        patch.setattr(DataModule, "train_dataloader", lambda self: Windows(batches))
        ended = zoo.run(*WORDS, f"data.batch_size={len(batches[0].tokens)}", *words, callbacks=[recorder])
    assert ended.code == 0, ended.err
    return recorder.steps


def mean_over_targets(batch: Batch, *words: str) -> dict[str, Tensor]:
    """By the definition: gradients of cross_entropy's mean over targets, at the first weights of a run."""
    L.seed_everything(0, verbose=False)
    model = build.model(compose([*WORDS, *words])).double()
    logits, _ = model.train()(batch.tokens, None)
    has_target = batch.targets != IGNORE
    torch.nn.functional.cross_entropy(logits[has_target], batch.targets[has_target]).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def check_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert sum(float(grad.abs().sum()) for grad in expected.values()) > 0


@pytest.mark.parametrize("model", ["rmt", "transformer_xl"])
def test_accumulated_windows_give_the_gradient_of_one_batch(zoo: Any, model: str) -> None:
    words, batch = (f"model={model}", "steps=1"), documents()
    (one,) = recorded(zoo, [batch], *words)
    (accumulated,) = recorded(zoo, split(batch, 4), "trainer.accumulate=4", "run_dir=accumulated", *words)
    check_equal(accumulated, one)
    check_equal(one, mean_over_targets(batch, words[0]))


def test_the_rest_of_a_pass_is_a_step_of_the_same_size(zoo: Any) -> None:
    """A pass of 3 windows, of which the first step takes 2 and the second what is left."""
    words, parts = ("model=rmt", "optim.lr=1e-30", "optim.weight_decay=0"), split(documents(), 4)[:3]
    both = Batch(*(torch.cat([getattr(part, name) for part in parts[:2]]) for name in Batch._fields[:3]))
    first, second, again = recorded(zoo, parts, "trainer.accumulate=2", "steps=3", *words)
    check_equal(first, mean_over_targets(both, words[0]))
    check_equal(second, mean_over_targets(parts[2], words[0]))
    check_equal(again, first)


def test_a_step_without_any_target_has_no_gradient(zoo: Any) -> None:
    parts = [*split(documents([0] * 4), 2), *split(documents([0, 0, 3, 5]), 2)]
    empty, half = recorded(zoo, parts, "model=rmt", "trainer.accumulate=2", "steps=2", "optim.lr=1e-30")
    assert all(not grad.any() for grad in empty.values())
    check_equal(half, mean_over_targets(parts[3], "model=rmt"))


@pytest.mark.slow
def test_ranks_give_the_gradient_of_one_batch(zoo: Any) -> None:
    """Two ranks of half the rows, at once and accumulated: run by this file as a script."""
    for accumulate in (1, 2):
        words = (f"trainer.accumulate={accumulate}", "model=rmt", "steps=1")
        command = [sys.executable, __file__, *WORDS, f"run_dir=ranks{accumulate}", *words]
        ended = subprocess.run(
            command, cwd=zoo.folder, env=zoo.env, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == 0, ended.stderr
        for rank in range(2):
            (grads,) = torch.load(zoo.folder / f"rank{rank}.pt")
            check_equal(grads, mean_over_targets(documents(), "model=rmt"))
            (zoo.folder / f"rank{rank}.pt").unlink()


def main() -> None:
    """A run of two ranks that saves its gradients: rank0.pt and rank1.pt."""
    accumulate = int(
        next(word for word in sys.argv if word.startswith("trainer.accumulate=")).partition("=")[2]
    )
    recorder, make_trainer = Recorder(), loop_trainer.make_trainer

    def make_recorded(*args: Any) -> L.Trainer:
        trainer = make_trainer(*args)
        trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
        return trainer

    def batches(data: DataModule) -> Windows:
        assert data.trainer is not None
        return Windows(split(documents(), 2 * accumulate)[data.trainer.global_rank :: 2])

    loop_trainer.make_trainer, DataModule.train_dataloader = make_recorded, batches  # type: ignore[method-assign]
    sys.argv += ["trainer.devices=2", "trainer.strategy=ddp", f"data.batch_size={ROWS // 2 // accumulate}"]
    train.main()
    rank = torch.distributed.get_rank()
    torch.save(recorder.steps, Path(f"rank{rank}.pt"))


if __name__ == "__main__":
    main()
