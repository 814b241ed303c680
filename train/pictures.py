"""What a comparison draws: each picture once as SVG parts for the page and once as a PNG for a document."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from zoo.train import evaluations, figures, plots
from zoo.train.compare import Comparison
from zoo.train.intervals import estimate
from zoo.train.measuring import share
from zoo.train.rows import Row

Draw = Callable[[], Figure]
Size = tuple[float, float] | None  # inches
Buckets = dict[tuple[int, int | None], float]

SMALL = (5.2, 3.8)


class Picture(NamedTuple):
    name: str
    title: str
    note: str
    whole: Draw
    parts: dict[str, tuple[Draw, Size]]
    """By name, what stands side by side in the page; for most pictures the whole alone."""


def pictures(comparison: Comparison) -> list[Picture]:
    """Those for which there are numbers."""
    rows = comparison.rows
    found = [
        one_part(
            "loss-by-tokens",
            "Held-out loss against tokens seen",
            "A point per validation; the band is the 95 % interval over seeds.",
            lambda: plots.curves(
                {row.label: curve(row) for row in rows}, "tokens seen", "held-out loss (nats per target)"
            ),
        ),
        one_part(
            "score-by-state",
            f"{comparison.unit[0].upper()}{comparison.unit[1:]} against state bytes",
            f"{'Higher' if comparison.unit == 'accuracy' else 'Lower'} is better; left is smaller.",
            lambda: plots.scatter(
                spots(rows, comparison.score),
                "state bytes per row",
                f"held-out {comparison.unit}",
                comparison.unit == "accuracy",
            ),
        ),
    ]
    trained = {row.label: trained_buckets(row) for row in rows}
    if any(len(buckets) > 1 for buckets in trained.values()):
        found.append(
            one_part(
                "loss-by-position",
                "Held-out loss by position in the document",
                "Of the last validation, mean over seeds: a memory shows as a loss that falls with position.",
                lambda: plots.legend_below(figures.by_position(trained, "")),
            )
        )
    for number, entries in enumerate(alike(rows)):
        found += evaluated(entries, f"{number}" if number else "")
    return found


def one_part(name: str, title: str, note: str, draw: Draw, size: Size = SMALL) -> Picture:
    return Picture(name, title, note, draw, {"": (draw, size)})


# -- of training


def curve(row: Row) -> plots.Line:
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
        low.append(found.mean - (found.half or 0))
        high.append(found.mean + (found.half or 0))
    return plots.Line(x, y, low, high)


def spots(rows: Iterable[Row], score: str) -> dict[str, plots.Spot]:
    found = {}
    for row in rows:
        size = row.estimate(lambda run: run.metrics.get("state_bytes"))
        reached = row.estimate(lambda run: run.metrics.get(score))
        if size and reached:
            found[row.label] = plots.Spot(size.mean, reached.mean, reached.half or 0)
    return found


def trained_buckets(row: Row) -> Buckets:
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

Entries = dict[str, list[dict[str, Any]]]  # label of a row -> its runs' entries


def alike(rows: list[Row]) -> list[Entries]:
    """Entries of evaluation.json that measure the same thing, by row."""
    found: dict[str, Entries] = {}
    for row in rows:
        for run in row.runs:
            for entry in run.entries:
                what = {key: entry.get(key) for key in ("task", "version", "settings", "split", "checkpoint")}
                key = json.dumps(what, sort_keys=True)
                found.setdefault(key, {}).setdefault(row.label, []).append(entry)
    return list(found.values())


def evaluated(entries: Entries, number: str) -> list[Picture]:
    """Length extrapolation and heat maps of samples; loss with the memory kept and reset, of text."""
    some = next(iter(entries.values()))[0]
    what = f"{some['label']}, {some['split']} split"
    if some["unit"] == "bits per byte":
        return [text_picture(entries, what, number)]
    made, rows = [], {name: pooled(own) for name, own in entries.items()}
    lengths = {name: evaluations.pooled(own, "length") for name, own in rows.items()}
    lengths = {name: shares for name, shares in lengths.items() if shares}
    if lengths:
        first = next(iter(rows.values()))  # what chance reaches is said per target
        reference = {} if evaluations.several(first) else first[-1].get("reference", {})
        made.append(
            one_part(
                f"length{number}",
                f"Accuracy by length ({what})",
                "All targets of a sample hit; samples of all seeds together, Wilson's 95 % interval.",
                lambda: plots.legend_below(figures.by_axis(lengths, "length", "", reference)),
            )
        )
    grids = {
        name: [row for row in own if {"length", "depth"} <= row["axes"].keys()] for name, own in rows.items()
    }
    grids = {name: own for name, own in grids.items() if own}
    if grids:
        parts: dict[str, tuple[Draw, Size]] = {
            name: (heat_map(name, own), None) for name, own in grids.items()
        }
        made.append(
            Picture(
                f"grid{number}",
                f"Accuracy by length and depth, per cent ({what})",
                "All targets of a sample hit; samples of all seeds together.",
                partial(figures.heat_maps, grids, ""),
                parts,
            )
        )
    return made


def heat_map(name: str, rows: list[dict[str, Any]]) -> Draw:
    return lambda: figures.heat_maps({name: rows}, "")


def pooled(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of several seeds' entries, hits and samples added up where the axes are the same."""
    by_axes: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for row in entry["results"]:
            key = json.dumps(row["axes"], sort_keys=True)
            old = by_axes.get(key)
            if old is not None:
                hits, of = (old["exact"][part] + row["exact"][part] for part in ("hits", "of"))
                row = {**old, "exact": share(hits, of)}
            by_axes[key] = row
    return list(by_axes.values())


def way(axes: dict[str, Any]) -> str:
    """How a row of text was read: "memory kept"."""
    return ", ".join(f"{axis} {value}" for axis, value in axes.items())


def text_picture(entries: Entries, what: str, number: str) -> Picture:
    series: dict[str, dict[tuple[int, int | None], list[float]]] = {}
    for name, own in entries.items():
        for entry in own:
            for row in entry["results"]:
                line = series.setdefault(f"{name}, {way(row['axes'])}", {})
                for bucket, loss in evaluations.losses(row).items():
                    line.setdefault(bucket, []).append(loss)
    means = {
        name: {bucket: sum(losses) / len(losses) for bucket, losses in line.items()}
        for name, line in series.items()
    }
    return one_part(
        f"memory{number}",
        f"Loss by position, memory kept and reset ({what})",
        "Mean over seeds; what the memory is worth is the gap.",
        lambda: plots.legend_below(figures.by_position(means, "")),
    )
