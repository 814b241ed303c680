"""Runs that were read by several position methods: a row and a line for each of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.stored_runs import make_run
from zoo.train.comparison.figures import page_figures
from zoo.train.comparison.groups import RunGroup, group_runs, read_run
from zoo.train.comparison.method_figures import method_figures, method_tables
from zoo.train.comparison.methods import by_method, method, same_targets
from zoo.train.comparison.report import report
from zoo.train.evaluation.intervals import proportion

YARN = {"kind": "rope", "scaling": "yarn", "trained": 16}
GROUPED = {"kind": "rope", "far": "grouped", "near": 8, "trained": 16}


def entry(task: str, context: int, results: list[Any], **reading: Any) -> dict[str, Any]:
    changed = reading | ({"segment_len": context} if context != 16 else {})
    return {
        "task": task,
        "version": 1,
        "settings": {},
        "split": "test",
        "checkpoint": "last",
        "step": 40,
        "unit": "accuracy" if task == "passkey" else "bits per byte",
        "target": "digit",
        "label": f"{task} {changed}",
        "title": task,
        "read_by": "transformer" if changed else None,
        "reading": changed or None,
        "results": results,
    }


def samples(length: int, hits: int) -> dict[str, Any]:
    share = proportion(hits, 10)
    return {"axes": {"length": length}, "samples": 10, "exact": share, "targets": share, "reference": {}}


def text(context: int, loss: float, stride: int = 16) -> dict[str, Any]:
    return {
        "axes": {"memory": "sliding", "context": context, "stride": stride},
        "loss": loss,
        "by_position": [
            {"from": 0, "to": 512, "loss": loss + 0.5, "tokens": 10},
            {"from": 512, "to": None, "loss": loss - 0.5, "tokens": 10},
        ],
    }


def make_readings(folder: Path, seed: int, shift: int = 0) -> None:
    """A transformer of 16 positions; its evaluations are those of its contexts, and others beside them."""
    run = make_run(
        folder / str(seed), "transformer", seed, **{"model.segment_len": 16, "model.position": "rope"}
    )
    entries = [
        entry("passkey", 16, [samples(16, 9), samples(64, 0)]),  # longer ones, by zoo evaluate lengths=
        entry("passkey", 64, [samples(64, 3), samples(16, 8)]),
        entry("passkey", 16, [samples(16, 7)], position=YARN),
        entry("passkey", 64, [samples(64, 6 - shift)], position=YARN),
        entry("lm", 16, [text(16, 1.5), text(32, 9.0), text(16, 9.0, stride=4)]),
        entry("lm", 64, [text(64, 2.5)]),
        entry("lm", 64, [text(64, 1.75 + shift / 4)], position=GROUPED),
    ]
    (run / "evaluation.json").write_text(json.dumps({"format": 1, "evaluations": entries}))


def groups_of(folder: Path) -> list[RunGroup]:
    return group_runs([read_run(path) for path in sorted(folder.iterdir())])


def test_a_table_has_a_row_of_each_method(tmp_path: Path) -> None:
    """Samples longer than a context, and other windows of text, are no reading at that context."""
    make_readings(tmp_path, 0)
    passkey, lm = method_tables(groups_of(tmp_path))
    assert passkey.head == ["method", "16", "64"]
    assert passkey.rows == [["plain", "90.0%", "30.0%"], ["yarn", "70.0%", "60.0%"]]
    assert passkey.title == "Accuracy by method (passkey, test split)"
    assert lm.rows == [["plain", "1.500", "2.500"], ["grouped near=8", "-", "1.750"]]


def test_figures_have_a_line_of_each_method(tmp_path: Path) -> None:
    make_readings(tmp_path, 0)
    figures = {figure.name: figure for figure in method_figures(groups_of(tmp_path))}
    lines = {
        name: {line.get_label(): [*map(float, line.get_ydata())] for line in figure.draw().axes[0].lines}
        for name, figure in figures.items()
    }
    assert lines == {
        "methods": {"plain": [0.9, 0.3], "yarn": [0.7, 0.6]},
        "methods1": {"plain": [1.5, 2.5], "grouped near=8": [1.75]},
        "methods-by-position1": {"plain": [3.0, 2.0], "grouped near=8": [2.25, 1.25]},
    }
    assert "context 64" in figures["methods-by-position1"].title


def test_methods_are_means_over_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_readings(tmp_path, seed, shift=2 * seed)
    passkey, lm = method_tables(groups_of(tmp_path))
    assert passkey.rows[1] == ["yarn", "70.0%", "50.0%"]
    assert lm.rows[1] == ["grouped near=8", "-", "2.000"]


def test_at_a_context_the_same_tokens_count() -> None:
    """The largest stride that all have there; where they share none, those of the smallest alone."""
    plain, tuned = [[text(32, 1.0), text(64, 2.0)]], [[text(32, 3.0, 32), text(32, 4.0), text(64, 5.0, 64)]]
    assert same_targets({"plain": plain, "tuned": tuned}) == {"plain": plain, "tuned": [[text(32, 4.0)]]}
    assert same_targets({"tuned": tuned}) == {"tuned": [[text(32, 3.0, 32), text(64, 5.0, 64)]]}


def test_readings_change_no_other_figure(tmp_path: Path) -> None:
    make_readings(tmp_path, 0)
    [group] = groups_of(tmp_path)
    assert [entry["reading"] for entry in group.runs[0].evaluations] == [None, None]
    path = tmp_path / "0/evaluation.json"
    content = json.loads(path.read_text())
    content["evaluations"] = [entry for entry in content["evaluations"] if entry["reading"] is None]
    path.write_text(json.dumps(content))
    assert method_tables(groups_of(tmp_path)) == []
    assert method_figures(groups_of(tmp_path)) == []


@pytest.mark.parametrize(
    ("trained", "reading", "read_by", "name"),
    [
        ("rope", {"segment_len": 64}, "transformer", "plain"),
        ("rope", {"position": YARN}, "transformer", "yarn"),
        ("rope", {"position": YARN | {"factor": 8.0}}, "transformer", "yarn factor=8.0"),
        (
            "rope",
            {"position": {"kind": "rope", "log_n": True, "far": "capped"}},
            "transformer",
            "log_n capped",
        ),
        ("rope", {"window": 16, "sinks": 4}, "sliding_window", "sliding_window window=16 sinks=4"),
        ("rope", {"window": 16, "qk_norm": False}, "transformer", "window=16"),  # newer than the run
        ("rope", {"qk_norm": True}, "transformer", "qk_norm=true"),
        (
            {"kind": "rope", "draw": "random", "longest": 32},
            {"segment_len": 64, "position": {"kind": "rope", "trained": 16}},
            "transformer",
            "plain",
        ),
        (
            {"kind": "rope", "scaling": "yarn", "trained": 4},
            {"position": "rope"},
            "transformer",
            "without scaling",
        ),
        (
            {"kind": "rope", "scaling": "yarn", "trained": 4},  # tuned at 4x, whose factor is written down
            {"segment_len": 64, "position": {"kind": "rope", "scaling": "yarn", "trained": 4, "factor": 4.0}},
            "transformer",
            "plain",
        ),
        (
            {"kind": "rope", "base": 5e5},
            {"position": {"kind": "rope", "base": 1e6}},
            "transformer",
            "base=1000000.0",
        ),
    ],
)
def test_a_method_is_named_by_what_differs_from_the_run(
    tmp_path: Path, trained: Any, reading: dict[str, Any], read_by: str, name: str
) -> None:
    settings = {"model.segment_len": 16, "model.position": trained}
    settings |= {"model._target_": "zoo.models.transformer.Transformer"}
    run = read_run(make_run(tmp_path / "run", "transformer", **settings))
    assert method({"reading": reading, "read_by": read_by}, run) == name


def test_a_context_is_the_window_where_there_is_one(tmp_path: Path) -> None:
    settings = {"model.segment_len": 64, "model.window": 16, "model.position": "rope"}
    run = read_run(make_run(tmp_path / "run", "sliding_window", **settings))
    read = entry("passkey", 16, [samples(32, 5)]) | {"reading": {"window": 32}, "read_by": "sliding_window"}
    plain = entry("passkey", 16, [samples(32, 5), samples(16, 4)])
    assert by_method(run, [plain, read]) == {"plain": {16: [samples(16, 4)], 32: [samples(32, 5)]}}


def test_the_page_and_the_document_have_the_tables(run: Any, tmp_path: Path) -> None:
    make_readings(tmp_path / "runs", 0)
    assert run("runs", pages=True)[0] == 0
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "| method | 16 | 64 |\n| --- | --- | --- |\n| plain | 90.0% | 30.0% |" in text
    page = (tmp_path / "runs/comparison/index.html").read_text()
    assert "<td>yarn</td><td>70.0%</td><td>60.0%</td>" in page
    names = [figure.name for figure in page_figures(report([tmp_path / "runs"]).comparisons[0])]
    assert [name for name in names if name.startswith("methods")] == [
        "methods",
        "methods1",
        "methods-by-position1",
    ]
    for name in names:
        assert f'<figure id="{name}"' in page
