"""Tables of a report, as text: rows, the origin of every number, learning rates, aggregates over tasks."""

from pathlib import Path

from zoo.train.comparison import rates
from zoo.train.comparison.columns import columns
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.groups import FinishedRun
from zoo.train.comparison.report import Report

Cells = tuple[list[str], list[list[str]]]
"""Head and rows."""
AGGREGATE_NOTE = (
    "Over tasks: scores are normalised, so that 0 is reached without learning and 1 is perfect (of text: the "
    "best run); interquartile mean over runs and tasks with the 95 % interval of a bootstrap over runs; the "
    "probability that a run is better than one of the baseline on a task drawn at random."
)


def cells(comparison: Comparison) -> Cells:
    """Head and rows of the table, as text."""
    table_columns = columns(comparison)
    head = ["model", "seeds", *(column.title for column in table_columns)]
    rows = [
        [group.label, group.seeds, *(column.text(group) for column in table_columns)]
        for group in comparison.groups
    ]
    return head, rows


def run_cells(comparison: Comparison) -> Cells:
    """Head and rows of the origin of every number; settings are in each folder's config.yaml."""
    head = ["model", "seed", comparison.unit, "commit", "date", "device", "folder"]
    rows = [run_row(group.label, run, comparison) for group in comparison.groups for run in group.runs]
    return head, rows


def run_row(label: str, run: FinishedRun, comparison: Comparison) -> list[str]:
    return [
        label,
        str(run.config["seed"]),
        f"{run.metrics[comparison.score]:.4f}",
        short_commit(run),
        str(run.metrics.get("date", ""))[:10],
        str(run.metrics.get("device", "")),
        short_folder(run),
    ]


def short_commit(run: FinishedRun) -> str:
    """Nine digits, and the plus of uncommitted changes."""
    commit = str(run.metrics.get("commit", ""))
    return f"{commit[:-1][:9]}+" if commit.endswith("+") else commit[:9]


def short_folder(run: FinishedRun) -> str:
    folder = run.folder
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def rate_cells(comparison: Comparison) -> Cells | None:
    """Runs that chose learning rates; None where there are none."""
    rows = [
        [*cells, short_commit(run), short_folder(run)]
        for group in comparison.groups
        for run, cells in rates.rows(group, comparison.rate_runs)
    ]
    return ([*rates.HEAD, "commit", "folder"], rows) if rows else None


def aggregate_cells(report: Report) -> Cells:
    baselines = {c.baseline.label for c in report.comparisons if c.baseline is not None}
    name = baselines.pop() if len(baselines) == 1 else "the baseline"
    head = ["model", "seeds", "interquartile mean", "95 % interval", "optimality gap", f"better than {name}"]
    rows = [
        [
            row.model,
            ", ".join(map(str, row.seeds)),
            f"{row.iqm:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.optimality_gap:.3f}",
            "-" if row.improvement is None else f"{row.improvement:.0%}",
        ]
        for row in report.over_tasks
    ]
    return head, rows
