"""Notes below a comparison: how to read its numbers."""

from zoo.train.comparison.columns import score_format
from zoo.train.comparison.comparable import describe_spread, list_names
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.differences import Differences
from zoo.train.plotting.charts import format_share
from zoo.train.runs import budget


def notes(comparison: Comparison) -> list[str]:
    lines = [f"The runs differ: {line}." for line in comparison.mismatches]
    lines.append(
        "Mean ± half the width of the 95 % interval over seeds (Student's t); a single seed has none."
    )
    lines += [
        parameters_note(comparison),
        baseline_note(comparison),
        data_note(comparison),
        machines_note(comparison),
        earlier_version_note(comparison),
        *references_notes(comparison),
        curve_note(comparison),
    ]
    return [line for line in lines if line]


def parameters_note(comparison: Comparison) -> str:
    if all(run.config.get("size.budget") is not None for run in comparison.runs):
        return ""
    sizes = describe_spread(comparison.runs, "parameters", budget.BUDGET_TOLERANCE)
    return f"The size has no budget, the models aren't equally large: {sizes}." if sizes else ""


def baseline_note(comparison: Comparison) -> str:
    if comparison.baseline is None:
        return ""
    return Differences(comparison, comparison.baseline).note


def data_note(comparison: Comparison) -> str:
    num_bytes = comparison.runs[0].metrics.get("val_bytes")
    if not num_bytes or comparison.mismatches:
        return ""
    return f"Scores and references are those of {num_bytes:,} held-out bytes."


def machines_note(comparison: Comparison) -> str:
    keys = ("device", "threads", "torch")
    machines = sorted({tuple(run.metrics.get(key) for key in keys) for run in comparison.runs}, key=str)
    lines = [f"{device}, {threads} threads, torch {torch}" for device, threads, torch in machines]
    start = "Measured on" if len(lines) == 1 else "Speeds aren't comparable, measured on"
    return f"{start} {'; '.join(lines)}."


def earlier_version_note(comparison: Comparison) -> str:
    """Which runs lack the score by which their task is judged."""
    lacking = [run for run in comparison.runs if "val/exact" in run.score_names.keys() - run.metrics.keys()]
    if not lacking:
        return ""
    runs = "the runs" if len(lacking) == len(comparison.runs) else list_names([run.name for run in lacking])
    return f"Compared by {comparison.unit}: {runs} are of a version that didn't measure exact match."


def references_notes(comparison: Comparison) -> list[str]:
    """Scores of predictors that learn nothing, a line for each measure in the table."""
    form = format_share if comparison.is_share else score_format(comparison)
    lines = []
    for tag, name in comparison.score_names.items():
        if references := comparison.references(tag):
            values = ", ".join(f"{label} {form(value)}" for label, value in references.items())
            lines.append(f"Without learning, {name}: {values}.")
    return lines


def curve_note(comparison: Comparison) -> str:
    if not any("curve" in run.metrics for run in comparison.runs):
        return ""
    intervals = sorted({run.config["val_every"] for run in comparison.runs})
    every = " or ".join(map(str, intervals))
    return f"Steps to a loss are those of a validation, held every {every} steps."
