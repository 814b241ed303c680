"""Charts of losses and accuracies, for one run or several side by side; matplotlib without a display."""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, PercentFormatter

from zoo.train.plotting.render import GREY, draw_band

Result = dict[str, Any]  # an entry of evaluation.json: its axes, and proportions by kind
Number = int | float
Proportions = dict[Number, dict[str, Any]]  # point of an axis -> a proportion with its interval
Buckets = dict[tuple[int, int | None], float]  # positions -> loss


def by_axis(
    series: dict[str, Proportions],
    axis: str,
    title: str,
    baselines: dict[str, float] | None = None,
    trained_at: Number | None = None,
    ylabel: str = "accuracy",
) -> Figure:
    """Shares along an axis, a curve per name with its 95 % interval as a band; `trained_at` is a length."""
    figure, axes = _figure((7, 4), title)
    for name, proportions in series.items():
        points = sorted(proportions)
        line = axes.plot(
            points, [proportions[p]["share"] for p in points], marker="o", markersize=4, label=name
        )
        low, high = ([proportions[p][bound] for p in points] for bound in ("low", "high"))
        draw_band(axes, line[0], low, high, len(series))
        for point in points:
            seeds = proportions[point].get("seeds", [])
            axes.scatter([point] * len(seeds), seeds, s=9, color=line[0].get_color(), alpha=0.6)
    points = sorted({point for proportions in series.values() for point in proportions})
    if axis == "length":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_formatter(NullFormatter())
        ticks = _every_nth(points)
        axes.set_xticks(ticks, [format_number(point) for point in ticks])
        axes.set_xlabel("length of a sample (tokens)")
        if trained_at is not None:
            axes.axvline(trained_at, color=GREY, linestyle="--", linewidth=1, label="training length")
    else:
        axes.set_xticks(points)
        axes.set_xlabel(f"{axis} (% of the filler before the key)" if axis == "depth" else axis)
    draw_baselines(axes, baselines or {})
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=8, loc="best")
    return figure


def heat_maps(
    grids: dict[str, list[Result]], title: str, kind: str = "exact", *, in_a_row: int = 4
) -> Figure:
    """Maps of length by depth, one per name and so many in a row, with each cell's share in per cent."""
    lengths = sorted({result["axes"]["length"] for results in grids.values() for result in results})
    depths = sorted({result["axes"]["depth"] for results in grids.values() for result in results})
    map_width = 1.6 + 0.62 * len(lengths)
    across = min(len(grids), in_a_row)
    down = math.ceil(len(grids) / across)
    size = (max(4.5, map_width * across + 0.8), 0.5 + down * (1.2 + 0.38 * len(depths)))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(textwrap.fill(title, int(11 * size[0])), fontsize=11)
    maps = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes in maps.flat[len(grids) :]:
        axes.remove()
    for axes, (name, results) in zip(maps.flat, grids.items(), strict=False):
        values = np.full((len(depths), len(lengths)), np.nan)
        for result in results:
            cell = depths.index(result["axes"]["depth"]), lengths.index(result["axes"]["length"])
            values[cell] = result[kind]["share"]
        image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if not math.isnan(value):
                colour = "black" if value > 0.6 else "white"
                text = f"{100 * value:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        axes.set_title(name, fontsize=10)
        axes.set_xticks(range(len(lengths)), [format_number(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axes.set_xlabel("length (tokens)")
    for axes in maps[:, 0]:
        axes.set_ylabel("depth (% before the key)")
    bar = figure.colorbar(image, ax=[*maps.flat[: len(grids)]], fraction=0.05, pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def by_position(series: dict[str, Buckets], title: str) -> Figure:
    """Loss by bucket of positions in a document."""
    figure, axes = _figure((7, 4), title)
    edges = sorted({pair for buckets in series.values() for pair in buckets}, key=lambda pair: pair[0])
    for name, buckets in series.items():
        indices = [index for index, pair in enumerate(edges) if pair in buckets]
        axes.plot(indices, [buckets[edges[i]] for i in indices], marker="o", markersize=4, label=name)
    axes.set_xticks(range(len(edges)), [bucket(*pair) for pair in edges])
    axes.set_xlabel("position in the document (tokens)")
    axes.set_ylabel("loss (nats per target)")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(fontsize=8, loc="best")
    return figure


def by_group(
    members: Sequence[Result],
    shares: dict[str, str],
    name: str,
    title: str,
    baselines: dict[str, float],
    ylabel: str = "accuracy",
) -> Figure:
    """Bars for every label of a group, one for each of the shares (names by kind), with 95 % intervals."""
    figure, axes = _figure((max(4.5, 1.5 + 0.7 * len(members) * len(shares)), 3.8), title)
    indices, width = np.arange(len(members)), 0.8 / len(shares)
    for number, (kind, label) in enumerate(shares.items()):
        proportions = [member[kind] for member in members]
        heights = [proportion["share"] for proportion in proportions]
        errors = [
            [max(0.0, proportion["share"] - proportion["low"]) for proportion in proportions],
            [max(0.0, proportion["high"] - proportion["share"]) for proportion in proportions],
        ]
        offsets = indices + width * (number - (len(shares) - 1) / 2)
        axes.bar(offsets, heights, width, yerr=errors, capsize=3, alpha=0.8, label=label)
    axes.set_xticks(indices, [f"{member['value']}\nn={member['exact']['of']:,}" for member in members])
    draw_baselines(axes, baselines)
    if baselines or len(shares) > 1:
        axes.legend(fontsize=8, loc="best")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(name)
    axes.set_ylabel(ylabel)
    return figure


def bucket(low: int, high: int | None) -> str:
    """The label of a range of positions: 512-2k, 128k on."""
    return f"{format_number(low)} on" if high is None else f"{format_number(low)}-{format_number(high)}"


def format_number(number: Number) -> str:
    """A number with k or M where these divide it: 4k, 1M."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "k")):
        if number >= unit and number % unit == 0:
            return f"{int(number) // unit}{name}"
    return str(number) if isinstance(number, int) else f"{number:g}"


def format_share(share: float) -> str:
    """A share in per cent; as 1 in a number where it is so small that per cent would show nothing."""
    if not 0 < share < 0.0005:
        return f"{share:.1%}"
    number = 1 / share
    return f"1 in {number:,.0f}" if number < 1e9 else f"1 in 10^{math.log10(number):.0f}"


def _figure(size: tuple[Number, Number], title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def draw_baselines(
    axes: Axes, baselines: dict[str, float], form: Callable[[float], str] = format_share
) -> list[Line2D]:
    """The task's baselines as dotted lines."""
    return [
        axes.axhline(
            value,
            color=GREY,
            linestyle=(0, (1, 1 + index)),
            linewidth=1.2,
            label=f"{name} {form(value)}",
        )
        for index, (name, value) in enumerate(baselines.items())
    ]


def _every_nth(points: Sequence[Number], most: int = 12) -> list[Number]:
    """Every point, or every second, third … where they are too many to be read."""
    step = math.ceil(len(points) / most)
    return list(points[::step])
