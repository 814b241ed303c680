"""Every value of several rows as a dot: what a mean and an interval hide."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from zoo.train.plotting.charts import format_share
from zoo.train.plotting.render import GREY


class Dots(NamedTuple):
    """The values of a row, and their middle: a mean with its interval, or a median, of which low = high."""

    values: Sequence[float]
    middle: float
    low: float
    high: float


def dots(rows: Mapping[str, Dots], xlabel: str, baselines: Mapping[str, float], is_share: bool) -> Figure:
    """A line per row, the first on top; baselines as vertical lines."""
    names = [textwrap.fill(name, 30) for name in rows]
    lines = max((1 + name.count("\n") for name in names), default=1)
    figure = Figure(figsize=(5.2, 1.4 + (0.14 + 0.16 * lines) * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(rows.values()):
        [line] = axes.plot([row.low, row.high], [index, index], linestyle="-", alpha=0.5)
        axes.scatter([row.middle], [index], s=200, marker="|", color=line.get_color())
        axes.scatter(row.values, [index] * len(row.values), s=22, color=line.get_color(), alpha=0.8, zorder=3)
    for index, (name, value) in enumerate(baselines.items()):
        label = f"{name} {format_share(value) if is_share else f'{value:.3f}'}"
        axes.axvline(value, color=GREY, linestyle=(0, (1, 1 + index)), linewidth=1.2, label=label)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    if is_share:
        values = [value for row in rows.values() for value in row.values]
        axes.set_xlim(min(-0.02, *values), max(1.02, *values))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if baselines:
        figure.legend(loc="outside lower center", ncols=min(3, len(baselines)), fontsize=8)
    return figure
