"""Exact match and accuracy per target in a comparison: each under its name, with its baselines."""

import csv
import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.train.comparison.cases import read_csv
from tests.train.stored_runs import make_evaluation, make_run
from zoo.train.comparison.columns import columns
from zoo.train.comparison.figures import page_figures, series_by_setting
from zoo.train.comparison.report import report
from zoo.train.comparison.text import TERMINAL_COLUMNS, fitting_table
from zoo.train.plotting import curves, render
from zoo.train.plotting.dots import Dots, dots

RESULTS = Path(__file__).parents[3] / "results/runs/passkey"
NAMES = {"val/exact": "exact match", "val/accuracy": "accuracy per digit"}
REFERENCES = {"reference": {"chance": 0.102}, "reference_exact": {"chance": 1 / 90_000}}


def make_passkey(
    folder: Path, model: str = "rmt", seed: int = 0, exact: float | None = 0.2, **metrics: Any
) -> Path:
    """A finished run with 60 % of the digits right; of an earlier version if `exact` is None."""
    new = {"val/exact": exact, "score_names": NAMES, **REFERENCES}
    scores = {"val/bits_per_byte": None, "val/accuracy": 0.6, "reference": REFERENCES["reference"]}
    return make_run(
        folder,
        model,
        seed,
        metrics=scores | (new if exact is not None else {}) | metrics,
        **{"task._target_": "zoo.train.tasks.passkey.Passkey", "names.task": "passkey"},
    )


def test_exact_match_is_compared_with_digits_beside_it(run: Any, tmp_path: Path) -> None:
    for seed, exact in enumerate((0.2, 0.3)):
        make_passkey(tmp_path / f"runs/rmt/{seed}", "rmt", seed, exact)
        make_passkey(tmp_path / f"runs/transformer/{seed}", "transformer", seed, exact / 2)
    code, out, err = run("runs")
    assert (code, err) == (0, "")
    row = read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]
    assert float(row["val/exact"]) == pytest.approx(0.25)
    assert float(row["val/accuracy"]) == pytest.approx(0.6)
    assert float(row["difference"]) == pytest.approx((0.1 + 0.15) / 2)
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    for title in ("held-out exact match", "held-out accuracy per digit"):
        assert text.count(f"| {title} |") == 1
        assert title.split()[-1] in out
    assert "| model | seed | exact match |" in text
    assert "* Without learning, exact match: chance 1 in 90,000.\n" in text
    assert "* Without learning, accuracy per digit: chance 10.2%.\n" in text
    assert "didn't measure" not in text


def test_runs_of_an_earlier_version_are_compared_by_digits_and_say_so(run: Any, tmp_path: Path) -> None:
    make_passkey(tmp_path / "runs/old", "rmt", exact=None)
    code, out, _ = run("runs")
    assert code == 0
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "| held-out accuracy per digit |" in text
    assert "| model | seed | accuracy per digit |" in text
    assert "Compared by accuracy per digit: the runs are of a version that didn't measure exact match." in out
    make_passkey(tmp_path / "runs/new", "mamba")
    code, out, _ = run("runs")
    assert code == 0
    assert list(read_csv(tmp_path / "runs/comparison/comparison.csv")) == ["mamba", "rmt"]
    assert "Compared by accuracy per digit: runs/old are of a version" in out
    assert "Without learning, accuracy per digit: chance 10.2%." in out
    assert "90,000" not in out


def test_the_committed_runs_of_passkey_say_which_measure_they_show(run: Any, tmp_path: Path) -> None:
    code, out, _ = run(str(RESULTS), f"out={tmp_path / 'out'}", "mix=code")
    assert code == 0
    assert "held-out accuracy per digit" in out
    assert "Compared by accuracy per digit: the runs are of a version that didn't measure exact match." in out
    with (tmp_path / "out/comparison.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert float(rows["mamba2"]["val/accuracy"]) == pytest.approx(0.99661, abs=1e-5)


def test_a_task_that_cannot_be_imported_has_targets(run: Any, tmp_path: Path) -> None:
    folder = make_passkey(tmp_path / "runs/a", "rmt", exact=None)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("zoo.train.tasks.passkey.Passkey", "gone.Task"))
    assert run("runs")[0] == 0
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "| held-out accuracy per target |" in text
    assert "Without learning, accuracy per target: chance 10.2%." in text


def test_several_tasks_are_compared_by_a_score_that_all_have(run: Any, tmp_path: Path) -> None:
    make_passkey(tmp_path / "runs/a", "rmt")
    one_score = {"val/bits_per_byte": None, "val/accuracy": 0.9, "score_names": {"val/accuracy": "accuracy"}}
    settings = {"task._target_": "zoo.train.tasks.induction.Induction", "names.task": "induction"}
    make_run(tmp_path / "runs/b", "mamba", metrics=one_score, **settings)
    assert run("runs", "mix=task,data")[0] == 0
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "| held-out accuracy per target |" in text
    assert "Without learning" not in text  # the tasks have different ones
    make_run(tmp_path / "runs/text", "rmt")
    assert "is scored in bits per byte, runs/a in exact match;" in run("runs", "mix=task,data")[2]


def test_figures_of_both_measures(tmp_path: Path) -> None:
    """Of make_evaluation 80 % of the digits are hit at both lengths, and of the samples 80 and 40 %."""
    for model in ("rmt", "mamba"):
        make_evaluation(make_passkey(tmp_path / model, model), 0.8)
    figures = {figure.name: figure for figure in page_figures(report([tmp_path]).comparisons[0])}
    assert {"length", "length-per-target", "grid", "grid-per-target"} <= figures.keys()
    curves = {
        name: figures[name].draw().axes[0].lines[0].get_ydata().tolist()
        for name in ("length", "length-per-target")
    }
    assert curves == {"length": [0.8, 0.4], "length-per-target": [0.8, 0.8]}
    for name, title in (("length", "Exact match by length"), ("length-per-target", "Accuracy per digit by")):
        assert figures[name].title.startswith(title)
        assert figures[name].draw().axes[0].get_ylabel() == title.partition(" by")[0].lower()
    cells = {text.get_text() for text in figures["grid-per-target"].draw().axes[0].texts}
    assert cells == {"80"}
    assert {text.get_text() for text in figures["grid"].draw().axes[0].texts} == {"80", "40"}
    legends = {name: figures[name].draw().legends[0].get_texts() for name in curves}
    texts = {name: [text.get_text() for text in legend] for name, legend in legends.items()}
    assert texts["length"] == ["mamba", "rmt"]
    assert texts["length-per-target"] == ["mamba", "rmt", "chance 10.0%"]


def test_scores_against_state_bytes_of_both_measures_with_their_baselines(tmp_path: Path) -> None:
    for model, exact in (("rmt", 0.2), ("mamba", 0.4)):
        make_passkey(tmp_path / model, model, exact=exact)
    figures = {figure.name: figure for figure in page_figures(report([tmp_path]).comparisons[0])}
    expected = {
        "score-by-state": ("exact match", [0.4, 0.2], "chance 1 in 90,000", 1 / 90_000),
        "score-by-state-per-target": ("accuracy per digit", [0.6, 0.6], "chance 10.2%", 0.102),
    }
    assert {name for name in figures if name.startswith("score")} == expected.keys()
    for figure_name, (name, scores, label, chance) in expected.items():
        assert figures[figure_name].title.lower() == f"{name} against state bytes"
        figure = figures[figure_name].draw()
        axes = figure.axes[0]
        assert axes.get_ylabel() == f"held-out {name}"
        *points, line = [line.get_ydata() for line in axes.lines]
        assert [float(y[0]) for y in points if len(y)] == scores
        assert list(line) == [chance, chance]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [label]
        assert axes.get_ylim()[0] <= chance


def test_measures_stand_side_by_side_and_the_difference_says_whose_it_is(tmp_path: Path) -> None:
    for model in ("rmt", "transformer"):
        make_passkey(tmp_path / model, model)
    assert [column.title for column in columns(report([tmp_path]).comparisons[0])][:3] == [
        "held-out exact match",
        "held-out accuracy per digit",
        "exact match against transformer (points)",
    ]


def test_captions_of_grids_have_the_baseline_of_their_measure(tmp_path: Path) -> None:
    folder = make_passkey(tmp_path / "rmt")
    make_evaluation(folder, 0.8)
    content = json.loads((folder / "evaluation.json").read_text())
    for result in [result for entry in content["evaluations"] for result in entry["results"]]:
        result |= REFERENCES
    (folder / "evaluation.json").write_text(json.dumps(content))
    captions = {figure.name: figure.caption for figure in page_figures(report([tmp_path]).comparisons[0])}
    assert captions["grid"].endswith("Without learning: chance 1 in 90,000.")
    assert captions["grid-per-target"].endswith("Without learning: chance 10.2%.")


@pytest.mark.parametrize("width", [60, 80, 100, 140, 180])
def test_a_terminal_shows_the_columns_that_fit_and_cuts_no_cell(width: int, tmp_path: Path) -> None:
    for seed, exact in enumerate((0.2, 0.3)):
        make_passkey(tmp_path / f"rmt/{seed}", "rmt", seed, exact, state_bytes=1_785_888)
        make_passkey(tmp_path / f"transformer/{seed}", "transformer", seed, exact / 2)
    comparison = report([tmp_path]).comparisons[0]
    console = Console(width=width, file=io.StringIO())
    console.print(fitting_table(comparison, width))
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in out
    shown = [column for column in columns(comparison) if column.key in ("val/exact", *TERMINAL_COLUMNS)]
    first, *others = ([column.text(group) for group in comparison.groups] for column in shown)
    assert all(cell in out for cell in first)
    fitting = [all(cell in out for cell in cells) for cells in others]
    assert sum(fitting) == {60: 1, 80: 3, 100: 4, 140: 5, 180: 5}[width]


def test_rows_that_differ_in_one_number_by_which_the_state_grows_are_a_curve() -> None:
    sizes = {
        **{"gla head_dim=16": 3200, "gla head_dim=4": 1088, "gla": 2000},
        **{"deltanet head_dim=4 rule=delta": 1088, "deltanet rule=additive head_dim=4": 1088},
        **{"deltanet head_dim=16 rule=delta": 3200},
        **{"transformer": 0, "transformer segment_len=256": 0},  # no state
        **{"rmt memory_tokens=4": 256, "rmt memory_tokens=8 steps=9": 512},  # two numbers
    }
    spots = {label: curves.Spot(size, 0.5, 0.0) for label, size in sizes.items()}
    assert series_by_setting(spots) == {
        "gla, head_dim 4 to 16": ["gla head_dim=4", "gla", "gla head_dim=16"],
        "deltanet rule=delta, head_dim 4 to 16": [
            "deltanet head_dim=4 rule=delta",
            "deltanet head_dim=16 rule=delta",
        ],
        "deltanet rule=additive head_dim=4": ["deltanet rule=additive head_dim=4"],
        "transformer": ["transformer"],
        "transformer segment_len=256": ["transformer segment_len=256"],
        "rmt memory_tokens=4": ["rmt memory_tokens=4"],
        "rmt memory_tokens=8 steps=9": ["rmt memory_tokens=8 steps=9"],
    }


@pytest.mark.parametrize("length", [8, 40, 120])
def test_names_of_any_length_leave_room_for_the_figure(length: int) -> None:
    names = [f"{index} {'word ' * 30}"[:length] for index in range(8)]
    value = curves.Spot(1.0, 0.5, 0.1, (0.4, 0.6))
    figures = [
        curves.scatter({name: [value] for name in names}, "x", "y", {"chance": 0.1}, is_share=True),
        dots(dict.fromkeys(names, Dots((0.4, 0.6), 0.5, 0.4, 0.6)), "x", {"chance": 0.1}, is_share=True),
    ]
    for figure in figures:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns where a legend or labels leave no room
            figure.savefig(io.BytesIO())
        [axes, *_] = figure.axes
        box, size = axes.get_window_extent(), figure.bbox
        assert box.height > 0.3 * min(size.height, 380), "the axes keep their height"
        labels = [text for legend in figure.legends for text in legend.get_texts()]
        for label in [*labels, *axes.get_yticklabels()]:
            extent = label.get_window_extent()
            assert extent.x0 >= -1, "no name is cut off"
            assert extent.x1 <= size.x1 + 1, "no name is cut off"


def test_a_figure_with_many_long_names_keeps_its_axes_on_the_page() -> None:
    """There its width is given, and its height is at least so much."""
    names = [f"deltanet head_dim={index} rule=additive with more" for index in range(24)]
    value = curves.Spot(1.0, 0.5, 0.1, (0.4, 0.6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where a legend leaves no room
        text = render.svg(
            lambda: curves.scatter({name: [value] for name in names}, "x", "y", {}, is_share=True),
            "f",
            (5.2, 3.8),
        )
    width, height = map(float, text.partition('viewBox="0 0 ')[2].partition('"')[0].split())
    assert width == pytest.approx(72 * 5.2)
    assert height > 72 * (3.8 + 0.15 * 24)


def test_bits_per_byte_keep_their_view_beside_the_nearest_baseline_alone() -> None:
    spots = {name: [curves.Spot(1024.0, bits, 0.0)] for name, bits in (("rmt", 2.6), ("lstm", 2.5))}
    baselines = {"xz -9": 2.7, "order-0": 4.5}
    low, high = curves.scatter(spots, "x", "y", baselines, is_share=False).axes[0].get_ylim()
    assert low < 2.5 < 2.7 < high < 3


def test_the_axis_of_state_bytes_has_a_zero_where_a_row_has_no_state() -> None:
    spots = {name: [curves.Spot(size, 0.5, 0.0)] for name, size in (("rmt", 512.0), ("transformer", 0.0))}
    with_zero = curves.scatter(spots, "x", "y", {}, is_share=True).axes[0]
    without = curves.scatter({"rmt": spots["rmt"]}, "x", "y", {}, is_share=True).axes[0]
    assert (with_zero.get_xscale(), without.get_xscale()) == ("symlog", "log")
    assert with_zero.get_xlim()[0] < 0 < 256 < without.get_xlim()[0] < 512


def test_a_band_is_fainter_among_many_curves() -> None:
    line = curves.Line([1.0, 2.0], [1.0, 2.0], [0.0, 1.0], [2.0, 3.0])

    def alpha(count: int) -> float:
        figure = curves.curves({str(index): line for index in range(count)}, "x", "y")
        return float(figure.axes[0].collections[0].get_alpha())

    assert alpha(10) == alpha(1) == 2 * alpha(20)  # ten colours
