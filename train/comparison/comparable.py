"""Checks that runs are comparable: the same task, data, budget, tokens and protocol, and committed code."""

from collections.abc import Callable
from typing import Any

from zoo.errors import UserError, counted
from zoo.train.comparison.groups import FinishedRun, settings_with_defaults
from zoo.train.runs import budget
from zoo.train.runs.folder import NOT_SET

RESULTS = "results"
TOKENS_TOLERANCE = 0.05  # of targets seen, as the share of padding depends on seed and window
MOST_VALUES = 3  # that an error names
POSITION_FACTORS = (
    "steps",
    "data.batch_size",
    "data.seq_len",
    "trainer.accumulate",
    "trainer.devices",
    "trainer.num_nodes",
)


class IncomparableError(UserError):
    """Runs differ in what all runs of a comparison share."""


def check_comparable(runs: list[FinishedRun], allowed: list[str]) -> list[str]:
    """Describes the differences of the allowed kinds.  Raises IncomparableError if runs differ in any
    other kind."""
    mismatches = {kind: differences(runs) for kind, differences in KINDS.items()}
    if refused := [kind for kind, lines in mismatches.items() if lines and kind not in allowed]:
        descriptions = "; ".join(f"in {kind}: {first_of(mismatches[kind])}" for kind in refused)
        mix = ",".join([*allowed, *refused])
        raise IncomparableError(f"compare: the runs differ {descriptions}. mix={mix} compares them anyway")
    return [line for lines in mismatches.values() for line in lines]


def first_of(lines: list[str]) -> str:
    return lines[0] + (f" and {counted(len(lines) - 1, 'more difference')}" if len(lines) > 1 else "")


def task_differences(runs: list[FinishedRun]) -> list[str]:
    """One line if the tasks differ; otherwise one for each difference in version, code and settings."""
    if names := describe_fact("task", runs, lambda run: run.config["names.task"]):
        return [names]
    facts = [task_facts(run) for run in runs]
    keys = dict.fromkeys(key for fact in facts for key in fact)
    lines = [describe_values(key, runs, [fact.get(key, NOT_SET) for fact in facts]) for key in keys]
    return [line for line in lines if line]


def task_facts(run: FinishedRun) -> dict[str, Any]:
    facts = {
        "task version": run.metrics.get("task_version", NOT_SET),
        "task code": run.metrics.get("task_code", ""),
    }
    for key, value in settings_with_defaults(run).items():
        if key.startswith("task.") and key not in ("task.root", "task.corpus"):
            facts[key] = value
    return facts


def data_differences(runs: list[FinishedRun]) -> list[str]:
    """Differences in the number of held-out bytes and in the fingerprints of the texts.

    Older runs have no fingerprint; where there are any, the names of all corpora are compared too.
    """
    fingerprinted = [run for run in runs if "data_fingerprint" in run.metrics]
    lines = [describe_fact("bytes held out", runs, lambda run: run.metrics.get("val_bytes", NOT_SET))]
    if len(fingerprinted) < len(runs):
        lines.append(describe_fact("corpus", runs, lambda run: run.config.get("data.corpus", NOT_SET)))
    lines.append(describe_fact("fingerprint", fingerprinted, lambda run: run.metrics["data_fingerprint"]))
    return [line for line in lines if line]


def budget_differences(runs: list[FinishedRun]) -> list[str]:
    """Differences in size and budget; if there are none, parameters further apart than a budget allows."""
    lines = [
        describe_fact("size", runs, lambda run: run.config["names.size"]),
        describe_fact("budget", runs, lambda run: run.config.get("size.budget", NOT_SET)),
    ]
    if not any(lines) and runs[0].config.get("size.budget") is not None:
        lines.append(describe_spread(runs, "parameters", budget.BUDGET_TOLERANCE))
    return [line for line in lines if line]


def tokens_differences(runs: list[FinishedRun]) -> list[str]:
    """The difference in positions read in training; if there is none, in targets seen."""
    line = describe_fact("positions read", runs, positions_read)
    if not line and not any(
        run.config.get("stop_when_solved.metric") for run in runs
    ):  # these end once they have solved it
        line = describe_spread(runs, "tokens_seen", TOKENS_TOLERANCE)
    return [line] if line else []


def positions_read(run: FinishedRun) -> int:
    """Positions that training reads up to its last step, padding and positions without a target included."""
    product = 1
    for key in POSITION_FACTORS:
        product *= int(run.config.get(key, 1))
    return product


def protocol_differences(runs: list[FinishedRun]) -> list[str]:
    line = describe_fact("protocol", runs, lambda run: run.protocol.get("protocol", "none"))
    return [line] if line else []


def code_differences(runs: list[FinishedRun]) -> list[str]:
    """Runs in a folder `results` whose code was never committed."""
    names = [run.name for run in runs if is_uncommitted(run) and RESULTS in run.folder.absolute().parts]
    return (
        [f"{len(names)} of {len(runs)} runs are of uncommitted code ({list_names(names)})"] if names else []
    )


def is_uncommitted(run: FinishedRun) -> bool:
    return str(run.metrics.get("commit", "")).endswith("+")


KINDS: dict[str, Callable[[list[FinishedRun]], list[str]]] = {
    "task": task_differences,
    "data": data_differences,
    "budget": budget_differences,
    "tokens": tokens_differences,
    "protocol": protocol_differences,
    "code": code_differences,
}
"""For each kind of `mix=` the function that lists how runs differ in it, one line each; [] if they don't."""


# -- descriptions


def describe_fact(name: str, runs: list[FinishedRun], fact: Callable[[FinishedRun], Any]) -> str:
    """One line with every value of a fact and the runs that have it; "" where all runs have the same."""
    return describe_values(name, runs, [fact(run) for run in runs])


def describe_values(name: str, runs: list[FinishedRun], values: list[Any]) -> str:
    names: dict[str, list[str]] = {}
    for value, run in zip(values, runs, strict=True):
        names.setdefault(format_value(value), []).append(run.name)
    if len(names) < 2:
        return ""
    values = [f"{value} ({list_names(group)})" for value, group in names.items()]
    more = f" and {counted(len(values) - MOST_VALUES, 'more value')}" if len(values) > MOST_VALUES else ""
    return f"{name}: {', '.join(values[:MOST_VALUES])}{more}"


def describe_spread(runs: list[FinishedRun], key: str, tolerance: float) -> str:
    """The least and the greatest value of a metric and their runs; "" where they differ by the tolerance at
    most."""
    least, greatest = (pick(runs, key=lambda run: run.metrics[key]) for pick in (min, max))
    if greatest.metrics[key] <= (1 + tolerance) * least.metrics[key]:
        return ""
    values = [f"{format_value(run.metrics[key])} ({run.name})" for run in (least, greatest)]
    return f"{key.replace('_', ' ')}: {', '.join(values)}"


def format_value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def list_names(names: list[str], most: int = 2) -> str:
    listed = ", ".join(names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed
