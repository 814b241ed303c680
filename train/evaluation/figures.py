"""Figures of an evaluation."""

import re

from matplotlib.figure import Figure

from zoo.train.evaluation.results import (
    EvalEntry,
    axis_names,
    baselines,
    has_grid,
    losses,
    memory_mode,
    pooled,
    share_names,
)
from zoo.train.plotting import charts
from zoo.train.plotting.charts import Number


def draw_figures(entry: EvalEntry, trained_at: Number | None) -> dict[str, Figure]:
    """Figures of an entry by file name; `trained_at` is the length that the run was trained at."""
    name, title = re.sub(r"[^\w.=-]+", "-", entry["label"]).strip("-"), entry["title"]
    if entry["unit"] == "bits per byte":
        series = {memory_mode(result["axes"]): losses(result) for result in entry["results"]}
        return {f"{name}-loss-by-position": charts.by_position(series, title)}
    figures = _sample_figures(entry, trained_at)
    return {f"{name}-{kind}": figure for kind, figure in figures.items()}


def _sample_figures(entry: EvalEntry, trained_at: Number | None) -> dict[str, Figure]:
    """A grid of lengths and depths, a figure by each axis, and by each group where there is one result."""
    results, axes, title, names = entry["results"], axis_names(entry), entry["title"], share_names(entry)
    ylabel = names["exact"] if len(names) == 1 else "share"
    references = {
        f"{label}, {name}" if len(names) > 1 else label: value
        for share, name in names.items()
        for label, value in baselines(entry, share).items()
    }
    figures = {}
    if grid := [result for result in results if has_grid(result)]:
        maps = {
            name: [{**result, "share": result[share]} for result in grid] for share, name in names.items()
        }
        figures["grid"] = charts.heat_maps(maps, f"{title}, per cent", "share", in_a_row=1)
    for axis in axes:
        series = {name: pooled(results, axis, share) for share, name in names.items()}
        pooled_axes = "".join(f", all {name}s together" for name in axes if name != axis)
        full_title = title + pooled_axes
        figures[f"by-{axis}"] = charts.by_axis(series, axis, full_title, references, trained_at, ylabel)
    if len(results) == 1:
        for group, members in results[0]["groups"].items():
            figures[f"by-{group}"] = charts.by_group(members, names, group, title, references, ylabel)
    return figures
