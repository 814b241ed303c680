"""Measurements of `zoo bench` as a table, as CSV and as a figure; everywhere medians over the rounds."""

import csv
import io
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.table import Column, Table

from zoo.train.evaluation.throughput import BenchCase, Measurement
from zoo.train.plotting import curves, render
from zoo.train.plotting.terminal import new_table
from zoo.train.runs import checkout
from zoo.train.runs.files import atomic_write, write_text

COLUMNS = (
    *("tokens", "parameters", "train tok/s", "peak MiB", "read tok/s", "write tok/s", "state bytes"),
    *("MFLOP/tok", "product rate"),
)
Results = dict[BenchCase, list[Measurement | str]]
"""A measurement per round; of one that failed, the reason."""
PANELS: tuple[tuple[str, Callable[[Measurement], float]], ...] = (
    ("training, s per 1,000 tokens", lambda entry: 1000 / entry["train"]),
    ("peak memory of training (MiB)", lambda entry: entry["peak"] / 2**20),
    ("state per row (bytes)", lambda entry: entry["state"]),
)


def measured(results: Results) -> dict[BenchCase, list[Measurement]]:
    return {
        case: [entry for entry in entries if not isinstance(entry, str)] for case, entries in results.items()
    }


def machine(results: Results) -> str:
    """What was measured on, in words."""
    first = next((entries[0] for entries in measured(results).values() if entries), {})
    commit = checkout.commit()
    return (
        f"{device_name(first)}, {first.get('threads', 0):.0f} threads, {first.get('rows', 0):.0f} rows, "
        f"torch {torch.__version__}, commit {commit[:12] + commit[40:] or 'unknown'}"
    )


def device_name(entry: Measurement) -> str:
    return torch.cuda.get_device_name() if entry.get("cuda") else f"{platform.machine()} CPU"


# -- table


def table(results: Results, rounds: int) -> Table:
    """For training also the range."""
    columns = [Column(title, justify="right") for title in COLUMNS]
    output = new_table("model", *columns, title=f"{machine(results)}, medians of {rounds} rounds")
    for (name, length), entries in measured(results).items():
        output.add_row(name, f"{length:,}", *(cells(entries) if entries else ["failed"]))
    return output


def cells(measurements: list[Measurement]) -> list[str]:
    """A row's cells after model and tokens."""
    median = {key: statistics.median(entry[key] for entry in measurements) for key in measurements[0]}
    speeds = [entry["train"] for entry in measurements]
    share = statistics.median(map(product_share, measurements))
    return [
        f"{median['parameters']:,.0f}",
        f"{median['train']:,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})",
        f"{median['peak'] / 2**20:,.0f}",
        f"{median['read']:,.0f}",
        f"{median['write']:,.0f}",
        f"{median['state']:,.0f} ({median['written']:,.0f})",
        f"{median['products'] / 1e6:,.2f} + {median['elementwise'] / 1e6:,.2f}",
        f"{share:.0%}",
    ]


def product_share(entry: Measurement) -> float:
    """The training step's matrix products per second, as a share of the rate that the machine reached."""
    return entry["train"] * entry["products"] / entry["product_rate"]


def _shares(entry: Measurement) -> Measurement:
    return {"product_share": product_share(entry)} if "products" in entry else {}


# -- CSV


def to_csv(results: Results, overrides: dict[BenchCase, list[str]]) -> str:
    """A row per case: the command line's arguments, where it was measured, and of every quantity the median
    and the range.  A case of which no round succeeded has the reason alone."""
    entries_by_case = {
        case: [entry | _shares(entry) for entry in entries] for case, entries in measured(results).items()
    }
    keys = list(next((entries[0] for entries in entries_by_case.values() if entries), {}))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    figures = [f"{key}{end}" for key in keys for end in ("", "_min", "_max")]
    writer.writerow(
        ["model", "tokens", "rounds", "failed", "device", "torch", "commit", "overrides", *figures]
    )
    for (name, length), entries in entries_by_case.items():
        reasons = sorted({entry for entry in results[name, length] if isinstance(entry, str)})
        columns = [[entry[key] for entry in entries] for key in keys] if entries else []
        writer.writerow(
            [
                *(name, length, len(entries), "; ".join(reasons)),
                *(device_name(entries[0]) if entries else "", torch.__version__, checkout.commit()),
                " ".join(overrides[name, length]),
                *(f(values) for values in columns for f in (statistics.median, min, max)),
            ]
        )
    return file.getvalue()


def write_csv(path: Path, results: Results, overrides: dict[BenchCase, list[str]]) -> None:
    write_text(path, to_csv(results, overrides))


# -- figure


def figure(results: Results) -> Figure:
    """Cost of training, its memory and the state against the tokens per row, a line per model and the range
    over the rounds as a band."""
    cases = {case: entries for case, entries in measured(results).items() if entries}
    names = list(dict.fromkeys(name for name, _ in cases))
    panels = []
    for label, quantity in PANELS:
        lines = {}
        for name in names:
            points = {
                length: [*map(quantity, cases[name, length])]
                for model, length in sorted(cases)
                if model == name
            }
            lines[name] = curves.Line(
                list(points),
                [statistics.median(values) for values in points.values()],
                [min(values) for values in points.values()],
                [max(values) for values in points.values()],
            )
        panels.append((label, lines))
    return curves.curve_panels(panels, "tokens per row and step", machine(results))


def write_figure(path: Path, results: Results) -> None:
    with render.style():
        drawn = figure(results)
        with atomic_write(path) as file:
            drawn.savefig(file, format=path.suffix[1:], dpi=130)
