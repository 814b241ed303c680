"""The functions of `import zoo`: they do what the commands do, and raise what these print."""

import json
import logging
import math
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.laws import untyped
from zoo.errors import UserError
from zoo.train.runs.history import FILE, HistoryWriter, read_history

WORDS = (
    "model=rmt",
    "size=nano",
    "data.corpus=text.txt",
    "data.seq_len=32",
    "data.val_bytes=150",
    "steps=6",
    "val_every=3",
    "checkpoint_every=3",
    "trainer.log_every=2",
    "trainer.accelerator=cpu",
)


def changed(*changes: str) -> list[str]:
    """WORDS, without those whose keys the changes give, and the changes."""
    keys = {change.partition("=")[0] for change in changes}
    return [*(word for word in WORDS if word.partition("=")[0] not in keys), *changes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a trained run."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "text.txt").write_text("Two keepers read one book aloud, and a third one listens. " * 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        zoo.train_run(*WORDS, "run_dir=whole")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ZOO_CACHE", str(folder / "cache"))
    return folder


# -- models


def test_list_models() -> None:
    names = zoo.list_models()
    yamls = (Path(zoo.__file__).parents[1] / "configs" / "model").glob("*.yaml")
    assert names == sorted(path.stem for path in yamls)


def test_a_model_has_the_weights_that_its_seed_decides_and_draws_from_no_one_else_s_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (zoo.build_model("model=rmt", "size=nano", f"seed={seed}") for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.embed.weight, same.embed.weight)
    assert not torch.equal(first.embed.weight, other.embed.weight)


def test_it_is_the_model_that_the_run_starts_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of a run whose learning rate is almost nothing."""
    run = zoo.train_run(
        *changed("steps=1", "optim.lr=1e-12", "optim.weight_decay=0", "seed=3", "run_dir=still")
    )
    initial = zoo.build_model(*WORDS, "seed=3").state_dict()
    for name, weight in run.model.state_dict().items():
        torch.testing.assert_close(weight.cpu(), initial[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=rtm"], "rtm.*; did you mean model=rmt?"),
        (["model=rmt", "model.memory_tokens=many"], "model.memory_tokens"),
        (["model=rmt", "model.memory_token=3"], "did you mean model.memory_tokens"),
        (["model=rmt size=nano"], 'expected arguments such as "model=rmt", "size=nano"'),
        (["resume=whole"], "resume has no effect on a model"),
        (["model=rmt", "steps=0"], "steps: expected at least 1, found 0"),
    ],
)
def test_a_wrong_word_raises_the_command_s_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        zoo.build_model(*words)


# -- runs


def test_a_run_is_what_its_folder_holds(here: Path) -> None:
    for path in ("whole", here / "whole"):
        run = zoo.load_run(path)
        assert run.folder == here / "whole"
        assert run.step == 6
        assert run.config["data"]["seq_len"] == 32
        assert run.metrics == json.loads((here / "whole" / "metrics.json").read_text())
        assert not run.model.training
        weights = torch.load(here / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert all(
            torch.equal(weight.cpu(), weights[name]) for name, weight in run.model.state_dict().items()
        )
    assert zoo.load_run("whole", checkpoint="best").step in (3, 6)
    assert repr(run) == f"Run({str(here / 'whole')!r}, checkpoint='last', step=6)"


def test_a_run_is_evaluated_with_the_checkpoint_that_it_was_loaded_with(here: Path) -> None:
    zoo.train_run(
        *changed("steps=4", "val_every=2", "checkpoint_every=2", "run_dir=overfit", "optim.lr=0.03")
    )
    for name in ("last", "best"):
        entry = zoo.evaluate_run(zoo.load_run("overfit", checkpoint=name), "split=val", "tokens=100")  # type: ignore[arg-type]
        assert entry["checkpoint"] == name
    assert zoo.evaluate_run(zoo.load_run("overfit"), "split=val", "checkpoint=best")["checkpoint"] == "best"


def test_signal_handlers_of_before_are_back(here: Path) -> None:
    def handler(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        zoo.train_run(*changed("steps=1", "run_dir=signals"))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_can_train(here: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(zoo.train_run, *changed("steps=1", "run_dir=thread")).result().step == 1


def test_history_has_every_logged_value_in_columns(here: Path) -> None:
    run = zoo.load_run("whole")
    train, val = run.history["train"], run.history["val"]
    assert train["step"] == [2, 4, 6]
    assert val["step"] == [3, 6]
    assert (
        len({len(column) for column in train.values()}) == len({len(column) for column in val.values()}) == 1
    )
    assert train["train/loss"][-1] == run.metrics["train/loss"]
    assert val["val/loss"][-1] == run.metrics["val/loss"]
    assert [point["val/loss"] for point in run.metrics["curve"]] == val["val/loss"]
    assert train["tokens_seen"] == sorted(train["tokens_seen"])


def test_a_longer_run_continues_its_history(here: Path) -> None:
    zoo.train_run(*changed("steps=4", "val_every=2", "run_dir=longer"))
    run = zoo.train_run("resume=longer", "steps=6")
    assert run.step == 6
    assert run.history["train"]["step"] == [2, 4, 6]
    assert run.history["val"]["step"] == [2, 4, 6]


def test_a_new_run_has_a_folder_of_its_own_and_a_log(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    words = [word for word in WORDS if not word.startswith("steps=")]
    first, second = (zoo.train_run(*words, "steps=1").folder for _ in range(2))
    assert first != second
    assert first.parent == second.parent == here / "runs/lm/rmt"
    assert "bits per byte on" in capsys.readouterr().out
    assert "bits per byte on" in (first / "train.log").read_text()
    assert zoo.train_run(*words, f"resume={first}", "steps=2").step == 2  # words of the run, repeated


def test_evaluation_returns_what_it_writes(here: Path) -> None:
    entry = zoo.evaluate_run(zoo.load_run("whole"), "split=val", "tokens=100")
    assert {result["axes"]["memory"] for result in entry["results"]} == {"kept", "reset"}
    stored = json.loads((here / "whole" / "evaluation.json").read_text())["evaluations"]
    assert entry in stored
    assert zoo.evaluate_run("whole", "split=val", "tokens=100")["results"][0]["nats"] > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.load_run("nowhere"), "expected a run's folder"),
        (lambda: zoo.evaluate_run("whole", "lenghts=1x"), "unknown key 'lenghts'"),
        (lambda: zoo.evaluate_run("whole", "lengths=1x"), "no effect on task lm"),
        (lambda: zoo.train_run(*WORDS, "run_dir=whole"), "holds a run already"),
        (lambda: zoo.train_run(*WORDS, "trainer.devices=2", "run_dir=two"), "expected 1 in train_run"),
        (lambda: zoo.train_run("resume=whole", "seed=9"), "seed is fixed"),
    ],
)
def test_errors(here: Path, call: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        call()
    assert message in str(raised.value)
    assert not Path("two").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=rmt", "steps=20", "steps=30"), "steps is given twice"),
        (("task=recall", "data.corpus=text.txt"), "data.corpus has no effect: task=recall doesn't read it"),
        (("task=recall", "data.val_bytes=9"), "data.val_bytes has no effect: task=recall doesn't read it"),
        *(
            (("task=passkey", f"{key}=x"), f"{key} has no effect: task.filler=original reads no corpus")
            for key in ("task.corpus", "task.root", "task.field", "data.field")
        ),
        (("task=needle", "data.val_bytes=9"), "data.val_bytes has no effect: task=needle doesn't read it"),
        (("experiment=matrix",), "experiment=matrix has many runs"),
    ],
)
def test_training_refuses_what_the_command_refuses(here: Path, words: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        zoo.train_run(*words, "size=nano", "run_dir=refused")
    with pytest.raises(UserError, match="width is given twice"):
        zoo.build_model("model.width=8", "model.width=16")
    assert not Path("refused").exists()


def test_arguments_of_other_types_are_one_line(here: Path) -> None:
    with untyped(), pytest.raises(UserError, match="expected arguments such as"):
        zoo.build_model(["model=rmt"])  # type: ignore[arg-type]
    with untyped(), pytest.raises(UserError, match="expected arguments such as"):
        zoo.evaluate_run(zoo.load_run("whole"), ["split=val"])  # type: ignore[arg-type]
    with untyped(), pytest.raises(UserError, match=r"checkpoint: expected last \| best, found first"):
        zoo.load_run("whole", checkpoint="first")  # type: ignore[arg-type]


# -- history.jsonl


def test_a_resumed_run_drops_the_rows_after_its_checkpoint_and_repeats_none(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path)
    for step in (1, 2, 3):
        writer.append("train", step, 10 * step, {"train/loss": float(step)})
    writer.append("val", 2, 20, {"val/loss": math.nan})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"split": "train", "st')  # killed while it wrote
    writer = HistoryWriter(tmp_path, step=2)
    writer.append("train", 2, 20, {"train/loss": 9.0})
    writer.append("train", 3, 30, {"train/loss": 4.0, "new": 1.0})
    history = read_history(tmp_path)
    assert history["train"]["step"] == [1, 2, 3]
    assert history["train"]["train/loss"] == [1.0, 2.0, 4.0]
    assert math.isnan(history["train"]["new"][0])
    assert history["train"]["new"][2] == 1.0
    assert history["val"]["tokens_seen"] == [20]
    assert math.isnan(history["val"]["val/loss"][0])


@pytest.mark.parametrize(
    "text", ["{}\n", "[1]\n", "x\n", '{"split": "train", "step": "2", "tokens_seen": 1}\n']
)
def test_a_damaged_history_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=f"expected {FILE} in"):
        read_history(tmp_path)
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="is damaged: expected rows of JSON"):
        read_history(tmp_path)


# -- classes that no plug-in has


def test_a_class_that_a_run_names_is_built_only_where_it_is_trusted(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(here / "whole", copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("zoo.models.rmt.RMT", "keeper_of_her_own.Mine"))
    module = tmp_path / "modules" / "keeper_of_her_own.py"
    module.parent.mkdir()
    module.write_text("from zoo.models.rmt import RMT\n\nclass Mine(RMT):\n    pass\n")
    monkeypatch.syspath_prepend(module.parent)
    with pytest.raises(UserError, match=r"if you trust it, add model._target_=keeper_of_her_own.Mine"):
        zoo.load_run(copy)
    run = zoo.load_run(copy, trust=["model._target_=keeper_of_her_own.Mine"])
    assert type(run.model).__name__ == "Mine"
    with pytest.raises(UserError, match=r"trust: expected model._target_=CLASS or .*, found model.depth=3"):
        zoo.load_run(copy, trust=["model.depth=3"])
    target = "model._target_=keeper_of_her_own.Mine"
    trained = zoo.train_run(*changed("steps=1", "val_every=1"), target, f"run_dir='{tmp_path}/my a=1/run'")
    assert type(trained.model).__name__ == "Mine"
    assert trained.folder == tmp_path / "my a=1/run"


def test_tokens_need_rows(here: Path) -> None:
    with untyped(), pytest.raises(ValueError, match=r"tokens: expected \(rows, time\), found shape \(3,\)"):
        zoo.load_run("whole").model(torch.tensor([1, 2, 3]))
