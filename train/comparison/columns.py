"""Columns of a comparison: one quantity of each group, with its interval over seeds."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.differences import Differences
from zoo.train.comparison.groups import FinishedRun, RunGroup
from zoo.train.evaluation.intervals import Estimate

EMPTY_CELL = "-"


class Column(NamedTuple):
    key: str
    title: str
    estimate: Callable[[RunGroup], Estimate | None]
    format: Callable[[float], str]
    has_interval: bool
    mark: Callable[[RunGroup], str] = lambda group: ""
    """What follows the number in a cell."""


def columns(comparison: Comparison) -> list[Column]:
    """In the order of the table."""
    (score, name), *others = comparison.score_names.items()
    result = [metric(score, f"held-out {name}", score_format(comparison), True)]
    result += [metric(tag, f"held-out {name}", per_cent, True) for tag, name in others]
    if comparison.baseline is not None:
        result.append(difference(comparison, comparison.baseline))
    if comparison.is_share:
        result.append(metric("val/loss", "held-out loss (nats)", three_decimals, True))
    return [
        *result,
        metric("parameters", "parameters", integer),
        metric("state_bytes", "state bytes per row", integer),
        metric("tokens_seen", "targets seen", integer),
        metric("tokens_per_s", "training targets/s", integer),
        metric("eval_tokens_per_s", "evaluation targets/s", integer),
        metric("peak_memory_bytes", "peak memory", mebibytes),
        Column(
            "steps_to_loss",
            f"steps to held-out loss {comparison.target_loss:g}",
            lambda group: group.estimate(lambda run: steps_to_loss(run, comparison.target_loss)),
            integer,
            True,
        ),
    ]


def metric(key: str, title: str, form: Callable[[float], str], has_interval: bool = False) -> Column:
    """A column of a metric as metrics.json has it."""
    return Column(
        key, title, lambda group: group.estimate(lambda run: run.metrics.get(key)), form, has_interval
    )


def difference(comparison: Comparison, baseline: RunGroup) -> Column:
    """Score minus the baseline's; beside a second score the title has its name."""
    differences = Differences(comparison, baseline)
    title, form = f"against {baseline.label}", lambda x: f"{x:+.3f}"
    if comparison.is_share:
        subject = f"{comparison.unit} " if len(comparison.score_names) > 1 else ""
        title, form = f"{subject}against {baseline.label} (points)", lambda x: f"{100 * x:+.1f}"
    return Column("difference", title, differences.estimate, form, True, differences.mark)


def steps_to_loss(run: FinishedRun, loss: float) -> float | None:
    """The step of the first validation at or below a loss; None where there is none, or no curve."""
    curve = run.metrics.get("curve", [])
    return next((float(point["step"]) for point in curve if point["val/loss"] <= loss), None)


# -- formats


def score_format(comparison: Comparison) -> Callable[[float], str]:
    return per_cent if comparison.is_share else three_decimals


def per_cent(x: float) -> str:
    return f"{x:.1%}"


def three_decimals(x: float) -> str:
    return f"{x:.3f}"


def integer(x: float) -> str:
    return f"{x:,.0f}"


def mebibytes(x: float) -> str:
    return f"{x / 2**20:,.0f} MiB"


def format_cell(column: Column, group: RunGroup) -> str:
    """Mean ± half the interval's width, with a count of the runs where not all have a value."""
    estimate = column.estimate(group)
    if estimate is None:
        return EMPTY_CELL
    cell = column.format(estimate.mean)
    if column.has_interval and estimate.half_width is not None:
        cell += f" ± {column.format(estimate.half_width).lstrip('+')}"
    if estimate.runs < len(group.runs):
        cell += f" ({estimate.runs} of {len(group.runs)})"
    return cell + column.mark(group)


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text."""
    table_columns = columns(comparison)
    head = ["model", "seeds", *(column.title for column in table_columns)]
    rows = [
        [group.label, group.seeds, *(format_cell(column, group) for column in table_columns)]
        for group in comparison.groups
    ]
    return head, rows


def run_cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the origin of every number; settings are in each folder's config.yaml."""
    head = ["model", "seed", comparison.unit, "commit", "date", "device", "folder"]
    rows = [run_row(group.label, run, comparison) for group in comparison.groups for run in group.runs]
    return head, rows


def run_row(label: str, run: FinishedRun, comparison: Comparison) -> list[str]:
    commit, folder = str(run.metrics.get("commit", "")), run.folder
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    return [
        label,
        str(run.config["seed"]),
        f"{run.metrics[comparison.score]:.4f}",
        commit[:9] + "+" if commit.endswith("+") else commit[:9],
        str(run.metrics.get("date", ""))[:10],
        str(run.metrics.get("device", "")),
        str(folder),
    ]
