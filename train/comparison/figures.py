"""What a comparison draws: each picture once as SVG parts for the page and once as a PNG for a document."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.groups import RunGroup
from zoo.train.evaluation import results
from zoo.train.evaluation.intervals import estimate
from zoo.train.plotting import charts, render
from zoo.train.plotting.charts import Buckets, Shares

Draw = Callable[[], Figure]
Size = tuple[float, float] | None  # inches

SMALL = (5.2, 3.8)


class PageFigure(NamedTuple):
    name: str
    title: str
    note: str
    whole: Draw
    parts: dict[str, tuple[Draw, Size]]
    """By name, what stands side by side in the page; for most figures a single panel."""


def page_figures(comparison: Comparison) -> list[PageFigure]:
    """Those for which there are numbers."""
    rows = comparison.rows
    places = {row.label: place for place, row in enumerate(rows)}
    dots = state_scores(rows, comparison.score)
    found = [
        single_panel(
            "loss-by-tokens",
            "Held-out loss against tokens seen",
            "A point per validation; the band is the 95 % interval over seeds.",
            lambda: charts.curves(
                {row.label: curve(row) for row in rows}, "tokens seen", "held-out loss (nats per target)"
            ),
        ),
    ]
    if dots:
        found.append(
            single_panel(
                "score-by-state",
                f"{comparison.unit[0].upper()}{comparison.unit[1:]} against state bytes",
                f"{'Higher' if comparison.unit == 'accuracy' else 'Lower'} is better; left is smaller.",
                render.with_styles(
                    lambda: charts.scatter(
                        dots,
                        "state bytes per row",
                        f"held-out {comparison.unit}",
                        comparison.unit == "accuracy",
                    ),
                    [render.line_style(places[name]) for name in dots],
                ),
            )
        )
    trained = {row.label: trained_buckets(row) for row in rows}
    if any(len(buckets) > 1 for buckets in trained.values()):
        found.append(
            single_panel(
                "loss-by-position",
                "Held-out loss by position in the document",
                "Of the last validation, mean over seeds. Other places hold other text: what memory is worth "
                "is the gap between memory kept and reset, of zoo evaluate, not the slope of this curve.",
                lambda: render.legend_below(charts.by_position(trained, "")),
            )
        )
    for number, entries in enumerate(matching_entries(rows)):
        found += evaluation_figures(entries, f"{number}" if number else "", places)
    return found


def single_panel(name: str, title: str, note: str, draw: Draw, size: Size = SMALL) -> PageFigure:
    return PageFigure(name, title, note, draw, {"": (draw, size)})


# -- of training


def curve(row: RunGroup) -> charts.Line:
    """Held-out loss by validation, mean over the runs that were validated at that step."""
    points: dict[int, list[tuple[float, float]]] = {}
    for run in row.runs:
        last = [{"step": run.config["steps"], **run.metrics}]
        for point in run.metrics.get("curve") or last:  # of older runs the end alone is known
            points.setdefault(int(point["step"]), []).append(
                (float(point["tokens_seen"]), float(point["val/loss"]))
            )
    x, y, low, high = [], [], [], []
    for _, seen in sorted(points.items()):
        found = estimate([loss for _, loss in seen])
        assert found is not None
        x.append(sum(tokens for tokens, _ in seen) / len(seen))
        y.append(found.mean)
        low.append(found.mean - (found.half_width or 0))
        high.append(found.mean + (found.half_width or 0))
    return charts.Line(x, y, low, high)


def state_scores(rows: Iterable[RunGroup], score: str) -> dict[str, charts.Spot]:
    found = {}
    for row in rows:
        size = row.estimate(lambda run: run.metrics.get("state_bytes"))
        reached = row.estimate(lambda run: run.metrics.get(score))
        if size and reached:
            found[row.label] = charts.Spot(size.mean, reached.mean, reached.half_width or 0)
    return found


def trained_buckets(row: RunGroup) -> Buckets:
    """Loss by position of the last validation, mean over seeds."""
    prefix, found = "val/loss_by_position/", dict[tuple[int, int | None], list[float]]()
    for run in row.runs:
        for tag, loss in run.metrics.items():
            if tag.startswith(prefix):
                low, _, high = tag.removeprefix(prefix).partition("-")
                found.setdefault((int(low), None if high == "end" else int(high)), []).append(loss)
    return {
        bucket: sum(losses) / len(losses)
        for bucket, losses in sorted(found.items(), key=lambda one: one[0][0])
    }


# -- of evaluations

Share = dict[str, Any]
Rows = list[dict[str, Any]]
Places = dict[str, int]  # label of a row -> which of the looks it has
Entries = dict[str, list[dict[str, Any]]]  # label of a row -> its runs' entries, one of each

SEEDS = "Mean over seeds with Student's 95 % interval, wide where seeds are few; of one seed with Wilson's."


def matching_entries(rows: list[RunGroup]) -> list[Entries]:
    """Entries of evaluation.json that measure the same thing, by row; of each run that of the latest step."""
    found: dict[str, dict[str, dict[Path, dict[str, Any]]]] = {}
    for row in rows:
        for run in row.runs:
            for entry in sorted(run.entries, key=lambda entry: entry.get("step", 0)):
                what = {key: entry.get(key) for key in ("task", "version", "settings", "split", "checkpoint")}
                key = json.dumps(what, sort_keys=True)
                found.setdefault(key, {}).setdefault(row.label, {})[run.folder] = entry
    return [{label: list(own.values()) for label, own in by_row.items()} for by_row in found.values()]


def evaluation_figures(entries: Entries, number: str, places: Places) -> list[PageFigure]:
    """Length extrapolation and heat maps of samples; loss with the memory kept and reset, of text."""
    some = next(iter(entries.values()))[0]
    what = f"{some['label']}, {some['split']} split"
    if some["unit"] == "bits per byte":
        return [memory_figure(entries, what, number, places)]
    made = []
    runs = {name: [entry["results"] for entry in own] for name, own in entries.items()}
    lengths, left_out = accuracy_by_length(runs)
    if lengths:
        # what chance reaches is said per target
        reference = (
            {} if results.multiple_targets(some["results"]) else some["results"][-1].get("reference", {})
        )
        said = f" Over the depths that all were measured at; {left_out} other cells are left out." * bool(
            left_out
        )
        made.append(
            single_panel(
                f"length{number}",
                f"Accuracy by length ({what})",
                f"All targets of a sample hit. {SEEDS}{said}",
                render.with_styles(
                    lambda: render.legend_below(charts.by_axis(lengths, "length", "", reference)),
                    [render.line_style(places[name]) for name in lengths],
                ),
            )
        )
    grids = {name: grid_over_seeds(own) for name, own in runs.items()}
    grids = {name: own for name, own in grids.items() if own}
    if grids:
        parts: dict[str, tuple[Draw, Size]] = {
            name: (partial(charts.heat_maps, {name: own}, ""), None) for name, own in grids.items()
        }
        made.append(
            PageFigure(
                f"grid{number}",
                f"Accuracy by length and depth, per cent ({what})",
                "All targets of a sample hit; mean over seeds.",
                partial(charts.heat_maps, grids, ""),
                parts,
            )
        )
    return made


def accuracy_by_length(runs: dict[str, list[Rows]]) -> tuple[dict[str, Shares], int]:
    """Shares by length of each name, over seeds, and how many cells were left out: averages over different
    depths don't compare, so of a length those count that every run has which was measured at it."""
    long = {
        name: [[row for row in own if "length" in row["axes"]] for own in seeds]
        for name, seeds in runs.items()
    }
    every = [own for seeds in long.values() for own in seeds]
    measured = Counter(axes_key(row) for own in every for row in own)
    runs_at = Counter(length for own in every for length in {row["axes"]["length"] for row in own})

    def shared(row: dict[str, Any]) -> bool:
        return measured[axes_key(row)] == runs_at[row["axes"]["length"]]

    found: dict[str, Shares] = {}
    for name, seeds in long.items():
        points: dict[charts.Number, list[Share]] = {}
        for own in seeds:
            for length, share in results.pooled([row for row in own if shared(row)], "length").items():
                points.setdefault(length, []).append(share)
        if points:
            found[name] = {length: mean_share(shares) for length, shares in sorted(points.items())}
    return found, len({axes_key(row) for own in every for row in own if not shared(row)})


def axes_key(row: dict[str, Any]) -> str:
    return json.dumps(row["axes"], sort_keys=True)


def grid_over_seeds(seeds: list[Rows]) -> Rows:
    """One row for each length and depth, over seeds."""
    by_axes: dict[str, Rows] = {}
    for row in itertools.chain(*seeds):
        if {"length", "depth"} <= row["axes"].keys():
            by_axes.setdefault(axes_key(row), []).append(row)
    return [{**same[0], "exact": mean_share([row["exact"] for row in same])} for same in by_axes.values()]


def mean_share(shares: list[Share]) -> Share:
    """One seed's share as it is, with Wilson's interval; of several the mean with Student's, within 0 and 1:
    all seeds answer the same prompts, and differ by more than a draw of prompts does."""
    found = estimate([one["share"] for one in shares])
    assert found is not None
    if found.half_width is None:
        return shares[0]
    return {
        "share": found.mean,
        "low": max(0.0, found.mean - found.half_width),
        "high": min(1.0, found.mean + found.half_width),
    }


def memory_figure(entries: Entries, what: str, number: str, places: Places) -> PageFigure:
    """A colour for each model, a dash for each way of reading."""
    series: dict[tuple[str, str], dict[tuple[int, int | None], list[float]]] = {}
    for name, own in entries.items():
        for entry in own:
            for row in entry["results"]:
                line = series.setdefault((name, results.memory_mode(row["axes"])), {})
                for bucket, loss in results.losses(row).items():
                    line.setdefault(bucket, []).append(loss)
    ways = sorted({way for _, way in series})  # kept, reset, the windows
    looks = [render.line_style(places[name], ways.index(way)) for name, way in series]
    means = {
        ", ".join(pair): {bucket: sum(losses) / len(losses) for bucket, losses in line.items()}
        for pair, line in series.items()
    }
    key = {name: render.line_style(places[name]) for name in entries}
    short = [way.removesuffix(" at every segment") for way in ways]
    key |= {way: render.line_style(None, number) for number, way in enumerate(short)}
    return single_panel(
        f"memory{number}",
        f"Loss by position, memory kept and reset ({what})",
        "Mean over seeds; what the memory is worth is the gap.",
        render.with_styles(lambda: render.legend_below(charts.by_position(means, ""), key), looks),
    )
