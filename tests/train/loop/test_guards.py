"""Signals and values that are not finite stop a run."""

import os
import signal
from typing import Any

import lightning as L
import pytest
import torch

from zoo.train.commands import train

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
FURTHER_SIGNALS = [(signal.SIGHUP, 129), (signal.SIGUSR1, 138)]  # a closed terminal, a scheduler's warning


def send(signum: signal.Signals) -> Any:
    return lambda trainer, pl_module: os.kill(os.getpid(), signum)


@pytest.mark.parametrize(
    ("signum", "code", "hook", "step", "saved"),
    [
        (*SIGNALS[0], "on_train_batch_start", 4, 5),  # the started step is finished
        (*SIGNALS[1], "on_validation_batch_start", 6, 6),
        (*SIGNALS[1], "on_train_batch_end", 6, 6),
        (*SIGNALS[0], "on_validation_batch_start", 8, 8),
        (*FURTHER_SIGNALS[0], "on_train_batch_start", 4, 5),
        (*FURTHER_SIGNALS[1], "on_validation_batch_start", 6, 6),
    ],
)
def test_a_signal_saves_and_prints_how_to_resume(
    zoo: Any, same_checkpoints: Any, signum: signal.Signals, code: int, hook: str, step: int, saved: int
) -> None:
    zoo.train_whole("model.dropout=0.1")
    ended = zoo.run("model.dropout=0.1", "run_dir=cut", callbacks=[zoo.AtStep(hook, step, send(signum))])
    assert ended.code == code
    assert ended.err == f"{signum.name}: saved; continue with resume=cut\n"
    assert zoo.checkpoint("cut")["global_step"] == saved
    assert not (zoo.folder / "cut" / "metrics.json").exists()
    assert signal.getsignal(signum) is train.exit_on_signal  # no longer the loop's
    assert zoo.run("resume=cut").code == 0
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []
    assert zoo.scalars("cut") == zoo.scalars("whole")


def test_a_signal_waits_for_the_end_of_an_accumulated_step(zoo: Any, same_checkpoints: Any) -> None:
    words = ("model.dropout=0.1", "trainer.accumulate=2")
    zoo.train_whole(*words)
    stop = zoo.AtStep("on_train_batch_start", 4, send(signal.SIGTERM))  # of the first of two batches
    assert zoo.run(*words, "run_dir=cut", callbacks=[stop]).code == 143
    assert zoo.checkpoint("cut")["global_step"] == 5
    assert zoo.run("resume=cut").code == 0
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []
    assert zoo.scalars("cut") == zoo.scalars("whole")


def test_a_second_signal_leaves_at_once(zoo: Any) -> None:
    twice = [zoo.AtStep("on_train_batch_start", step, send(signal.SIGINT)) for step in (4, 4)]
    ended = zoo.run(callbacks=twice)
    assert ended.code == 130
    assert zoo.checkpoint("run")["global_step"] == 4


@pytest.mark.parametrize(
    ("signum", "code", "hook"),
    [(*SIGNALS[0], "setup"), (*SIGNALS[1], "on_fit_start"), (*SIGNALS[0], "on_fit_end")],
)
def test_a_signal_outside_the_loop(
    zoo: Any, same_checkpoints: Any, hook: str, signum: signal.Signals, code: int
) -> None:
    zoo.train_whole()
    step = 8 if hook == "on_fit_end" else 0
    ended = zoo.run("run_dir=cut", callbacks=[zoo.AtStep(hook, step, send(signum))])
    assert ended.code == code
    assert ended.err == "interrupted; continue with resume=cut\n"
    assert zoo.run("resume=cut").code == 0 or hook == "on_fit_end"
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_a_signal_before_there_is_a_run(
    zoo: Any, signum: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.train.loop.trainer.validate_config", lambda cfg: os.kill(os.getpid(), signum))
    ended = zoo.run()
    named = "rmt on lm at size=nano, seed 0\n"
    assert ended == (code, named, "interrupted before the first step; nothing was saved\n")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), SIGNALS)
@pytest.mark.parametrize("resumed", [False, True])
def test_a_signal_to_a_process(
    zoo: Any, same_checkpoints: Any, signum: signal.Signals, code: int, resumed: bool
) -> None:
    words = ("model.dropout=0.1", "steps=40", "val_every=5")
    zoo.train_whole(*words)
    if resumed:
        zoo.signal_process(signal.SIGKILL, 6, *words, "run_dir=cut")
    again = ("resume=cut",) if resumed else (*words, "run_dir=cut")
    ended = zoo.signal_process(signum, 12, *again)
    assert ended.code == code
    assert ended.err == f"{signum.name}: saved; continue with resume=cut\n"
    assert zoo.checkpoint("cut")["global_step"] in range(12, 40)
    assert zoo.run_process("resume=cut").code == 0
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []


def spoil(value: float) -> Any:
    """Set one weight of the second block's feed-forward to a value that is not finite."""

    def do(trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            dict(pl_module.named_parameters())["stack.1.mlp.in_proj.weight"].view(-1)[3] = value

    return do


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_stops_the_run(zoo: Any, value: float) -> None:
    ended = zoo.run(callbacks=[zoo.AtStep("on_train_batch_start", 5, spoil(value))])
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert ended.err.startswith(
        "error: step 6: the loss or a gradient is not finite; first in layer stack.1.mlp.in_proj"
    )
    assert zoo.checkpoint("run")["global_step"] == 4
    assert_finite(zoo)
    assert zoo.run("resume=run").code == 0


class AtException(L.Callback):
    """Calls a function when the loop raises."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.action(trainer, pl_module)


def spoil_gradient(trainer: Any, pl_module: Any) -> None:
    next(pl_module.parameters()).grad.view(-1)[0] = float("nan")


@pytest.mark.parametrize(
    ("words", "saved"),
    [
        (("trainer.log_every=7", "checkpoint_every=100", "val_every=100"), None),
        (("trainer.log_every=100", "checkpoint_every=2", "val_every=100"), 2),
        (("trainer.log_every=100", "checkpoint_every=100", "val_every=5"), None),
        (("trainer.log_every=100", "checkpoint_every=100", "val_every=100"), None),
    ],
    ids=["logged", "saved", "validated", "the last"],
)
def test_a_spoiled_step_is_skipped_until_it_is_reported(zoo: Any, words: tuple[str, ...], saved: Any) -> None:
    """Steps 3 and after change neither weights nor the optimiser's state, in any bit."""
    settings = ("model=transformer_xl", "model.dropout=0.1", "optim.warmup=2")
    left: dict[str, Any] = {}

    def look(trainer: Any, pl_module: Any) -> None:
        left.update(weights=pl_module.state_dict(), optimiser=trainer.optimizers[0].state_dict()["state"])

    def stop(trainer: Any, pl_module: Any) -> None:
        raise zoo.KilledError

    kill = zoo.AtStep("on_train_batch_start", 2, stop)
    save = ("checkpoint_every=2", "trainer.log_every=100", "val_every=100")
    assert zoo.run(*settings, *save, "run_dir=cut", callbacks=[kill]).code == "killed"
    expected = zoo.checkpoint("cut")
    spoil_then_look = [
        zoo.AtStep("on_after_backward", 2, spoil_gradient),
        AtException(look),
    ]
    ended = zoo.run(*settings, *words, callbacks=spoil_then_look)
    assert ended.code == 2
    assert ended.err.startswith(
        "error: step 3: the loss or a gradient is not finite; first in the backward pass"
    )
    optimiser = expected["optimizer_states"][0]["state"]
    assert left["weights"].keys() == expected["state_dict"].keys()
    for name, weight in left["weights"].items():
        assert torch.equal(weight, expected["state_dict"][name])
    for index, moments in left["optimiser"].items():
        for name, moment in moments.items():
            assert torch.equal(moment, optimiser[index][name])
    checkpoints = list((zoo.folder / "run/checkpoints").glob("*.ckpt"))
    assert [zoo.checkpoint("run")["global_step"]] == [saved] if saved else checkpoints == []


def test_a_spoiled_layer_is_named_after_later_steps(zoo: Any) -> None:
    """What the spoiled step read is kept, and not what the steps after it read."""
    words = ("trainer.log_every=100", "checkpoint_every=100", "val_every=100")
    ended = zoo.run(*words, callbacks=[zoo.AtStep("on_train_batch_start", 5, spoil(float("inf")))])
    assert ended.err.startswith(
        "error: step 6: the loss or a gradient is not finite; first in layer stack.1.mlp.in_proj"
    )


def test_an_optimiser_that_cannot_skip_is_checked_at_every_step(zoo: Any) -> None:
    zoo.monkeypatch.setattr("zoo.optim.AdamW", torch.optim.AdamW)
    steps: list[int] = []
    look = AtException(lambda trainer, pl_module: steps.append(trainer.global_step))
    words = ("trainer.log_every=100", "checkpoint_every=100", "val_every=100")
    ended = zoo.run(*words, callbacks=[zoo.AtStep("on_after_backward", 2, spoil_gradient), look])
    assert ended.err.startswith("error: step 3: the loss or a gradient is not finite")
    assert steps == [2]


def test_a_held_out_loss_that_is_not_finite(zoo: Any) -> None:
    ended = zoo.run(callbacks=[zoo.AtStep("on_train_batch_end", 8, spoil(float("nan")))])
    assert ended.code == 2
    assert ended.err.startswith("error: step 8: the held-out loss is not finite but nan. The last checkpoint")
    assert not (zoo.folder / "run/metrics.json").exists()
    assert_finite(zoo)


def assert_finite(zoo: Any) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        if (zoo.folder / "run/checkpoints" / name).exists():
            for weight in zoo.checkpoint("run", name)["state_dict"].values():
                assert weight.isfinite().all(), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "step 2: the loss or a gradient is not finite; first in layer"),
        (("optim.weight_decay=1e30",), "step 1: embed.weight is not finite; it is not saved"),
    ],
)
def test_a_learning_rate_that_explodes(zoo: Any, words: Any, message: str) -> None:
    ended = zoo.run("optim.lr=1e30", "optim.warmup=0", "checkpoint_every=1", *words)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not (zoo.folder / "run/metrics.json").exists()
    assert_finite(zoo)


def test_gradients_are_clipped_together(zoo: Any) -> None:
    norms = []

    class Watch(zoo.AtStep):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            grads = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
            norms.extend([torch.cat([grad.flatten() for grad in grads]).norm().item()] if grads else [])

    ended = zoo.run("optim.clip=0.01", callbacks=[Watch("on_exception", -1, print)])
    assert ended.code == 0
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)
    assert len(norms) == 5  # the others were cleared before a validation
    assert (
        min(value for _, value in zoo.scalars("run")["optimizer/gradient norm"]) > 0.01
    )  # logged before clipping


def test_a_signal_that_is_ignored_stays_ignored(zoo: Any) -> None:
    """nohup has a closed terminal ignored."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hangup = zoo.AtStep("on_train_batch_start", 4, lambda *_: signal.raise_signal(signal.SIGHUP))
        assert zoo.run(callbacks=[hangup]).code == 0
        assert zoo.checkpoint("run")["global_step"] == 8
    finally:
        signal.signal(signal.SIGHUP, previous)
