"""Figures of a comparison: each as SVG panels for the page and as one PNG for a document."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.evaluations import (
    grid_over_seeds,
    losses_by_mode,
    matching_entries,
    shares_by_length,
)
from zoo.train.comparison.groups import RunGroup
from zoo.train.evaluation import results
from zoo.train.evaluation.intervals import estimate
from zoo.train.evaluation.results import EvalEntry
from zoo.train.plotting import charts, render
from zoo.train.plotting.charts import Buckets

Draw = Callable[[], Figure]
FigureSize = tuple[float, float] | None  # inches

PANEL_SIZE = (5.2, 3.8)
INTERVALS = (
    "Mean over seeds with Student's 95 % interval, wide where seeds are few; of one seed with Wilson's."
)


class PageFigure(NamedTuple):
    name: str
    title: str
    caption: str
    draw: Draw
    panels: dict[str, tuple[Draw, FigureSize]]
    """Side by side on the page, by name; for most figures one panel with everything."""


def page_figures(comparison: Comparison) -> list[PageFigure]:
    """All figures for which there are numbers."""
    groups = comparison.groups
    colours = {group.label: index for index, group in enumerate(groups)}
    figures = [
        loss_figure(groups),
        *(state_figure(comparison, tag, colours) for tag in comparison.score_names),
        position_figure(groups),
    ]
    for index, entries in enumerate(matching_entries(groups)):
        figures += evaluation_figures(entries, str(index) if index else "", colours)
    return [figure for figure in figures if figure is not None]


def single_panel(name: str, title: str, caption: str, draw: Draw) -> PageFigure:
    return PageFigure(name, title, caption, draw, {"": (draw, PANEL_SIZE)})


# -- of training


def loss_figure(groups: list[RunGroup]) -> PageFigure:
    return single_panel(
        "loss-by-tokens",
        "Held-out loss against targets seen",
        "A point per validation; the band is the 95 % interval over seeds.",
        lambda: charts.curves(
            {group.label: loss_curve(group) for group in groups},
            "targets seen",
            "held-out loss (nats per target)",
        ),
    )


def loss_curve(group: RunGroup) -> charts.Line:
    """Held-out loss by validation, mean over the runs with a validation at that step."""
    by_step: dict[int, list[tuple[float, float]]] = {}
    for run in group.runs:
        final = [{"step": run.config["steps"], **run.metrics}]
        for point in run.metrics.get("curve") or final:  # older runs have no curve
            tokens, loss = float(point["tokens_seen"]), float(point["val/loss"])
            by_step.setdefault(int(point["step"]), []).append((tokens, loss))
    x, y, low, high = [], [], [], []
    for _, points in sorted(by_step.items()):
        mean = estimate([loss for _, loss in points])
        assert mean is not None
        x.append(sum(tokens for tokens, _ in points) / len(points))
        y.append(mean.mean)
        low.append(mean.mean - (mean.half_width or 0))
        high.append(mean.mean + (mean.half_width or 0))
    return charts.Line(x, y, low, high)


def state_figure(comparison: Comparison, tag: str, colours: dict[str, int]) -> PageFigure | None:
    """One of the scores against state bytes, with what is reached without learning where it is a share."""
    spots = state_scores(comparison.groups, tag)
    if not spots:
        return None
    name, better = comparison.score_names[tag], "Higher" if comparison.is_share else "Lower"
    baselines = comparison.references(tag) if comparison.is_share else None
    draw = partial(charts.scatter, spots, "state bytes per row", f"held-out {name}", baselines)
    return single_panel(
        "score-by-state" if tag == comparison.score else "score-by-state-per-target",
        f"{capitalised(name)} against state bytes",
        f"{better} is better; left is smaller.",
        render.with_styles(draw, [render.line_style(colours[label]) for label in spots]),
    )


def capitalised(name: str) -> str:
    return name[0].upper() + name[1:]


def state_scores(groups: Iterable[RunGroup], score: str) -> dict[str, charts.Spot]:
    spots = {}
    for group in groups:
        size = group.estimate(lambda run: run.metrics.get("state_bytes"))
        mean = group.estimate(lambda run: run.metrics.get(score))
        if size and mean:
            spots[group.label] = charts.Spot(size.mean, mean.mean, mean.half_width or 0)
    return spots


def position_figure(groups: list[RunGroup]) -> PageFigure | None:
    buckets = {group.label: trained_buckets(group) for group in groups}
    if all(len(losses) < 2 for losses in buckets.values()):
        return None
    return single_panel(
        "loss-by-position",
        "Held-out loss by position in the document",
        "Of the last validation, mean over seeds. Other positions are other text: the gain by memory is the "
        "gap between memory kept and reset, of zoo evaluate, not the slope of this curve.",
        lambda: render.legend_below(charts.by_position(buckets, "")),
    )


def trained_buckets(group: RunGroup) -> Buckets:
    """Loss by position of the last validation, mean over seeds."""
    prefix, losses = "val/loss_by_position/", dict[tuple[int, int | None], list[float]]()
    for run in group.runs:
        for tag, loss in run.metrics.items():
            if tag.startswith(prefix):
                low, _, high = tag.removeprefix(prefix).partition("-")
                losses.setdefault((int(low), None if high == "end" else int(high)), []).append(loss)
    return {
        bucket: sum(values) / len(values)
        for bucket, values in sorted(losses.items(), key=lambda item: item[0][0])
    }


# -- of evaluations


def evaluation_figures(
    entries: dict[str, list[EvalEntry]], suffix: str, colours: dict[str, int]
) -> list[PageFigure | None]:
    """Length extrapolation and heat maps of samples; loss with the memory kept and reset, of text."""
    entry = next(iter(entries.values()))[0]
    subject = f"{entry['label']}, {entry['split']} split"
    if entry["unit"] == "bits per byte":
        return [memory_figure(entries, subject, suffix, colours)]
    figures: list[PageFigure | None] = []
    for share, name in results.share_names(entry).items():
        measure = Measure(share, name, results.baselines(entry, share))
        figures += [
            length_figure(entries, measure, subject, suffix, colours),
            grid_figure(entries, measure, subject, suffix),
        ]
    return figures


class Measure(NamedTuple):
    """One of the shares in a result of evaluation.json: `exact` or `targets`, and its name."""

    share: str
    name: str
    baselines: dict[str, float]

    @property
    def figure_suffix(self) -> str:
        return "-per-target" if self.share == "targets" else ""

    @property
    def definition(self) -> str:
        if self.name == "exact match":
            return "The share of samples of which every target is hit."
        return "The share of targets that are hit."

    @property
    def baselines_sentence(self) -> str:
        values = [f"{name} {charts.format_share(value)}" for name, value in self.baselines.items()]
        return f" Without learning: {', '.join(values)}." if values else ""


def length_figure(
    entries: dict[str, list[EvalEntry]], measure: Measure, subject: str, suffix: str, colours: dict[str, int]
) -> PageFigure | None:
    seeds = {label: [entry["results"] for entry in runs] for label, runs in entries.items()}
    proportions, left_out = shares_by_length(seeds, measure.share)
    if not proportions:
        return None
    caption = f"{measure.definition} {INTERVALS}"
    if left_out:
        caption += f" Over the depths that all were measured at; {left_out} other cells are left out."
    return single_panel(
        f"length{measure.figure_suffix}{suffix}",
        f"{capitalised(measure.name)} by length ({subject})",
        caption,
        render.with_styles(
            lambda: render.legend_below(
                charts.by_axis(proportions, "length", "", measure.baselines, ylabel=measure.name)
            ),
            [render.line_style(colours[label]) for label in proportions],
        ),
    )


def grid_figure(
    entries: dict[str, list[EvalEntry]], measure: Measure, subject: str, suffix: str
) -> PageFigure | None:
    share = measure.share
    grids = {
        label: grid_over_seeds([entry["results"] for entry in runs], share) for label, runs in entries.items()
    }
    grids = {label: grid for label, grid in grids.items() if grid}
    if not grids:
        return None
    return PageFigure(
        f"grid{measure.figure_suffix}{suffix}",
        f"{capitalised(measure.name)} by length and depth, per cent ({subject})",
        f"{measure.definition} Mean over seeds.{measure.baselines_sentence}",
        partial(charts.heat_maps, grids, "", share),
        {label: (partial(charts.heat_maps, {label: grid}, "", share), None) for label, grid in grids.items()},
    )


def memory_figure(
    entries: dict[str, list[EvalEntry]], subject: str, suffix: str, colours: dict[str, int]
) -> PageFigure:
    """A colour for each model, a dash for each mode of reading."""
    losses = losses_by_mode(entries)
    modes = sorted({mode for _, mode in losses})  # kept, reset, the windows
    styles = [render.line_style(colours[label], modes.index(mode)) for label, mode in losses]
    series = {", ".join(key): buckets for key, buckets in losses.items()}
    legend: dict[str, dict[str, Any]] = {label: render.line_style(colours[label]) for label in entries}
    for dash, mode in enumerate(modes):
        legend[mode.removesuffix(" at every segment")] = render.line_style(None, dash)
    return single_panel(
        f"memory{suffix}",
        f"Loss by position, memory kept and reset ({subject})",
        "Mean over seeds; the gain by memory is the gap.",
        render.with_styles(lambda: render.legend_below(charts.by_position(series, ""), legend), styles),
    )
