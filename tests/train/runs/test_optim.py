"""`optim=`: the zoo's optimiser, or a class from outside, under the keys that all of them share."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from zoo.errors import UserError
from zoo.train.runs import build
from zoo.train.runs.config import compose, stored_config

MODULE = """
from dataclasses import dataclass

import torch

from zoo.optim import Optim


@dataclass
class Linear(Optim):
    "SGD, whose rate falls in a line."

    momentum: float = 0.0

    def factor(self, step):
        return 1 - step / self.steps

    def make_optimizer(self, groups):
        return torch.optim.SGD(groups, momentum=self.momentum)
"""
YAML = """defaults: [adamw, _self_]
_target_: {name}.Linear
clip: 0.5
options: {{momentum: 0.5}}
"""


@pytest.fixture
def linear(zoo: Any) -> str:
    name = f"linear_{zoo.folder.name.replace('-', '_')}"
    (zoo.folder / f"{name}.py").write_text(MODULE)
    (zoo.folder / "configs/optim").mkdir(parents=True)
    (zoo.folder / "configs/optim/linear.yaml").write_text(YAML.format(name=name))
    zoo.monkeypatch.syspath_prepend(str(zoo.folder))
    return name


def test_a_plug_in_trains_and_resumes(zoo: Any, same_checkpoints: Any, linear: str) -> None:
    words = ("optim=linear", "model.dropout=0.1", "optim.lr=0.1")
    assert zoo.run(*words, "run_dir=whole").code == 0
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill_at("on_train_batch_end", 5)]).code == "killed"
    resumed = zoo.run("resume=cut", *words)
    assert (resumed.code, resumed.err) == (0, "")
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []
    rates = [rate for _, rate in zoo.scalars("whole")["optimizer/learning rate"]]
    assert rates == pytest.approx([0.1 * (1 - step / 8) for step in range(8)])
    assert "momentum_buffer" in zoo.checkpoint("whole")["optimizer_states"][0]["state"][0]
    assert zoo.run("resume=cut", "steps=9", "optim=adamw").code == 2


@pytest.mark.slow
def test_muon_with_a_constant_rate_and_a_decay_resumes(zoo: Any, same_checkpoints: Any) -> None:
    words = ("optim=muon", "optim.schedule=wsd", "model.dropout=0.1")
    assert zoo.run(*words, "run_dir=whole").code == 0
    for step in (5, 9):  # before the decay and in it
        folder = f"cut{step}"
        kill = zoo.kill_at("on_train_batch_end", step)
        assert zoo.run(*words, f"run_dir={folder}", callbacks=[kill]).code == "killed"
        resumed = zoo.run(f"resume={folder}")
        assert (resumed.code, resumed.err) == (0, "")
        assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint(folder)) == []
    assert zoo.checkpoint("whole")["global_step"] == 10


def test_the_zoos_own_is_stored_as_before(zoo: Any) -> None:
    cfg = compose(["model=rmt", "size=nano", "trainer.precision=32-true"])
    keys = OmegaConf.create(stored_config(cfg)).optim.keys()
    assert keys == {"lr", "warmup", "floor", "weight_decay", "betas", "clip"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim=linear", "optim.options.momentum=fast"], "optim.options.momentum: expected float, found"),
        (["optim=linear", "+optim.options.speed=1"], "optim.options.speed: unknown; Linear takes steps"),
        (["optim=linear", "+optim.options.lr=1"], "optim.options.lr: expected optim.lr=…"),
        (["optim._target_=zoo.models.rmt.RMT"], "optim: expected a Optim, found zoo.models.rmt.RMT"),
        (["+optim.options.momentum=1.0"], "optim.options.momentum: unknown; Optim takes steps"),
    ],
)
def test_settings_that_are_wrong(zoo: Any, linear: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build.optim(compose(["model=rmt", *words]))


def test_another_schedule_is_refused_on_resume(zoo: Any) -> None:
    assert (
        zoo.run("optim=wsd", "run_dir=whole", callbacks=[zoo.kill_at("on_train_batch_end", 5)]).code
        == "killed"
    )
    refused = zoo.run("resume=whole", "optim=adamw")
    assert refused.code == 2
    assert "its optim.schedule is wsd, found cosine" in refused.err
    assert zoo.run("resume=whole", "optim=wsd").code == 0
