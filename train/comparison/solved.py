"""Runs of a task that is learned in a jump: how many solved it, and after how many steps."""

from collections.abc import Sequence

from zoo.train.comparison.groups import FinishedRun, RunGroup, differing_settings
from zoo.train.evaluation.intervals import wilson
from zoo.train.runs.protocol import LONG_SETTINGS


def count(group: RunGroup) -> tuple[int, int]:
    """Runs that solved the task, and runs."""
    return sum(steps(run) is not None for run in group.runs), len(group.runs)


def steps(run: FinishedRun) -> float | None:
    """Steps until the run had solved its task; None if it hadn't when it ended."""
    step = run.metrics.get("solved_at")
    return None if step is None else float(step)


def end(run: FinishedRun) -> int:
    """Steps after which the run ended: solved, stopped by a callback, or at its last."""
    return int(run.metrics.get("steps_done", run.config["steps"]))


def collapsed(group: RunGroup) -> int:
    """Runs that fell back to chance after they had passed a stage of the curriculum."""
    return sum(bool(run.metrics.get("collapsed")) for run in group.runs)


def describe_count(group: RunGroup) -> str:
    """ "2 of 3 (21% to 94%)", with Wilson's interval."""
    hits, runs = count(group)
    low, high = wilson(hits, runs)
    fallen = collapsed(group)
    return f"{hits} of {runs} ({low:.0%} to {high:.0%})" + (f", {fallen} collapsed" if fallen else "")


def describe_long_run(group: RunGroup, long_runs: Sequence[FinishedRun]) -> str:
    """ "2,900" or "> 4,800": when the row's run with more steps solved the task; "" without one."""
    for run in long_runs:
        if all(key in LONG_SETTINGS for key in differing_settings(group.runs[0], run)):
            step = steps(run)
            return f"> {end(run):,}" if step is None else f"{step:,.0f}"
    return ""
