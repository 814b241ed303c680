"""Callbacks that the configuration names: a run with them resumes exactly, or says why it doesn't."""

import time
from typing import Any

import lightning as L
import pytest
import torch

from zoo.errors import UserError
from zoo.train.loop.callback_guard import same, snapshot, unsaved_attributes
from zoo.train.loop.user_callbacks import UserCallbacks
from zoo.train.runs.config import compose
from zoo.train.runs.loggers_and_callbacks import check_loggers_and_callbacks

MODULE = """
import lightning as L
import torch


class Noise(L.Callback):
    "Adds noise that grows to a weight, and keeps how often."

    def __init__(self, size: float = 1e-3, saves: bool = True, last: int = 99) -> None:
        self.size, self.saves, self.last, self.count = size, saves, last, 0

    def on_train_start(self, trainer, pl_module):
        torch.rand(3)  # those of a resumed run must not shift the others
        assert trainer.global_step == 0 or "train/loss" in trainer.callback_metrics

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.count += 1
        with torch.no_grad():
            weight = next(pl_module.parameters())
            weight += self.size * self.count * torch.randn_like(weight)
        if self.count == self.last:
            trainer.should_stop = True


class Saving(Noise):
    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]
"""


@pytest.fixture
def noise(zoo: Any) -> str:
    name = f"noise_{zoo.folder.name.replace('-', '_')}"
    (zoo.folder / f"{name}.py").write_text(MODULE)
    (zoo.folder / "configs/callbacks").mkdir(parents=True)
    for file in ("noise", "saving"):
        yaml = f"{file}:\n  _target_: {name}.{file.title()}\n  last: 99\n"
        (zoo.folder / f"configs/callbacks/{file}.yaml").write_text(yaml)
    zoo.monkeypatch.syspath_prepend(str(zoo.folder))
    return name


def test_early_stopping_resumes_to_the_same_stop(zoo: Any, same_checkpoints: Any, noise: str) -> None:
    """With a callback of the user's that saves what it keeps; both are monitored by name."""
    words = (
        "callbacks=early_stopping,saving",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=5",
        "model.dropout=0.1",
    )
    assert zoo.run(*words, "run_dir=whole").code == 0
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill_at("on_train_batch_end", 5)]).code == "killed"
    resumed = zoo.run("resume=cut")
    assert (resumed.code, resumed.err) == (0, "")
    assert "stopped by a callback after 6 of 8 steps" in resumed.out
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []
    assert zoo.scalars("cut") == zoo.scalars("whole")
    for run in ("whole", "cut"):
        assert zoo.checkpoint(run)["global_step"] == 6
        metrics = zoo.metrics(run)
        assert (metrics["stopped_by"], metrics["steps_done"], metrics["steps"]) == ("callbacks", 6, 8)
        assert [point["step"] for point in metrics["curve"]] == [3, 6]
    state = next(v for k, v in zoo.checkpoint("cut")["callbacks"].items() if k.startswith("EarlyStopping"))
    assert state["wait_count"] == 0  # of before the validation that stops
    again = zoo.run("resume=cut", "steps=20")
    assert again.code == 2
    assert again.err == "error: resume: the run is finished: a callback stopped it at step 6\n"


def test_a_callback_that_does_not_save_what_it_keeps(zoo: Any, noise: str) -> None:
    ended = zoo.run("callbacks=noise", "steps=3")
    assert ended.code == 0, ended.err
    assert "callbacks.noise.count changes and isn't in its state_dict: this run can't be resumed" in ended.out
    assert ended.out.count("can't be resumed") == 1
    refused = zoo.run("resume=run", "steps=4")
    assert refused.code == 2
    assert refused.err == (
        "error: resume: expected all that callbacks keep in their state_dict, found none of "
        "callbacks.noise.count, which training has changed\n"
    )


def test_a_stop_between_accumulated_batches_ends_the_step(zoo: Any, noise: str) -> None:
    """A step takes 2 batches, also where a pass of 3 ends: the fifth is the first of step 3."""
    ended = zoo.run("callbacks=saving", "callbacks.saving.last=5", "trainer.accumulate=2")
    assert ended.code == 0, ended.err
    assert zoo.metrics("run")["steps_done"] == 3
    assert zoo.checkpoint("run")["global_step"] == 3
    assert zoo.checkpoint("run")["callbacks"]["Saving"] == {"count": 6}
    assert [point["step"] for point in zoo.metrics("run")["curve"]] == [3]


def test_a_time_limit_ends_in_a_validation(zoo: Any) -> None:
    slow = zoo.AtStep("on_train_batch_start", 2, lambda *_: time.sleep(1.1))
    words = ("callbacks=time_limit", "callbacks.time_limit.duration=00:00:00:01", "val_every=8")
    assert zoo.run(*words, "checkpoint_every=8", callbacks=[slow]).code == 0
    done = zoo.metrics("run")["steps_done"]
    assert done <= 3
    assert zoo.checkpoint("run")["global_step"] == done
    assert [point["step"] for point in zoo.metrics("run")["curve"]] == [done]
    assert zoo.run("resume=run").err.startswith("error: resume: the run is finished: a callback stopped it")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/accuracies"),
            r"callbacks.early_stopping.monitor: expected one of val/loss, .*did you mean val/accuracy\?",
        ),
        (
            ("callbacks=early_stopping", "callbacks.early_stopping.mode=up"),
            "callbacks.early_stopping: `mode`",
        ),
        (
            ("callbacks=early_stopping", "callbacks.early_stopping.patience=soon"),
            "callbacks.early_stopping.patience: expected int, found 'soon'",
        ),
        (
            ("callbacks=time_limit", "callbacks.time_limit.duration=1h"),
            r"callbacks.time_limit: `Timer\(duration='1h'\)` is not a valid duration",
        ),
        (
            ("callbacks=time_limit", "callbacks.time_limit.duration=00:00:00:00"),
            "callbacks.time_limit.duration: expected more than 0 seconds",
        ),
    ],
)
def test_settings_that_are_wrong(zoo: Any, words: tuple[str, ...], message: str) -> None:
    from zoo.train.runs import build

    cfg = compose(["model=rmt", "size=nano", "data.corpus=text", *words])
    with pytest.raises(UserError, match=message):
        UserCallbacks(cfg, build.task(cfg))


def test_callbacks_that_lightning_has_and_the_loop_cannot_resume(zoo: Any) -> None:
    (zoo.folder / "configs/callbacks").mkdir(parents=True)
    yaml = "average:\n  _target_: lightning.pytorch.callbacks.StochasticWeightAveraging\n  swa_lrs: 0.1\n"
    (zoo.folder / "configs/callbacks/average.yaml").write_text(yaml)
    with pytest.raises(UserError, match=r"expected a class of your own, or EarlyStopping \| Timer of Light"):
        check_loggers_and_callbacks(compose(["model=rmt", "callbacks=average"]))


class Keeper(L.Callback):
    plain: Any

    def __init__(self) -> None:
        self.plain, self.tensor, self.opaque, self.left = {"a": [1.0]}, torch.zeros(2), object(), float("nan")

    def state_dict(self) -> dict[str, Any]:
        return {"plain": self.plain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.plain = state["plain"]


@pytest.mark.parametrize("attribute", ["plain", "tensor", "opaque"])
def test_what_a_state_dict_lacks_is_found(attribute: str) -> None:
    keeper = Keeper()
    start = snapshot(keeper)
    assert unsaved_attributes("keeper", keeper, start) == []
    if attribute == "plain":
        keeper.plain["a"].append(2.0)
        assert unsaved_attributes("keeper", keeper, start) == []
    else:
        setattr(keeper, attribute, torch.ones(2) if attribute == "tensor" else object())
        assert unsaved_attributes("keeper", keeper, start) == [attribute]
    assert start["plain"] == {"a": [1.0]}


def test_a_state_that_no_checkpoint_holds() -> None:
    keeper = Keeper()
    keeper.plain = {1, 2}
    with pytest.raises(UserError, match=r"callbacks.keeper.state_dict: expected tensors and plain Python"):
        unsaved_attributes("keeper", keeper, {})


@pytest.mark.parametrize(
    ("value", "other", "equal"),
    [
        (1, True, False),
        ([1, 2.0], [1, 2.0], True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),  # the order of a dict is something that is kept
        (float("nan"), float("nan"), True),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), False),
    ],
)
def test_same(value: Any, other: Any, equal: bool) -> None:
    assert same(value, other) is equal
