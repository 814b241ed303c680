"""Columns of a comparison's table."""

import math
from collections.abc import Callable

from zoo.train.comparison import rates, reach, scores, solved
from zoo.train.comparison.column_types import (
    Better,
    Column,
    MedianColumn,
    NumberColumn,
    ShareDifferenceColumn,
    SolvedColumn,
    StepsColumn,
    TextColumn,
)
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.differences import Differences
from zoo.train.comparison.groups import FinishedRun, RunGroup
from zoo.train.comparison.statistics import ShareDifference


def columns(comparison: Comparison) -> list[Column]:
    """In the order of the table."""
    steps = StepsColumn(
        "steps_to_loss",
        f"steps to held-out loss {comparison.target_loss:g}",
        lambda run: steps_to_loss(run, comparison.target_loss),
        lambda run: bool(run.metrics.get("curve")),
        better="lower",
    )
    same_machine = len({run.metrics.get("device") for run in comparison.runs}) == 1
    fast: Better = "higher" if same_machine else None
    small: Better = "lower" if same_machine else None
    losses = [metric("val/loss", "held-out loss (nats)", three_decimals, True, "lower")]
    return [
        *score_columns(comparison),
        *difference_columns(comparison),
        *protocol_columns(comparison),
        *(losses if comparison.is_share else []),
        metric("parameters", "parameters", integer),
        metric("state_bytes", "state bytes per row", integer, better="lower"),
        metric("tokens_seen", "targets seen", integer),
        metric("tokens_per_s", "training targets/s", integer, better=fast),
        metric("eval_tokens_per_s", "evaluation targets/s", integer, better=fast),
        metric("peak_memory_bytes", "peak memory", mebibytes, better=small),
        steps,
    ]


def score_columns(comparison: Comparison) -> list[Column]:
    split, better = comparison.split_name, better_score(comparison)
    result: list[Column] = []
    if comparison.is_solved_or_not:
        result = [
            SolvedColumn("solved", "solved", better="higher"),
            StepsColumn("steps_to_solve", "steps to solve, median", solved.steps, better="lower"),
        ]
        if long_runs := comparison.long_runs:
            title = f"seed {long_runs[0].config['seed']} with more steps"
            result.append(
                TextColumn("long_run", title, lambda group: solved.describe_long_run(group, long_runs))
            )
    form = score_format(comparison)
    for tag, name in comparison.score_names.items():
        tag_form = form if tag == comparison.score else per_cent
        if comparison.is_solved_or_not:
            title = f"{split} {name}, median"
            result.append(MedianColumn(tag, title, by_metric(tag), tag_form, better=better))
        else:
            result.append(metric(tag, f"{split} {name}", tag_form, True, better))
    return result


def better_score(comparison: Comparison) -> Better:
    return "higher" if comparison.is_share else "lower"


def difference_columns(comparison: Comparison) -> list[Column]:
    if comparison.baseline is None:
        return []
    differences = Differences(comparison, comparison.baseline)
    result = [difference(comparison, differences)]
    if comparison.protocol is not None:
        result.append(TextColumn("cant_tell", "can't tell", differences.verdict))
    return result


def difference(comparison: Comparison, differences: Differences) -> Column:
    """Score minus the baseline's; beside a second score the title has its name."""
    title, form = f"against {differences.baseline.label}", lambda x: f"{x:+.3f}"
    if comparison.is_solved_or_not:
        return ShareDifferenceColumn(
            "difference",
            f"solved {title} (points)",
            lambda group: share_difference(differences, group),
            lambda x: f"{100 * x:+.0f}",
            differences.mark,
        )
    if comparison.is_share:
        subject = f"{comparison.unit} " if len(comparison.score_names) > 1 else ""
        title, form = f"{subject}{title} (points)", lambda x: f"{100 * x:+.1f}"
    return NumberColumn("difference", title, differences.estimate, form, True, differences.mark)


def share_difference(differences: Differences, group: RunGroup) -> ShareDifference | None:
    value = differences.difference(group)
    return value if isinstance(value, ShareDifference) else None


def protocol_columns(comparison: Comparison) -> list[Column]:
    """What the memory is worth on the same targets, how far a row sees, and its learning rate."""
    if comparison.protocol is None:
        return []
    result: list[Column] = []
    if any(scores.WORTH in run.metrics for run in comparison.runs):
        title = "worth of the memory (points)" if comparison.is_share else "worth of the memory"
        form = points if comparison.is_share else signed
        if comparison.is_solved_or_not:
            worth = by_metric(scores.WORTH)
            result.append(MedianColumn(scores.WORTH, f"{title}, median", worth, form, better="higher"))
        else:
            result.append(metric(scores.WORTH, title, form, True, "higher"))
    for tag, title, form in LENGTHS:
        if any(tag in run.metrics for run in comparison.runs):
            if comparison.is_solved_or_not:
                median_title = f"{title}, median"
                result.append(MedianColumn(tag, median_title, by_metric(tag), form, better="higher"))
            else:
                result.append(metric(tag, title, form, tag == scores.AREA, "higher"))
    return [
        *result,
        TextColumn("reach", "reach", describe_reach),
        TextColumn("lr", "learning rate", lambda group: rates.describe(group, comparison.rate_runs)),
    ]


def describe_reach(group: RunGroup) -> str:
    run = group.runs[0]
    value = reach.reach(run)
    if value is None:
        return ""
    if reach.kind(value, run.config.get("task.length")) == "whole sample":
        return f"{value:,.0f}, the whole sample"
    return "∞" if math.isinf(value) else f"{value:,.0f}"


def metric(
    key: str,
    title: str,
    form: Callable[[float], str],
    has_interval: bool = False,
    better: Better = None,
) -> Column:
    """A column of a metric as metrics.json has it."""
    value = by_metric(key)
    return NumberColumn(key, title, lambda group: group.estimate(value), form, has_interval, better=better)


def by_metric(key: str) -> Callable[[FinishedRun], float | None]:
    return lambda run: run.metrics.get(key)


def steps_to_loss(run: FinishedRun, loss: float) -> float | None:
    """The step of the first validation at or below a loss; None where there is none, or no curve."""
    curve = run.metrics.get("curve", [])
    return next((float(point["step"]) for point in curve if point["val/loss"] <= loss), None)


# -- formats


def score_format(comparison: Comparison) -> Callable[[float], str]:
    is_per_cent = comparison.is_share and comparison.score != scores.GAIN
    return per_cent if is_per_cent else three_decimals


def per_cent(x: float) -> str:
    return f"{x:.1%}"


def points(x: float) -> str:
    return f"{100 * x:+.1f}"


def signed(x: float) -> str:
    return f"{x:+.3f}"


def three_decimals(x: float) -> str:
    return f"{x:.3f}"


def multiple(x: float) -> str:
    return f"{x:g}x" if x else "none"


def integer(x: float) -> str:
    return f"{x:,.0f}"


def mebibytes(x: float) -> str:
    return f"{x / 2**20:,.0f} MiB"


LENGTHS = (
    (scores.LONGEST, "longest length", multiple),
    (scores.AREA, "mean over log length", per_cent),
)
"""Scores over the lengths of a test split: tag, title, format."""
