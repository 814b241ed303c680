"""A curve or a point of every name side by side, as comparisons draw them."""

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, PercentFormatter

from zoo.train.plotting.charts import draw_baselines, format_number, format_share
from zoo.train.plotting.render import canvas, draw_band, legend_below

LONG_NAME = 30
"""A longer name than this has no room beside a point."""


class Line(NamedTuple):
    """A curve with its interval, where there is one."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Spot(NamedTuple):
    """A point with half the width of its interval, 0 where there is none, and the values that it sums up."""

    x: float
    y: float
    half: float
    values: Sequence[float] = ()


def curves(lines: dict[str, Line], xlabel: str, ylabel: str) -> Figure:
    """A curve per name, with the interval as a band."""
    figure, axes = canvas(xlabel, ylabel)
    for name, line in lines.items():
        plotted = axes.plot(line.x, line.y, marker="o", markersize=3, label=name)[0]
        draw_band(axes, plotted, line.low, line.high, len(lines))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _keep_in_view(axes, [height for line in lines.values() for height in line.y])
    if all(len(line.x) < 2 for line in lines.values()):
        axes.margins(0.3)
    axes.legend()
    return legend_below(figure)


def _keep_in_view(axes: Axes, heights: Sequence[float]) -> None:
    """Cuts off what reaches far beyond these heights: the interval of two seeds may flatten all else."""
    spread = max(heights) - min(heights)
    if spread:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, min(heights) - spread / 4), min(high, max(heights) + spread / 4))


def scatter(
    series: dict[str, list[Spot]], xlabel: str, ylabel: str, baselines: dict[str, float], is_share: bool
) -> Figure:
    """A point per name, or several joined by a line, over a logarithmic axis, which starts at 0 where a point
    is there; names beside the last points or, where they are long, below; baselines as lines."""
    figure, axes = canvas(xlabel, ylabel)
    named_below = max(map(len, series), default=0) > LONG_NAME
    all_spots = [spot for spots in series.values() for spot in spots]
    least = min((spot.x for spot in all_spots if spot.x > 0), default=1)
    for name, spots in series.items():
        x, y, half, _ = zip(*spots, strict=True)
        form = "o-" if len(spots) > 1 else "o"
        bar = axes.errorbar(x, y, yerr=half if any(half) else None, fmt=form, capsize=3, label=name)
        for spot in spots:
            axes.scatter([spot.x] * len(spot.values), spot.values, s=9, color=bar[0].get_color(), alpha=0.6)
        if not named_below:
            axes.annotate(name, (x[-1], y[-1]), xytext=(5, 4), textcoords="offset points", fontsize=8)
    most = max([least, *(spot.x for spot in all_spots)])
    room = 1.5 if named_below else 4
    if any(spot.x == 0 for spot in all_spots):
        first, last = math.floor(math.log10(least)), math.floor(math.log10(4 * most))
        axes.set_xscale("symlog", linthresh=10**first, linscale=0.7)
        axes.set_xticks([0, *(10**power for power in range(first, last + 1))])
        axes.set_xlim(-(10**first) / 2, room * most)
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 50 * least else (1,)))
        axes.set_xlim(least / 1.5, room * most)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.15)
    lines = draw_baselines(axes, baselines, format_share if is_share else "{:.3f}".format)
    if named_below:
        legend_below(figure)
    elif lines:
        figure.legend(handles=lines, fontsize=8, loc="outside lower center", ncols=min(3, len(lines)))
    heights = [height for spot in all_spots for height in (spot.y, *spot.values)]
    in_view = list(baselines.values())
    if not is_share and in_view:  # what an order-0 model reaches would flatten all differences
        in_view = [min(in_view, key=lambda value: min(abs(value - height) for height in heights))]
    _keep_in_view(axes, [*heights, *in_view])
    if is_share:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def curve_panels(
    panels: Sequence[tuple[str, dict[str, Line]]], xlabel: str, title: str, *, from_zero: bool = True
) -> Figure:
    """Side by side, a curve per name against a length, on a logarithmic axis; the names below them all.

    `panels` are the labels of the vertical axes and their curves, with the same names in each.
    """
    width, names = max(6.5, 3.9 * len(panels)), list(panels[0][1])
    columns = max(1, min(6, int(13 * width) // (max(map(len, names), default=0) + 8)))
    rows = sum(1 + len(name) // int(13 * width) for name in names) / columns
    figure = Figure(figsize=(width, 3.7 + 0.2 * rows), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axes, (ylabel, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, line in lines.items():
            label = textwrap.fill(name, int(13 * width))
            plotted = axes.plot(line.x, line.y, marker="o", markersize=3, label=label)[0]
            draw_band(axes, plotted, line.low, line.high, len(lines))
        points = sorted({point for line in lines.values() for point in line.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(points, [format_number(point) for point in points])
        axes.xaxis.set_minor_locator(NullLocator())
        heights = [height for line in lines.values() for height in line.y]
        if from_zero:
            _axis_from_zero(axes, heights)
        else:
            _keep_in_view(axes, heights)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
    handles = figure.axes[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)
    return figure


def _axis_from_zero(axes: Axes, heights: Sequence[float]) -> None:
    """A vertical axis from 0; logarithmic above the smallest height where the largest is over 20 times it."""
    above = [height for height in heights if height > 0]
    if above and max(above) > 20 * min(above):
        axes.set_yscale("symlog", linthresh=min(above), linscale=0.5)
    axes.set_ylim(0, 1.1 * max(above, default=1))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
