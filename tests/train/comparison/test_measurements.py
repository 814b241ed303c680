"""What counts of the evaluations of a test split: what all runs of a table have read alike, at their end."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.train.comparison.cases import read_csv
from tests.train.comparison.protocol_runs import REACH, make_protocol_run
from tests.train.stored_runs import make_run
from zoo.train.comparison import reach


@pytest.fixture(autouse=True)
def declared_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "reach", lambda run: float(REACH.get(run.config["names.model"]) or math.inf))


def make_text_run(folder: Path, model: str, bits_by_drawn: dict[int | None, float]) -> Path:
    """A run whose test text, drawn or entire, was read with these bits per byte, and 0.5 more without
    memory."""
    run = make_run(folder, model, 0, 2.0)
    (run / "protocol.json").write_text('{"protocol": 1, "purpose": "score"}')
    results = [
        {
            "axes": {"memory": memory} | ({} if drawn is None else {"drawn": drawn}),
            "bits_per_byte": bits + more,
            "by_position": [],
            "reference": {"order-0": 4.5},
            "documents": {"nats": [bits, bits], "targets": [2, 2], "bytes": [drawn or 9, 1]},
        }
        for drawn, bits in bits_by_drawn.items()
        for memory, more in (("kept", 0.0), ("reset", 0.5))
    ]
    entry = {"task": "lm", "settings": {"corpus": "text"}, "split": "test", "checkpoint": "last"}
    entry |= {"unit": "bits per byte", "label": "lm", "title": "lm", "results": results, "step": 40}
    (folder / "evaluation.json").write_text(json.dumps({"format": 1, "evaluations": [entry]}))
    return run


def change_samples(run: Path, length: int, samples: int) -> None:
    content = json.loads((run / "evaluation.json").read_text())
    for result in content["evaluations"][0]["results"]:
        if result["axes"]["length"] == length:
            result["samples"] = samples
    (run / "evaluation.json").write_text(json.dumps(content))


def column(folder: Path, key: str, models: Sequence[str] = ("rmt", "mamba2")) -> list[str]:
    rows = read_csv(folder / "runs/comparison/comparison.csv")
    return [rows[model].get(key, "") for model in models]


@pytest.mark.parametrize("further", [2_000_000, 500_000, None])
def test_text_that_one_run_alone_has_read_does_not_count(
    run: Any, tmp_path: Path, further: int | None
) -> None:
    make_text_run(tmp_path / "runs/rmt", "rmt", {1_000_000: 2.0, further: 1.0})
    make_text_run(tmp_path / "runs/mamba2", "mamba2", {1_000_000: 1.9})
    assert run("runs", "baseline=mamba2")[0] == 0
    assert [float(x) for x in column(tmp_path, "test/bits_per_byte")] == [2.0, 1.9]
    assert [float(x) for x in column(tmp_path, "test/worth")] == pytest.approx([0.5, 0.5])
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "Scores are those of the test split" in text
    assert "left out" not in text


def test_all_of_a_text_counts_where_all_runs_have_read_it(run: Any, tmp_path: Path) -> None:
    for model in ("rmt", "mamba2"):
        make_text_run(tmp_path / f"runs/{model}", model, {None: 1.5, 1_000_000: 2.0})
    assert run("runs")[0] == 0
    assert [float(x) for x in column(tmp_path, "test/bits_per_byte")] == [1.5, 1.5]


def test_without_a_text_that_all_have_read_the_validation_stands_in(run: Any, tmp_path: Path) -> None:
    make_text_run(tmp_path / "runs/rmt", "rmt", {2_000_000: 1.0})
    make_text_run(tmp_path / "runs/mamba2", "mamba2", {1_000_000: 1.9, None: 1.8})
    assert run("runs")[0] == 0
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "(protocol 1, validation split)" in text
    assert "not all runs were evaluated on the test split alike." in text
    assert "left out: bytes of test text: 1,000,000 and all (runs/mamba2), 2,000,000 (runs/rmt)." in text
    assert [float(x) for x in column(tmp_path, "val/bits_per_byte")] == [2.0, 2.0]


def test_other_numbers_of_samples_do_not_count(run: Any, tmp_path: Path) -> None:
    for model in ("rmt", "mamba2", "transformer"):
        make_protocol_run(tmp_path / f"runs/{model}", model, 0, 1.0, 20)
    assert run("runs")[0] == 0
    assert column(tmp_path, "test/longest") == ["4.0", "4.0"]
    change_samples(tmp_path / "runs/rmt", 256, 5)
    assert run("runs")[0] == 0
    assert column(tmp_path, "test/longest") == ["", ""]
    assert column(tmp_path, "test/beyond") == ["1.0", "1.0"]
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "left out: test samples at length 256: 100 (runs/mamba2, runs/transformer), 5 (runs/rmt)." in text
    change_samples(tmp_path / "runs/rmt", 64, 50)
    assert run("runs")[0] == 0
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "(protocol 1, validation split)" in text
    assert "test samples at length 64: 100 (runs/mamba2, runs/transformer), 50 (runs/rmt)" in text


@pytest.mark.parametrize(
    ("metrics", "step", "counts"),
    [({}, 40, True), ({}, 20, False), ({"steps_done": 20}, 20, True), ({"steps_done": 20}, 40, False)],
)
def test_an_evaluation_counts_at_the_runs_end_alone(
    run: Any, tmp_path: Path, metrics: dict[str, Any], step: int, counts: bool
) -> None:
    for model in ("rmt", "mamba2"):
        folder = make_protocol_run(tmp_path / f"runs/{model}", model, 0, 0.5, metrics=metrics)
    content = json.loads((folder / "evaluation.json").read_text())
    other = json.loads((tmp_path / "runs/rmt/evaluation.json").read_text())
    other["evaluations"][0]["step"] = metrics.get("steps_done", 40)
    (tmp_path / "runs/rmt/evaluation.json").write_text(json.dumps(other))
    content["evaluations"][0]["step"] = step
    (folder / "evaluation.json").write_text(json.dumps(content))
    assert run("runs")[0] == 0
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert ("(protocol 1, test split)" in text) == counts
    assert ("not all runs were evaluated on the test split." in text) != counts


@pytest.mark.parametrize(
    "changed", [{"precision": "bf16-true"}, {"version": 1}, {"changed_data": True}], ids=str
)
def test_an_evaluation_of_something_else_does_not_count(
    run: Any, tmp_path: Path, changed: dict[str, Any]
) -> None:
    """In another precision, of an older version of the task, of texts that have changed since: though it
    stands before the one that counts."""
    for model in ("rmt", "mamba2"):
        folder = make_text_run(tmp_path / f"runs/{model}", model, {None: 1.5})
        metrics = json.loads((folder / "metrics.json").read_text()) | {"task_version": 2}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        content = json.loads((folder / "evaluation.json").read_text())
        own = content["evaluations"][0] | {"precision": "32-true", "version": 2, "changed_data": None}
        other = json.loads(json.dumps(own | changed))
        other["results"][0]["bits_per_byte"] = 1.0
        content["evaluations"] = [other, own]
        (folder / "evaluation.json").write_text(json.dumps(content))
    assert run("runs")[0] == 0
    assert [float(x) for x in column(tmp_path, "test/bits_per_byte")] == [1.5, 1.5]
