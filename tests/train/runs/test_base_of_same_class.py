"""`model.base=<run_dir>`: training that starts from a run of the same class, or from an imported one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import zoo as zoo_api
from tests.train.conftest import Workspace
from tests.train.runs.commands import call
from tests.train.runs.test_symbols import FORMAT, WORDS, checkpoint_of
from zoo.errors import UserError
from zoo.train.commands import compare, export, import_weights
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.sweep.options import SweepOptions
from zoo.train.sweep.plan import plan

FROM_WHOLE = ("model.base=whole", "steps=6", "val_every=6", "checkpoint_every=1")


def stored(run: str) -> Any:
    return OmegaConf.load(Path(run) / "config.yaml")


def moments(zoo: Workspace, run: str) -> dict[Any, Any]:
    states: dict[Any, Any] = zoo.checkpoint(run)["optimizer_states"][0]["state"]
    return states


def test_a_run_starts_from_the_weights_of_its_class(zoo: Workspace) -> None:
    """With an optimiser of its own; config.yaml says where from, and neither the base nor its folder is
    needed any more."""
    zoo.train_whole("steps=4", "val_every=4")
    before = zoo.checkpoint("whole")["state_dict"]
    ended = zoo.run("model.base=whole", "steps=1", "optim.lr=1e-9")
    assert ended.code == 0, ended.err
    for name, weight in zoo.checkpoint("run")["state_dict"].items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-6)
    assert {float(state["step"]) for state in moments(zoo, "run").values()} == {1.0}
    config, metrics = stored("run"), json.loads(Path("whole/metrics.json").read_text())
    assert config.model.base == "whole"
    assert config.base.run == "whole"
    assert config.base.step == 4
    assert config.base.commit == metrics["commit"]
    assert len(config.base.weights) == 16
    Path("whole").rename("elsewhere")
    assert zoo_api.load_run("run").step == 1
    assert zoo.run("resume=run", "steps=2", "model.base=whole").code == 0
    assert zoo.checkpoint("run")["global_step"] == 2


def test_without_model_and_size_those_of_the_base_are_meant(zoo: Workspace) -> None:
    zoo.train_whole("model=mamba", "steps=2", "val_every=2")
    words = [word for word in zoo.with_settings(["steps=1"]) if not word.startswith(("model=", "size="))]
    ended = zoo.run(*words, "model.base=whole", as_given=True)
    assert ended.code == 0, ended.err
    assert stored("run").names == stored("whole").names
    assert stored("run").model._target_ == "zoo.models.mamba.Mamba"


def test_a_resumed_run_equals_the_one_that_was_never_killed(zoo: Workspace, same_checkpoints: Any) -> None:
    zoo.train_whole("steps=4", "val_every=4")
    assert zoo.run(*FROM_WHOLE, "run_dir=entire").code == 0
    assert zoo.run(*FROM_WHOLE, callbacks=[zoo.kill_at("on_train_batch_start", 3)]).code == "killed"
    assert zoo.run("resume=run").code == 0
    assert same_checkpoints(zoo.checkpoint("entire"), zoo.checkpoint("run")) == []
    again = (*FROM_WHOLE, "run_dir=early")
    assert zoo.run(*again, callbacks=[zoo.kill_at("on_train_batch_start", 0)]).code == "killed"
    assert not list(Path("early/checkpoints").glob("*.ckpt"))
    assert zoo.run("resume=early").code == 0
    assert same_checkpoints(zoo.checkpoint("entire"), zoo.checkpoint("early")) == []


def test_a_base_that_changed_before_the_first_step_is_noticed(zoo: Workspace) -> None:
    zoo.train_whole("steps=4", "val_every=4")
    assert zoo.run(*FROM_WHOLE, callbacks=[zoo.kill_at("on_train_batch_start", 0)]).code == "killed"
    path = Path("whole/checkpoints/last.ckpt")
    content = torch.load(path, weights_only=True)
    content["state_dict"]["embed.weight"][0, 0] += 1e-6
    torch.save(content, path)
    ended = zoo.run("resume=run")
    assert ended.code == 2
    assert f"model.base: expected weights {stored('run').base.weights}, found " in ended.err


@pytest.mark.parametrize(
    "words",
    [
        ["model.dropout=0.3"],
        ["size.segment_len=8", "model.memory_tokens=2"],
        ["model.position=none"],
    ],
)
def test_what_changes_no_weight_may_differ(zoo: Workspace, words: list[str]) -> None:
    zoo.train_whole("steps=4", "val_every=4")
    model = build.model(compose(["model=rmt", "size=nano", "model.base=whole", "data.corpus=text", *words]))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, zoo.checkpoint("whole")["state_dict"][name])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model.memory_tokens=3"],
            "model.base: expected a run with memory_tokens 3, found 2 in whole/config",
        ),
        (["size.depth=3"], "model.base: expected a run with depth 3, found 2 in whole/config.yaml"),
        (["size.segment_len=8"], "model.base: expected a run with memory_tokens 1, found 2 in whole/config"),
        (["model.norm=layer"], "model.base: expected a run with norm layer, found rms in whole/config.yaml"),
        (
            ["model.position=learned"],
            "last.ckpt is of another model: weight positions expected (20, 32), found absent",
        ),
        (
            ["model=mamba"],  # names no base class that has no runs
            "model.base: Mamba starts from a run of zoo.models.mamba.Mamba, found one of zoo.models.rmt.RMT",
        ),
        (
            ["model.base=nowhere"],
            "model.base: expected a run's folder with a config.yaml, found none in 'nowh",
        ),
        (["+base=x"], "base: written by a run that starts from another; expected model.base=<run_dir>"),
        (["task=induction"], "model.base: expected a run with vocab_size 16, found 257 in whole/config.yaml"),
    ],
)
def test_what_does_not_fit_is_one_line(zoo: Workspace, words: list[str], message: str) -> None:
    zoo.train_whole("steps=4", "val_every=4")
    base = [] if any(word.startswith("model.base=") for word in words) else ["model.base=whole"]
    ended = zoo.run(*base, *words)
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not Path("run").exists()


def test_an_imported_model_is_trained_further(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint_of(320)
    assert call(zoo, capsys, import_weights.main, *WORDS, "symbols=padded").code == 0
    before = zoo.checkpoint("here")["state_dict"]
    words = [word for word in zoo.with_settings(["steps=2"]) if not word.startswith("model=")]
    ended = zoo.run(*words, "model.base=here", as_given=True)
    assert ended.code == 0, ended.err
    config = stored("run")
    assert config.names.model == "transformer_xl"
    assert config.model.symbols == 257
    after = zoo.checkpoint("run")["state_dict"]
    assert after.keys() == before.keys()
    assert not torch.equal(after["model.embed.weight"], before["model.embed.weight"])
    assert zoo.run("resume=run", "steps=3").code == 0
    assert zoo_api.evaluate_run("run", "split=val")["results"][0]["bits_per_byte"] > 0
    for further, message in (
        (
            ["model=mamba"],
            "Mamba starts from a run of zoo.models.mamba.Mamba, found one of zoo.models.published.",
        ),
        (["model.segment_len=9"], "model.segment_len: settled by the imported model of here"),
    ):
        elsewhere = [word for word in words if not word.startswith("run_dir=")]
        ended = zoo.run(*elsewhere, "model.base=here", "run_dir=other", *further, as_given=True)
        assert ended.code == 2
        assert message in ended.err


def test_an_imported_model_of_other_symbols_is_not_trained_on_bytes(
    zoo: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint_of(1000)
    assert call(zoo, capsys, import_weights.main, *FORMAT).code == 0
    words = [word for word in zoo.with_settings([]) if not word.startswith("model=")]
    ended = zoo.run(*words, "model.base=here", as_given=True)
    assert ended.code == 2
    assert "model.base: expected a model of the 257 symbols of task lm, found one of 1,000" in ended.err


def test_a_base_is_a_setting_of_sweeps_and_comparisons(
    zoo: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.train_whole("steps=4", "val_every=4")
    words = [word for word in zoo.with_settings([]) if not word.startswith("run_dir=")]
    scratch, tuned = plan([words, [*words, "model.base=whole"]], SweepOptions())
    assert scratch.folder != tuned.folder
    assert tuned.config["model.base"] == "whole"
    assert tuned.config["base.weights"]
    assert "model.base" not in scratch.config
    for name, base in (("one", []), ("two", ["model.base=whole"])):
        assert zoo.run(*base, f"run_dir=both/{name}", "steps=4").code == 0
    ended = call(zoo, capsys, compare.main, "both", "out=page")
    assert ended.code == 0, ended.err
    assert "base" in ended.out
    assert "whole" in ended.out


def test_train_run_starts_from_a_base(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.train_whole("steps=4", "val_every=4")
    run = zoo_api.train_run(*zoo.with_settings(["model.base=whole", "steps=1"]))
    assert run.config["base"]["run"] == "whole"
    assert call(zoo, capsys, export.main, "run=run", "to=out").code == 0
    config = json.loads(Path("out/config.json").read_text())
    assert "base" not in config["model"]
    assert config["run"]["base"]["weights"] == run.config["base"]["weights"]
    assert call(zoo, capsys, import_weights.main, "from=out", "run_dir=back").code == 0
    with pytest.raises(UserError, match="found none in 'gone'"):
        zoo_api.train_run(*zoo.with_settings(["model.base=gone", "run_dir=new"]))
