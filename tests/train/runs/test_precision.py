"""The precision of a run without `trainer.precision`: that of its device, recorded as what it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from zoo import composition
from zoo.errors import UserError
from zoo.train.evaluation.evaluate import evaluate
from zoo.train.evaluation.options import EvalOptions
from zoo.train.loop import trainer
from zoo.train.runs.config import compose, stored_config
from zoo.train.runs.precision import make_precision, precision_name, refuse_loss_scaler

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    before, before_cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before)
    torch.backends.cudnn.allow_tf32 = before_cudnn


@pytest.mark.parametrize(
    ("has_cuda", "words", "expected"),
    [
        (True, [], "bf16-mixed"),
        (True, ["trainer.accelerator=gpu"], "bf16-mixed"),
        (True, ["trainer.accelerator=cuda"], "bf16-mixed"),
        (True, ["trainer.accelerator=cpu"], "32-true"),
        (True, ["trainer.precision=32-true"], "32-true"),
        (True, ["trainer.precision=16"], "16-mixed"),
        (False, [], "32-true"),
        (False, ["trainer.precision=bf16-mixed"], "bf16-mixed"),
    ],
)
def test_a_gpu_trains_in_bf16_unless_a_precision_is_given(
    monkeypatch: pytest.MonkeyPatch, has_cuda: bool, words: list[str], expected: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    cfg = compose(["model=rmt", "run_dir=.", *words])
    assert precision_name(cfg) == expected
    stored = yaml.safe_load(stored_config(cfg))
    assert precision_name(OmegaConf.create(stored)) == expected, "config.yaml has what the default stands for"


def test_training_in_16_mixed_is_refused_on_a_gpu(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GradScaler doubles its factor until a gradient overflows, which ends a run; a CPU needs none."""
    with pytest.raises(UserError, match="as no run survives the overflows of 16-mixed's loss scaler on cuda"):
        refuse_loss_scaler("16-mixed", GPU)
    for name in ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-true"):
        refuse_loss_scaler(name, GPU)
    asked = []
    monkeypatch.setattr(trainer, "refuse_loss_scaler", lambda name, device: asked.append((name, device)))
    assert zoo.run("steps=2", "trainer.precision=16").code == 0
    assert asked == [("16-mixed", CPU)]


def test_config_yaml_has_the_precision_and_evaluation_and_resumption_follow_it(
    zoo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(composition, "default_precision", lambda accelerator: "bf16-mixed")
        ended = zoo.run("steps=2")
    assert ended.code == 0
    assert ended.out.splitlines()[2] == "precision bf16-mixed"
    path = zoo.folder / "run/config.yaml"
    assert yaml.safe_load(path.read_text())["trainer"]["precision"] == "bf16-mixed"
    entry = evaluate(Path("run"), EvalOptions(split="val", tokens=150))
    assert entry["precision"] == "bf16-mixed"
    resumed = zoo.run("resume=run", "steps=3")  # on a machine without a GPU
    assert "precision bf16-mixed" in resumed.out


@pytest.mark.usefixtures("matmul_precision")
def test_products_of_float32_follow_the_precision_on_a_gpu_alone() -> None:
    def in_tf32() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    make_precision("bf16-mixed", CPU)
    assert in_tf32() == ("highest", False)
    make_precision("bf16-mixed", GPU)
    assert in_tf32() == ("high", True)
    make_precision("32-true", GPU)
    assert in_tf32() == ("highest", False)
