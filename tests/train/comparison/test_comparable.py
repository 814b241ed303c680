"""Runs that aren't comparable: other tasks, data, budgets or tokens."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.train.stored_runs import make_run
from zoo.train.runs.provenance import fingerprint
from zoo.train.tasks.induction import Induction
from zoo.train.tasks.lm import LanguageModelling

DIFFERENT = {
    "task": [{"task.length": 3}, {"metrics": {"task_version": 2}}, {"metrics": {"task_code": "fedc"}}],
    "data": [
        {"metrics": {"val_bytes": 4096}},
        {"metrics": {"data_fingerprint": "fedc"}},
        {"metrics": {"data_fingerprint": None}, "data.corpus": "other", "task.corpus": "other"},
    ],
    "budget": [{"size.budget": 2000}, {"names.size": "tiny"}, {"metrics": {"parameters": 17_600}}],
    "tokens": [{"steps": 41}, {"data.batch_size": 8}, {"metrics": {"tokens_seen": 10_600}}],
}


@pytest.mark.parametrize(
    ("kind", "changed"), [(kind, change) for kind, changes in DIFFERENT.items() for change in changes]
)
def test_runs_that_differ_are_refused(run: Any, tmp_path: Path, kind: str, changed: dict[str, Any]) -> None:
    make_run(tmp_path / "runs/a", "rmt", **{"size.budget": 1000})
    make_run(tmp_path / "runs/b", "mamba", **{"size.budget": 1000} | changed)
    code, _, err = run("runs")
    assert code == 2
    line, *groups = err.splitlines()
    assert re.fullmatch(rf"error: compare: the runs differ in {kind}: .*runs.b.* mix={kind} .*", line)
    assert len(groups) in (0, 2)
    assert not (tmp_path / "runs/comparison").exists()
    code, _, err = run("runs", f"mix={kind}")
    assert (code, err) == (0, "")
    assert "The runs differ: " in (tmp_path / "runs/comparison/comparison.md").read_text()


def test_fingerprints_are_compared_even_if_an_older_run_has_none(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    make_run(tmp_path / "runs/b", "mamba", metrics={"data_fingerprint": "fedc"})
    make_run(tmp_path / "runs/c", "transformer", metrics={"data_fingerprint": None})
    assert re.search(r"differ in data: fingerprint: \w+ \(runs/a\), fedc \(runs/b\)\. mix", run("runs")[2])


def test_without_a_budget_a_note_gives_the_models_sizes(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    make_run(tmp_path / "runs/b", "mamba", metrics={"parameters": 1_700_000})
    code, out, err = run("runs")
    assert (code, err) == (0, "")
    note = "the models aren't equally large: parameters: 17,000 (runs/a), 1,700,000 (runs/b)."
    assert note in out
    assert note in (tmp_path / "runs/comparison/comparison.md").read_text()


def test_tokens_may_differ_by_padding(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    make_run(tmp_path / "runs/b", "mamba", metrics={"tokens_seen": 10_400})
    assert run("runs")[0] == 0


def test_fingerprints_of_different_data_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    fingerprints = [
        fingerprint(Induction(length=16, samples=50, eval_samples=5, seed=seed)) for seed in (0, 1, 0)
    ]
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    for i, text in enumerate(("abc" * 400, "abc" * 200 + "abd" + "abc" * 199)):
        (tmp_path / f"{i}.txt").write_text(text)
    first, second = (fingerprint(LanguageModelling(str(tmp_path / f"{i}.txt"), tmp_path)) for i in (0, 1))
    assert first != second
