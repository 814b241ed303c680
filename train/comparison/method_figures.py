"""Tables and figures of runs that were read at several contexts by several position methods."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure

from zoo.train.comparison import methods
from zoo.train.comparison.column_types import EMPTY_CELL
from zoo.train.comparison.columns import per_cent, three_decimals
from zoo.train.comparison.groups import RunGroup
from zoo.train.comparison.methods import MethodScores
from zoo.train.comparison.page_figure import PageFigure, capitalised, single_panel
from zoo.train.evaluation import results
from zoo.train.plotting import charts, curves, render
from zoo.train.plotting.charts import Number, Proportions
from zoo.train.plotting.curves import Line

LOSS = "loss of the last tokens (nats)"
CAPTION = (
    "One run's weights, read by each method at each context; plain is as it was trained. Mean over seeds "
    "with Student's 95 % interval"
)


class MethodTable(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[str]]


def method_tables(groups: list[RunGroup]) -> list[MethodTable]:
    """A row for each method, a column for each length of samples or context of text."""
    tables = []
    for scores in methods.method_scores(groups):
        for name, values, _ in measures(scores):
            form = three_decimals if scores.is_text else per_cent
            tables.append(method_table(f"{capitalised(name)} by method ({scores.subject})", values, form))
    return tables


def method_table(title: str, values: dict[str, Proportions], form: Callable[[float], str]) -> MethodTable:
    points = sorted({point for by_point in values.values() for point in by_point})
    rows = [
        [name, *(form(by_point[p]["share"]) if p in by_point else EMPTY_CELL for p in points)]
        for name, by_point in values.items()
    ]
    return MethodTable(title, ["method", *map(charts.format_number, points)], rows)


def measures(scores: MethodScores) -> Iterator[tuple[str, dict[str, Proportions], dict[str, float]]]:
    """Name, values by method and baselines of each measure of an evaluation."""
    if scores.is_text:
        yield LOSS, methods.losses(scores), {}
        return
    for share, name in results.share_names(scores.entry).items():
        yield name, methods.shares(scores, share), results.baselines(scores.entry, share)


def method_figures(groups: list[RunGroup]) -> list[PageFigure]:
    """A line for each method: by context, and of text by position too."""
    figures: list[PageFigure] = []
    for index, scores in enumerate(methods.method_scores(groups)):
        suffix = str(index) if index else ""
        if scores.is_text:
            figures += [loss_figure(scores, suffix), *position_figure(scores, suffix)]
        else:
            figures += share_figures(scores, suffix)
    return figures


def share_figures(scores: MethodScores, suffix: str) -> Iterator[PageFigure]:
    for index, (name, values, baselines) in enumerate(measures(scores)):
        yield single_panel(
            f"methods{'-per-target' if index else ''}{suffix}",
            f"{capitalised(name)} by length and method ({scores.subject})",
            f"{CAPTION}, of one seed with Wilson's.",
            partial(draw_shares, values, baselines, name),
        )


def draw_shares(values: dict[str, Proportions], baselines: dict[str, float], name: str) -> Figure:
    return render.legend_below(charts.by_axis(values, "length", "", baselines, ylabel=name))


def loss_figure(scores: MethodScores, suffix: str) -> PageFigure:
    lines = {name: line_of(values) for name, values in methods.losses(scores).items()}
    return single_panel(
        f"methods{suffix}",
        f"{capitalised(LOSS)} by context and method ({scores.subject})",
        f"{CAPTION}. At every context the same tokens count; what was read with another stride has no value.",
        lambda: curves.curve_panels([(LOSS, lines)], "context (tokens)", "", from_zero=False),
    )


def line_of(by_context: dict[Number, dict[str, float]]) -> Line:
    points = by_context.values()
    return Line(list(by_context), *([point[key] for point in points] for key in ("share", "low", "high")))


def position_figure(scores: MethodScores, suffix: str) -> Iterator[PageFigure]:
    context, buckets = methods.losses_by_position(scores)
    if all(len(of_method) < 2 for of_method in buckets.values()):
        return
    yield single_panel(
        f"methods-by-position{suffix}",
        f"Loss by position in the document and method, context {context:,} ({scores.subject})",
        "Mean over seeds.",
        lambda: render.legend_below(charts.by_position(buckets, "")),
    )
