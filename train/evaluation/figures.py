"""Figures of evaluations."""

import re

from matplotlib.figure import Figure

from zoo.train.evaluation.results import EvalEntry, axes_of, losses, memory_mode, multiple_targets, pooled
from zoo.train.plotting import charts
from zoo.train.plotting.charts import Number


# -- figures of an entry -------------------------------------------------------------------------------------
def draw_figures(entry: EvalEntry, trained_at: Number | None) -> dict[str, Figure]:
    """Figures of an entry by a name for their files."""
    name, title = re.sub(r"[^\w.=-]+", "-", entry["label"]).strip("-"), entry["title"]
    rows, axes = entry["results"], axes_of(entry)
    if entry["unit"] == "bits per byte":
        texts = {memory_mode(row["axes"]): losses(row) for row in rows}
        return {f"{name}-loss-by-position": charts.by_position(texts, title)}
    kinds = (
        {"exact": "exact match", "targets": "per target"} if multiple_targets(rows) else {"exact": "accuracy"}
    )
    made = {}
    grid = [row for row in rows if {"length", "depth"} <= row["axes"].keys()]
    if grid:
        maps = {said: [{**row, "exact": row[kind]} for row in grid] for kind, said in kinds.items()}
        made[f"{name}-grid"] = charts.heat_maps(maps, f"{title}: accuracy in %")
    reference = {
        f"{who}{', per target' * multiple_targets(rows)}": v for who, v in rows[-1]["reference"].items()
    }
    for axis in axes:
        series = {said: pooled(rows, axis, kind) for kind, said in kinds.items()}
        over = "".join(f", all {other}s together" for other in axes if other != axis)
        made[f"{name}-by-{axis}"] = charts.by_axis(series, axis, title + over, reference, trained_at)
    for group, members in rows[0]["groups"].items() if len(rows) == 1 else ():
        made[f"{name}-by-{group}"] = charts.by_group(members, group, title, reference)
    return made
