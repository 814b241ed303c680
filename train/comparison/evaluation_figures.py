"""Figures of the evaluations of a comparison's runs: shares by length and depth, loss by position."""

from functools import partial
from typing import Any, NamedTuple

from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.evaluations import (
    Seeds,
    grid_over_seeds,
    losses_by_mode,
    matching_entries,
    middle_of_seeds,
    shares_by_length,
)
from zoo.train.comparison.page_figure import PageFigure, capitalised, single_panel
from zoo.train.evaluation import results
from zoo.train.evaluation.results import EvalEntry
from zoo.train.plotting import charts, render

INTERVALS = (
    "Mean over seeds with Student's 95 % interval, wide where seeds are few; of one seed with Wilson's."
)
MEDIANS = "Median over seeds; the band is from the worst to the best of them."
DOTS = " A dot per seed."


def evaluation_figures(comparison: Comparison, colours: dict[str, int]) -> list[PageFigure | None]:
    """Of every evaluation that the runs have in common."""
    figures: list[PageFigure | None] = []
    for index, entries in enumerate(matching_entries(comparison.groups)):
        figures += entry_figures(entries, str(index) if index else "", colours, comparison)
    return figures


def entry_figures(
    entries: dict[str, list[EvalEntry]], suffix: str, colours: dict[str, int], comparison: Comparison
) -> list[PageFigure | None]:
    """Length extrapolation and heat maps of samples; loss with the memory kept and reset, of text."""
    entry = next(iter(entries.values()))[0]
    subject = f"{entry['label']}, {entry['split']} split"
    if entry["unit"] == "bits per byte":
        return [memory_figure(entries, subject, suffix, colours)]
    names = results.share_names(entry)
    if any("beyond" in result for result in entry["results"]):
        names = {"beyond": f"{names.get('targets', 'accuracy')} beyond {comparison.reach}"} | names
    figures: list[PageFigure | None] = []
    for share, name in names.items():
        measure = Measure(share, name, {} if share == "beyond" else results.baselines(entry, share))
        figures += [
            length_figure(entries, measure, subject, suffix, colours, comparison.is_solved_or_not),
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
        return {"targets": "-per-target", "beyond": "-beyond"}.get(self.share, "")

    @property
    def definition(self) -> str:
        if self.name == "exact match":
            return "The share of samples of which every target is hit."
        subject = "targets whose evidence lies beyond attention" if self.share == "beyond" else "targets"
        return f"The share of {subject} that are hit."

    @property
    def baselines_sentence(self) -> str:
        values = [f"{name} {charts.format_share(value)}" for name, value in self.baselines.items()]
        return f" Without learning: {', '.join(values)}." if values else ""


def with_share(entries: dict[str, list[EvalEntry]], share: str) -> dict[str, Seeds]:
    """Results that have the share, of every run of each row."""
    return {
        label: [[result for result in entry["results"] if share in result] for entry in runs]
        for label, runs in entries.items()
    }


def length_figure(
    entries: dict[str, list[EvalEntry]],
    measure: Measure,
    subject: str,
    suffix: str,
    colours: dict[str, int],
    median: bool,
) -> PageFigure | None:
    proportions, left_out = shares_by_length(with_share(entries, measure.share), measure.share)
    if not proportions:
        return None
    if median:
        proportions = {label: middle_of_seeds(by_length) for label, by_length in proportions.items()}
    several = any("seeds" in share for by_length in proportions.values() for share in by_length.values())
    caption = f"{measure.definition} {MEDIANS if median else INTERVALS}{DOTS if several else ''}"
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
    grids = {label: grid_over_seeds(seeds, share) for label, seeds in with_share(entries, share).items()}
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
        "Mean over seeds; the worth of the memory is the gap.",
        render.with_styles(lambda: render.legend_below(charts.by_position(series, ""), legend), styles),
    )
