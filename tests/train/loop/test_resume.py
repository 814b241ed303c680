"""A killed and resumed run equals one that was never killed: weights, memory, data, RNG, logs."""

import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
from typing import Any

import lightning as L
import pytest
import torch

from zoo.train.loop.tensorboard import TRAINING_LOSS, board_tag
from zoo.train.runs.history import read_history

MODELS = ("rmt", "transformer_xl")


def check_same(zoo: Any, differences: Any, whole: str, resumed_run: str, best: bool = True) -> None:
    """Compare checkpoints tensor by tensor, and all values in TensorBoard: none missing, none twice."""
    for name in ("last.ckpt", "best.ckpt")[: 1 + best]:
        assert differences(zoo.checkpoint(whole, name), zoo.checkpoint(resumed_run, name)) == []
    assert zoo.scalars(resumed_run) == zoo.scalars(whole)
    for tag, points in zoo.scalars(resumed_run).items():
        assert len(points) == len(dict(points)), tag
    check_history(zoo, resumed_run)
    expected, actual = zoo.metrics(whole), zoo.metrics(resumed_run)
    assert {key: expected[key] for key in expected if key not in zoo.VOLATILE} == {
        key: actual[key] for key in expected if key not in zoo.VOLATILE
    }


def check_history(zoo: Any, run: str) -> None:
    """history.jsonl has the points of TensorBoard, which stores them in 32 bits, at ascending steps."""
    series: dict[str, list[Any]] = {}
    names = zoo.metrics(run)["score_names"]
    for columns in read_history(zoo.folder / run).values():
        assert columns["step"] == sorted(set(columns["step"]))
        for tag in columns.keys() - {"step", "tokens_seen"}:
            points = zip(columns["tokens_seen"], columns[tag], strict=True)
            series.setdefault(board_tag(tag, names), []).extend(
                point for point in points if not math.isnan(point[1])
            )
    for tag, points in zoo.scalars(run).items():
        assert [x for x, _ in points] == [x for x, _ in sorted(series[tag])], tag
        assert [value for _, value in points] == pytest.approx([value for _, value in sorted(series[tag])])


@pytest.mark.parametrize(
    ("model", "hook", "step"),
    [
        ("rmt", "on_train_batch_end", 5),  # between two checkpoints, in the second pass over the corpus
        ("transformer_xl", "on_validation_batch_end", 3),
        ("rmt", "on_train_batch_end", 6),  # after a checkpoint, before its validation; a pass ends here
        ("transformer_xl", "on_train_batch_end", 7),
        ("rmt", "on_validation_end", 6),
        ("rmt", "on_train_batch_start", 1),  # before the first checkpoint
    ],
)
def test_killed_and_resumed(zoo: Any, same_checkpoints: Any, model: str, hook: str, step: int) -> None:
    words = (f"model={model}", "model.dropout=0.1")
    zoo.train_whole(*words)
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill_at(hook, step)]).code == "killed"
    assert not (zoo.folder / "cut" / "metrics.json").exists()
    ended = zoo.run("resume=cut")
    assert (ended.code, ended.err) == (0, "")
    check_same(zoo, same_checkpoints, "whole", "cut")


def test_killed_in_its_last_validation(zoo: Any, same_checkpoints: Any) -> None:
    zoo.train_whole()
    for _ in range(2):
        resumed = ("resume=cut",) if (zoo.folder / "cut").exists() else ("run_dir=cut",)
        assert zoo.run(*resumed, callbacks=[zoo.kill_at("on_validation_batch_end", 8)]).code == "killed"
    assert zoo.run("resume=cut").code == 0
    check_same(zoo, same_checkpoints, "whole", "cut", best=False)
    expected, actual = (zoo.checkpoint(run, "best.ckpt")["state_dict"] for run in ("whole", "cut"))
    assert same_checkpoints(expected, actual) == []
    again = zoo.run("resume=cut")
    assert again.code == 2
    assert again.err == "error: resume: the run has done 8 of 8 steps; steps=… makes it longer\n"


@pytest.mark.slow
def test_killed_again_and_again(zoo: Any, same_checkpoints: Any) -> None:
    words = ("model.dropout=0.1", "checkpoint_every=1")
    zoo.train_whole(*words)
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill_at("on_train_batch_start", 1)]).code == "killed"
    for step in range(2, 9):
        zoo.run("resume=cut", callbacks=[zoo.kill_at("on_train_batch_start", step)])
    check_same(zoo, same_checkpoints, "whole", "cut")


def test_accumulated_batches_are_one_step(zoo: Any, same_checkpoints: Any) -> None:
    """A pass has 3 batches, of which a step takes 2, then the 1 that is left."""
    words = ("model.dropout=0.1", "trainer.accumulate=2", "checkpoint_every=1")
    steps = []

    class Watch(zoo.AtStep):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            steps.append(trainer.global_step)

    assert zoo.run(*words, "run_dir=whole", callbacks=[Watch("on_exception", -1, print)]).code == 0
    assert steps == [3, 6, 8]
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill_at("on_train_batch_end", 5)]).code == "killed"
    assert zoo.run("resume=cut").code == 0
    check_same(zoo, same_checkpoints, "whole", "cut")


def test_killed_between_two_accumulated_batches(zoo: Any, same_checkpoints: Any) -> None:
    words = ("model.dropout=0.1", "trainer.accumulate=2", "checkpoint_every=1")
    zoo.train_whole(*words)

    class Kill(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, i: int) -> None:
            if (trainer.global_step, i) == (4, 0):
                assert any(weight.grad is not None for weight in pl_module.parameters())
                raise zoo.KilledError

    assert zoo.run(*words, "run_dir=cut", callbacks=[Kill()]).code == "killed"
    assert zoo.run("resume=cut").code == 0
    check_same(zoo, same_checkpoints, "whole", "cut")


@pytest.mark.parametrize("where", ["torch.save", "os.replace"])
def test_killed_while_it_saves(
    zoo: Any, same_checkpoints: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("model.dropout=0.1",)
    zoo.train_whole(*words)
    saved = []

    def save_or_die(content: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        if "ckpt" in str(getattr(target, "name", target)):
            saved.append(target)
            if len(saved) == 4:  # after those of step 2 and 3 and the best of step 3
                if where == "torch.save":
                    target.write(b"half of a checkpoint")
                raise zoo.KilledError
        return real(content, target, *args, **kwargs)

    real = torch.save if where == "torch.save" else os.replace
    with monkeypatch.context() as patch:
        patch.setattr(where, save_or_die)
        assert zoo.run(*words, "run_dir=cut").code == "killed"
    assert zoo.checkpoint("cut")["global_step"] == 3
    (zoo.folder / "cut" / "checkpoints" / ".last.ckpt.1").write_text("a file that SIGKILL leaves behind")
    assert zoo.run("resume=cut").code == 0
    check_same(zoo, same_checkpoints, "whole", "cut")
    assert sorted(os.listdir(zoo.folder / "cut" / "checkpoints")) == ["best.ckpt", "last.ckpt"]


def test_a_finished_run_resumes_with_more_steps(zoo: Any, same_checkpoints: Any) -> None:
    """The schedule is another one, but data, RNG and memory continue."""
    assert zoo.run("run_dir=run", "val_every=100").code == 0
    before = zoo.scalars("run")[TRAINING_LOSS]
    config, metrics = (zoo.folder / "run" / name for name in ("config.yaml", "metrics.json"))
    written = config.read_text()
    purpose = zoo.folder / "run" / "protocol.json"
    purpose.write_text('{"protocol": 1, "purpose": "score"}')
    for refused in ("steps=7", "trainer.devices=0"):
        assert zoo.run("resume=run", refused).code == 2
        assert config.read_text() == written
        assert metrics.exists()
        assert purpose.exists()
    assert (
        zoo.run("resume=run", "steps=12", callbacks=[zoo.kill_at("on_train_batch_end", 12)]).code == "killed"
    )
    assert config.read_text() == written.replace("steps: 8", "steps: 12")
    assert not metrics.exists()  # the result of 8 steps is no result of a run of 12
    assert not purpose.exists()  # nor is it a run of the sweep that it was made for
    purpose.write_text('{"protocol": 1, "purpose": "long"}')
    assert zoo.run("resume=run").code == 0
    assert purpose.exists()  # of the same steps
    assert "has done 12 of 12 steps" in zoo.run("resume=run").err
    assert config.read_text() == written.replace("steps: 8", "steps: 12")
    assert zoo.metrics("run")["steps"] == 12
    assert zoo.scalars("run")[TRAINING_LOSS][:8] == before
    assert len(zoo.scalars("run")[TRAINING_LOSS]) == 12
    assert zoo.checkpoint("run")["global_step"] == 12


def test_checkpoints_name_callbacks_as_earlier_versions_did(zoo: Any) -> None:
    """So a checkpoint that an earlier version wrote restores the best loss and the validation curve."""
    zoo.train_whole()
    assert zoo.checkpoint("whole")["callbacks"].keys() == {"Checkpoints", "Validations"}
    best = zoo.checkpoint("whole")["callbacks"]["Checkpoints"]["best"]
    assert zoo.run("resume=whole", "steps=9").code == 0
    curve = zoo.metrics("whole")["curve"]
    assert [point["step"] for point in curve] == [
        3,
        6,
        9,
    ]  # that of step 8 came after its checkpoint
    assert zoo.checkpoint("whole")["callbacks"]["Checkpoints"]["best"] <= best


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_sigkill_at_a_random_step(zoo: Any, same_checkpoints: Any, model: str) -> None:
    words = (f"model={model}", "model.dropout=0.1", "steps=40", "val_every=7", "checkpoint_every=3")
    assert zoo.run_process(*words, "run_dir=whole").code == 0
    rng = random.Random(model)
    zoo.signal_process(signal.SIGKILL, rng.randrange(1, 12), *words, "run_dir=cut")
    zoo.signal_process(signal.SIGKILL, rng.randrange(14, 25), "resume=cut")
    zoo.signal_process(signal.SIGKILL, rng.randrange(27, 39), "resume=cut")
    assert zoo.run_process("resume=cut").code == 0
    check_same(zoo, same_checkpoints, "whole", "cut")
    expected, actual = (
        zoo.checkpoint(run)["zoo"]["ranks"][0]["random"]["python"] for run in ("whole", "cut")
    )
    assert expected == actual  # beartype is off here, which uses this RNG


def free_port() -> str:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return str(door.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_two_processes(zoo: Any, same_checkpoints: Any, model: str, number: int) -> None:
    words = (
        f"model={model}",
        "model.dropout=0.1",
        "data.batch_size=2",
        "trainer.devices=2",
        "trainer.strategy=ddp",
    )
    zoo.env["MASTER_PORT"] = free_port()
    whole = zoo.run_process(*words, "run_dir=whole")
    assert whole.code == 0, whole.err
    ended = zoo.signal_process(number, 5, *words, "run_dir=cut", "steps=8")
    assert ended.code == (-9 if number == signal.SIGKILL else 143), ended.err
    resumed = zoo.run_process("resume=cut")
    assert resumed.code == 0, resumed.err
    check_same(zoo, same_checkpoints, "whole", "cut")
    ranks = zoo.checkpoint("cut")["zoo"]["ranks"]
    assert len(ranks) == 2
    assert not torch.equal(ranks[0]["random"]["torch"], ranks[1]["random"]["torch"])
    assert not torch.equal(ranks[0]["carried"][0], ranks[1]["carried"][0])
    alone = zoo.run_process("resume=cut", "trainer.devices=1", "steps=9")
    assert alone.code == 2
    assert re.search("expected .*found", alone.err)


@pytest.mark.slow
def test_two_processes_of_the_command(zoo: Any) -> None:
    """`zoo train` too starts its second rank as a run, not as `zoo` without its command."""
    zoo.env["MASTER_PORT"] = free_port()
    words = zoo.with_settings(["data.batch_size=2", "trainer.devices=2", "trainer.strategy=ddp", "steps=2"])
    command = [sys.executable, "-m", "zoo", "train", *words]
    ended = subprocess.run(command, cwd=zoo.folder, env=zoo.env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert len(zoo.checkpoint("run")["zoo"]["ranks"]) == 2
