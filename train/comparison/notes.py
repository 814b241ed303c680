"""Notes below a comparison: how to read its numbers."""

from zoo.train.comparison import rates, scores
from zoo.train.comparison.columns import score_format
from zoo.train.comparison.comparable import describe_spread, list_names
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.differences import Differences
from zoo.train.comparison.tables import short_commit
from zoo.train.plotting.charts import format_share
from zoo.train.runs import budget


def notes(comparison: Comparison) -> list[str]:
    lines = [f"The runs differ: {line}." for line in comparison.mismatches]
    lines += [
        seeds_note(comparison),
        protocol_note(comparison),
        unshared_note(comparison),
        parameters_note(comparison),
        baseline_note(comparison),
        cant_tell_note(comparison),
        *rates_notes(comparison),
        commits_note(comparison),
        data_note(comparison),
        machines_note(comparison),
        earlier_version_note(comparison),
        *references_notes(comparison),
        curve_note(comparison),
    ]
    return [line for line in lines if line]


def seeds_note(comparison: Comparison) -> str:
    if comparison.is_solved_or_not:
        return (
            "The task is learned in a jump, so runs are counted: how many solved it, with Wilson's interval, "
            "and the median of their steps, where > is the end of runs that hadn't; medians over seeds have "
            "no interval."
        )
    return "Mean ± half the width of the 95 % interval over seeds (Student's t); a single seed has none."


def protocol_note(comparison: Comparison) -> str:
    """What the scores of a protocol are, or that there is none."""
    if comparison.protocol is None:
        return "No protocol: learning rates weren't chosen for each model, and scores are of the validation."
    if comparison.split != "test":
        alike = " alike" if comparison.unshared else ""
        return f"Scores are those of the validation: not all runs were evaluated on the test split{alike}."
    if comparison.score not in (scores.BEYOND, scores.GAIN):
        return "Scores are those of the test split."
    view = comparison.references(scores.ACCURACY).get("in view")
    note = (
        f"Beyond {comparison.reach}: targets whose nearest evidence lies so many positions back or more, the "
        "largest reach of a row whose attention ends, or what the runs stop by. Rows whose attention covers "
        "a whole sample are last."
    )
    if view is not None:
        note += f" A perfect reader of the last segment has {format_share(view)} of all targets."
    return note


def unshared_note(comparison: Comparison) -> str:
    """What no score counts, since the runs didn't read it alike."""
    return f"Not read alike, and left out: {'; '.join(comparison.unshared)}." if comparison.unshared else ""


def cant_tell_note(comparison: Comparison) -> str:
    """Rows of which the differences say nothing."""
    if comparison.protocol is None or comparison.baseline is None:
        return ""
    differences = Differences(comparison, comparison.baseline)
    rows = [group.label for group in comparison.groups if differences.verdict(group)]
    effect = comparison.rules.effect
    counts = "any difference" if effect is None else f"a difference of {score_format(comparison)(effect)}"
    return (
        f"Can't tell, since the interval holds both 0 and {counts}, which would count: "
        f"{', '.join(rows) or 'none'}."
    )


def rates_notes(comparison: Comparison) -> list[str]:
    """Rows whose best rate lay at the edge of those that were tried, and rows whose runs weren't passed."""
    if comparison.protocol is None:
        return []
    lines = []
    if edges := [g.label for g in comparison.groups if rates.at_edge(g.runs[0], comparison.rate_runs)]:
        lines.append(
            "The best learning rate lay at the edge of the grid, a better one may lie beyond: "
            f"{', '.join(edges)}."
        )
    if bare := [g.label for g in comparison.groups if not rates.rows(g, comparison.rate_runs)]:
        lines.append(f"The runs that chose the learning rate aren't in these folders: {', '.join(bare)}.")
    return lines


def commits_note(comparison: Comparison) -> str:
    """Rows whose runs are of several commits."""
    mixed = {
        group.label: list(dict.fromkeys(short_commit(run) or "none" for run in group.runs))
        for group in comparison.groups
    }
    rows = [f"{label} ({', '.join(commits)})" for label, commits in mixed.items() if len(commits) > 1]
    return f"Rows of several commits: {'; '.join(rows)}." if rows else ""


def parameters_note(comparison: Comparison) -> str:
    if all(run.config.get("size.budget") is not None for run in comparison.runs):
        return ""
    sizes = describe_spread(comparison.runs, "parameters", budget.BUDGET_TOLERANCE)
    return f"The size has no budget, the models aren't equally large: {sizes}." if sizes else ""


def baseline_note(comparison: Comparison) -> str:
    if label := comparison.baseline_elsewhere:
        return f"No row of {label}, the baseline of other tasks: no differences are shown."
    if comparison.baseline is None:
        return ""
    return Differences(comparison, comparison.baseline).note


def data_note(comparison: Comparison) -> str:
    num_bytes = comparison.runs[0].metrics.get("val_bytes")
    if not num_bytes or comparison.mismatches or comparison.split == "test":
        return ""
    return f"Scores and references are those of {num_bytes:,} held-out bytes."


def machines_note(comparison: Comparison) -> str:
    keys = ("device", "threads", "torch")
    machines = sorted({tuple(run.metrics.get(key) for key in keys) for run in comparison.runs}, key=str)
    lines = [
        f"{device}, {threads} thread{'' if threads == 1 else 's'}, torch {torch}"
        for device, threads, torch in machines
    ]
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
    interval = "step" if every == "1" else f"{every} steps"
    return f"Steps to a loss are those of a validation, held every {interval}."
