"""Planned jobs of a sweep, and finished runs that count as theirs."""

import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.train.sweep.runner import SweepRunner
from zoo.train.commands.sweep import parse_args, seeds
from zoo.train.sweep import plan as plan_module
from zoo.train.sweep.plan import plan


@pytest.mark.parametrize(
    ("word", "expected"),
    [("0:5", [0, 1, 2, 3, 4]), (":2", [0, 1]), ("2:4", [2, 3]), ("7", [7]), ("0,3", [0, 3])],
)
def test_seeds(word: str, expected: list[int]) -> None:
    assert seeds(word) == expected


ERRORS = [
    ("seeds=3:1", r"seeds: expected 0:5 .*found '3:1'"),
    ("seeds=a", "seeds: expected 0:5 .*found 'a'"),
    ("seeds=0,0", "seeds: expected 0:5 .*each once, found .0,0."),
    ("seed=1", "seed can't be set here; use seeds="),
    ("run_dir=x", "run_dir can't be set here; use runs="),
    ("resume=x", "resume can't be set here"),
    ("jobs=0", "jobs: expected a whole number of at least 1, found 0"),
    ("jobs=x", "jobs: expected a whole number"),
    ("rmt", "expected key=value, found 'rmt'"),
    ("model=rmt,", "model: expected names with commas between"),
    ("model=rmt,rtm", "Could not find 'model/rtm'"),
    ("modle=rmt", "'modle'"),
    ("optim.lr=1e-3,2e-3", ".*"),
    ("model.position=rope,", "sweep: model.position: expected names with commas"),
    ("model.position=rope,rope", "sweep: model.position: expected names .* each once"),
    ("model.position.scaling=yarm", "position.scaling: expected none"),
    ("optim.lr=0", "optim.lr: expected a number above 0"),
    ("model.width=abc", ".*"),
    ("results=nowhere", "results: no folder nowhere"),
]


@pytest.mark.parametrize(("word", "expected"), ERRORS, ids=[word for word, _ in ERRORS])
def test_user_errors_are_one_line_before_any_run_starts(
    runner: SweepRunner, word: str, expected: str
) -> None:
    runner.monkeypatch.setattr(runner, "write_configs", lambda *words: None)
    code, out, err = runner.run(word)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: (sweep: )?.*{expected}.*\n", err)
    assert not (runner.folder / "runs").exists()
    assert runner.started() == []


def test_a_corpus_is_looked_at_once_before_any_run_starts(
    runner: SweepRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, build_task = [], plan_module.build.task
    monkeypatch.setattr(plan_module.build, "task", lambda cfg: built.append(cfg) or build_task(cfg))
    assert runner.run("model=rmt,transformer", "seeds=0:2", "jobs=2")[0] == 0
    assert len(built) == 1
    shutil.rmtree(runner.folder / "text")
    code, _, err = runner.run("model=rmt", "seeds=5:7")
    assert code == 2
    assert re.fullmatch(r"error: no corpus 'text': expected .*\n", err)
    assert len(runner.started()) == 4
    assert not [*(runner.folder / "runs/lm/rmt").glob("*-s5*")]
    assert runner.run("model=rmt,transformer", "seeds=0:2")[0] == 0  # finished runs need no corpus


def test_folders_depend_on_the_settings_that_change_results(runner: SweepRunner) -> None:
    jobs = runner.jobs("model=rmt,transformer", "seeds=0:2", "optim.lr=0.01")
    same = runner.jobs(
        "optim.lr=0.01", "seeds=0:2", "model=rmt,transformer", "val_every=2", "data.root=x", "task.root=y"
    )
    different = runner.jobs("model=rmt,transformer", "seeds=0:2", "optim.lr=0.02")
    assert [job.folder for job in jobs] == [job.folder for job in same]
    assert not {job.folder for job in jobs} & {job.folder for job in different}
    assert str(jobs[0].folder).startswith("runs/lm/rmt/nano-s0-")
    options, matrix = parse_args(["model=rmt", "size=nano", "seeds=4", "runs=elsewhere"])
    assert str(plan(matrix, options)[0].folder) == "elsewhere/lm/rmt/nano-s4"


# -- finished runs


def test_a_finished_run_is_not_run_again(runner: SweepRunner) -> None:
    words = ("model=rmt,transformer", "seeds=0:2", "jobs=2")
    code, out, err = runner.run(*words)
    assert (code, err) == (0, "")
    assert "4 done" in out
    assert len(runner.started()) == 4
    code, out, _ = runner.run(*words)
    assert code == 0
    assert "4 done" in out
    assert len(runner.started()) == 4
    runner.run(*words[1:], "model=rmt,transformer,mamba")  # a matrix grows
    assert len(runner.started()) == 6


def test_results_count_as_done(runner: SweepRunner) -> None:
    runner.run("model=rmt", "keep=results/runs")
    [copy] = (runner.folder / "results/runs/lm/rmt").iterdir()
    assert sorted(path.name for path in copy.iterdir()) == ["config.yaml", "metrics.json"]
    code, out, _ = runner.run("model=rmt", "runs=others")
    assert code == 0
    assert f"in results/runs/lm/rmt/{copy.name}" in out
    assert len(runner.started()) == 1


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda config: config["data"].update(root="/elsewhere"), True),
        (lambda config: config.update(val_every=1), True),
        (lambda config: config["trainer"].update(accelerator="auto"), True),
        (lambda config: config["trainer"].pop("compile"), True),  # a setting that is newer than the run
        (lambda config: config["optim"].update(lr=9.0), False),
        (lambda config: config.pop("steps"), False),  # on the command line
        (lambda config: config["model"].update(mlp_width=47), False),
        (lambda config: config["model"].update(more=1), False),
    ],
)
def test_which_results_count(runner: SweepRunner, change: Callable[[Any], Any], counts: bool) -> None:
    runner.run("model=rmt", "keep=results/runs")
    path = next((runner.folder / "results/runs").rglob("config.yaml"))
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))
    code, _, _ = runner.run("model=rmt", "runs=others")
    assert code == 0
    assert len(runner.started()) == 1 + (not counts)


@pytest.mark.parametrize("key", ["task_version", "model_code", "task_code"])
def test_an_older_task_or_other_code_does_not_count(runner: SweepRunner, key: str) -> None:
    runner.run("model=rmt", "keep=results/runs")
    path = next((runner.folder / "results/runs").rglob("metrics.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "0"}))
    runner.run("model=rmt", "runs=others")
    assert len(runner.started()) == 2


def test_a_folder_with_another_run_is_left_alone(runner: SweepRunner) -> None:
    runner.run("model=rmt,transformer")
    path = next((runner.folder / "runs/lm/rmt").rglob("config.yaml"))
    path.write_text(path.read_text().replace("batch_size: 4", "batch_size: 5"))
    before = path.read_text()
    code, out, err = runner.run("model=rmt,transformer")
    assert code == 1
    assert re.search(
        r"failed: lm/rmt/nano-s0: .* holds another run: .*data.batch_size 5 in the folder, 4 requested", err
    )
    assert "1 failed, 1 done" in out
    assert path.read_text() == before
