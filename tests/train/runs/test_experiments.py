"""The files of configs/experiment: each is composed, built and trained."""

from pathlib import Path

import pytest
import torch

import zoo as zoo_api
from tests.train.conftest import ROOT, Workspace
from tests.train.runs.commands import call
from tests.train.sweep.in_process import run_sweep
from zoo.memory.attention.core import Attention
from zoo.train.commands import compare
from zoo.train.commands.sweep import parse_args
from zoo.train.runs.build import model as build_model
from zoo.train.runs.config import compose, validate_config
from zoo.train.sweep.plan import plan

RELEASED = {  # factor of the length, base, whether rates are scaled, groups of shifted attention
    "released_codellama": (4, 1e6, False, None),
    "released_llama2_long": (8, 5e5, False, None),
    "released_longlora": (8, 1e4, True, 4),
    "released_longrope": (64, 1e4, True, None),
    "released_lwm": (8, 1e6, False, None),
    "released_pi": (16, 1e4, True, None),
    "released_yarn": (16, 1e4, True, None),
    "released_yi": (49, 5e6, False, None),
}
SIGNATURES = ("overwriting", "parity", "recall_by_state")
MATRICES = (
    *("matrix", "matrix_gpu", "contrast_xl_memory", "contrast_rmt_bptt", "contrast_rmt_xl"),
    "contrast_hybrid_attention",
)
SHORT = ("steps=2", "val_every=2", "data.corpus=text", "data.val_bytes=150", "trainer.accelerator=cpu")
MINIATURE = ("experiment=extrapolation", "model=transformer", "size=nano", "size.segment_len=16", "jobs=1")


def words_of(experiment: str) -> list[str]:
    return [f"experiment={experiment}", "size=nano", "model.base=whole", *SHORT]


def test_every_released_model_is_tested() -> None:
    files = (ROOT / "configs/experiment").glob("*.yaml")
    assert {file.stem for file in files} == {
        *RELEASED,
        *SIGNATURES,
        "extrapolation",
        "induction_mamba",
        *MATRICES,
    }


@pytest.mark.parametrize("experiment", SIGNATURES)
def test_an_experiment_of_one_layer_trains(zoo: Workspace, experiment: str) -> None:
    words = [f"experiment={experiment}", "steps=2", "val_every=2", "trainer.accelerator=cpu", "run_dir=run"]
    ended = zoo.run(*words, "task.eval_samples=64", as_given=True)
    assert ended.code == 0, ended.err
    assert zoo.metrics("run")["parameters"] < 13_000


def test_a_released_model_reads_further_by_its_published_factor(zoo: Workspace) -> None:
    zoo.train_whole("model=transformer", "steps=2", "val_every=2")
    weights = zoo.checkpoint("whole")["state_dict"]
    for experiment, (factor, base, scaled, groups) in RELEASED.items():
        cfg = compose(words_of(experiment))
        validate_config(cfg)
        model = build_model(cfg)
        for mixer in (part for part in model.modules() if isinstance(part, Attention)):
            assert mixer.positions.base == base
            assert mixer.positions.lengths["trained"] == 16
            if not scaled:
                assert mixer.positions.frequencies is None
            else:  # of 8 features
                assert mixer.positions.frequencies.rates[-1] == pytest.approx(base ** (-6 / 8) / factor)
            assert mixer.group == (None if groups is None else 16 * factor // groups)
        assert model.segment_len == cfg.data.seq_len == 16 * factor
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, weights[name])


def test_the_extrapolation_experiment_is_a_sweep_over_positions() -> None:
    words = ["experiment=extrapolation", "model=transformer", "seeds=0:2"]
    options, matrix = parse_args([*words, "model.position=rope,kerple", "task=lm"])
    jobs = plan(matrix, options)
    assert [(job.config["model.position"], job.config["seed"]) for job in jobs] == [
        ("rope", 0),
        ("rope", 1),
        ("kerple", 0),
        ("kerple", 1),
    ]
    for job in jobs:
        assert job.config["model.segment_len"] == job.config["data.seq_len"] == 128
        assert (job.config["data.corpus"], job.config["steps"]) == ("wikilong", 1500)
    passkey = ["task=passkey", "task.form=compact", "task.length=128"]
    [job] = plan(parse_args([*words[:2], *passkey])[1], options)
    assert (job.config["task.length"], job.config["model.segment_len"]) == (128, 128)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", RELEASED)
def test_a_released_model_is_tuned(zoo: Workspace, experiment: str) -> None:
    """Finite losses of two steps at its full length, whose weights change."""
    zoo.train_whole("model=transformer", "steps=2", "val_every=2")
    ended = zoo.run(*words_of(experiment), "run_dir=run", as_given=True)
    assert ended.code == 0, ended.err
    metrics = zoo.metrics("run")
    assert 0 < metrics["val/loss"] < 8
    before, after = (zoo.checkpoint(run)["state_dict"] for run in ("whole", "run"))
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_miniature_of_the_extrapolation_experiment_is_swept_and_compared(
    zoo: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*MINIATURE, *SHORT, "data.seq_len=16", "model.position=rope,kerple"]
    assert run_sweep(monkeypatch, *words) == 0
    ended = call(zoo, capsys, compare.main, "runs", "out=page")
    assert ended.code == 0, ended.err
    rows = [line for line in ended.out.splitlines() if "transformer" in line]
    assert any("kerple" in row for row in rows)
    assert any("rope" in row for row in rows)
    assert Path("page/index.html").is_file()
    assert run_sweep(monkeypatch, *words) == 0  # nothing is trained again
    for run in Path("runs/lm/transformer").iterdir():
        entry = zoo_api.evaluate_run(run, "split=val", "model.segment_len=32")
        assert all(result["bits_per_byte"] > 0 for result in entry["results"])
