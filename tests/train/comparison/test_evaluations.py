"""Evaluations over seeds and their figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.stored_runs import make_evaluation, make_run
from zoo.train.comparison.evaluation_figures import memory_figure
from zoo.train.comparison.evaluations import grid_over_seeds, matching_entries, shares_by_length
from zoo.train.comparison.groups import group_runs, read_run
from zoo.train.evaluation.intervals import proportion
from zoo.train.plotting import render


def evaluations_of(folder: Path, label: str, index: int = 0) -> list[list[dict[str, Any]]]:
    """Results of the runs of a group, for the figures."""
    groups = group_runs([read_run(path) for path in sorted(folder.iterdir())])
    return [entry["results"] for entry in matching_entries(groups)[index][label]]


def test_evaluations_have_the_interval_over_seeds(tmp_path: Path) -> None:
    for seed, share in enumerate((0.8, 0.7, 0.6)):
        make_evaluation(make_run(tmp_path / f"{seed}", "rmt", seed), share)
    results = evaluations_of(tmp_path, "rmt")
    shares, _ = shares_by_length({"rmt": results})
    half = 4.30265 * 0.1 / 3**0.5
    for mean in (shares["rmt"][512], grid_over_seeds(results)[0]["exact"]):
        assert mean["share"] == pytest.approx(0.7)
        assert (mean["low"], mean["high"]) == pytest.approx((0.7 - half, 0.7 + half), rel=1e-4)
    single, _ = shares_by_length({"rmt": results[:1]})
    assert single["rmt"][512] == proportion(120, 150)  # Wilson's


def test_a_runs_latest_evaluation_counts(tmp_path: Path) -> None:
    path = make_run(tmp_path / "0", "rmt") / "evaluation.json"
    make_evaluation(path.parent, 0.8)
    latest = json.loads(path.read_text())
    make_evaluation(path.parent, 0.2)
    earlier = [{**entry, "step": 20} for entry in json.loads(path.read_text())["evaluations"]]
    for entries in (earlier + latest["evaluations"], latest["evaluations"] + earlier):
        path.write_text(json.dumps({**latest, "evaluations": entries}))
        [results] = evaluations_of(tmp_path, "rmt")
        assert shares_by_length({"rmt": [results]})[0]["rmt"][512]["hits"] == 120


def test_lengths_are_compared_over_the_same_depths(tmp_path: Path) -> None:
    make_evaluation(make_run(tmp_path / "0", "rmt"), 0.8)
    [rmt] = evaluations_of(tmp_path, "rmt")
    assert rmt[0]["axes"] == {"length": 512, "depth": 0.0}
    rmt[0]["exact"] = proportion(0, 50)
    shares, left_out = shares_by_length({"rmt": [rmt], "mamba": [rmt[1:]], "short": [rmt[1:3]]})
    assert left_out == 1
    assert shares["rmt"] == shares["mamba"]
    assert (shares["rmt"][512], shares["rmt"][1024]) == (proportion(80, 100), proportion(60, 150))
    assert list(shares["short"]) == [512]


def test_a_colour_per_model_and_a_dash_per_mode_of_memory(tmp_path: Path) -> None:
    for model in ("rmt", "mamba"):
        make_evaluation(make_run(tmp_path / model, model), 0.8)
    groups = group_runs([read_run(tmp_path / model) for model in ("rmt", "mamba")])
    text = matching_entries(groups)[1]
    figure = memory_figure({"rmt": text["rmt"], "mamba": text["mamba"]}, "", "", {"mamba": 0, "rmt": 1})
    drawing = figure.draw()
    [axes], [legend] = drawing.axes, drawing.legends
    styles = [(line.get_color(), line.get_linestyle()) for line in axes.get_lines()]
    first, second = render.COLOURS[:2]
    assert styles == [(second, "-"), (second, "--"), (first, "-"), (first, "--")]
    labels = {line.get_label(): line.get_linestyle() for line in legend.get_lines()}
    assert labels == {"rmt": "-", "mamba": "-", "memory kept": "-", "memory reset": "--"}


def test_more_models_than_colours_have_different_styles() -> None:
    styles = [render.line_style(index) for index in range(25)]
    assert all(style not in styles[:i] for i, style in enumerate(styles))
