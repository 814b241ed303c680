"""Figures of an evaluation."""

import re

from matplotlib.figure import Figure

from zoo.train.evaluation.results import (
    EvalEntry,
    EvalResult,
    axis_names,
    has_grid,
    losses,
    memory_mode,
    multiple_targets,
    pooled,
)
from zoo.train.plotting import charts
from zoo.train.plotting.charts import Number


def draw_figures(entry: EvalEntry, trained_at: Number | None) -> dict[str, Figure]:
    """Figures of an entry by file name; `trained_at` is the length that the run was trained at."""
    name, title = re.sub(r"[^\w.=-]+", "-", entry["label"]).strip("-"), entry["title"]
    if entry["unit"] == "bits per byte":
        series = {memory_mode(result["axes"]): losses(result) for result in entry["results"]}
        return {f"{name}-loss-by-position": charts.by_position(series, title)}
    figures = _sample_figures(entry["results"], axis_names(entry), title, trained_at)
    return {f"{name}-{kind}": figure for kind, figure in figures.items()}


def _sample_figures(
    results: list[EvalResult], axes: list[str], title: str, trained_at: Number | None
) -> dict[str, Figure]:
    """A grid of lengths and depths, a figure by each axis, and by each group where there is one result."""
    kinds, reference, figures = {"exact": "accuracy"}, results[-1]["reference"], {}
    if multiple_targets(results):
        kinds = {"exact": "exact match", "targets": "per target"}
        reference = {f"{name}, per target": value for name, value in reference.items()}
    if grid := [result for result in results if has_grid(result)]:
        maps = {
            label: [{**result, "exact": result[kind]} for result in grid] for kind, label in kinds.items()
        }
        figures["grid"] = charts.heat_maps(maps, f"{title}: accuracy in %")
    for axis in axes:
        series = {label: pooled(results, axis, kind) for kind, label in kinds.items()}
        pooled_axes = "".join(f", all {name}s together" for name in axes if name != axis)
        figures[f"by-{axis}"] = charts.by_axis(series, axis, title + pooled_axes, reference, trained_at)
    if len(results) == 1:
        for group, members in results[0]["groups"].items():
            figures[f"by-{group}"] = charts.by_group(members, group, title, reference)
    return figures
