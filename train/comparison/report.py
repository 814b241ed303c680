"""A report on finished runs: one comparison, or of a protocol one for each task, with their aggregates."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import UserError
from zoo.train.comparison.comparison import Comparison, compare_by_protocol, compare_runs
from zoo.train.comparison.groups import FinishedRun, group_runs, read_diverged, read_run
from zoo.train.comparison.over_tasks import OverTasks, over_tasks
from zoo.train.comparison.partition import select
from zoo.train.runs import protocol
from zoo.train.runs.folder import folders


class Report(NamedTuple):
    comparisons: list[Comparison]
    over_tasks: list[OverTasks]
    """A row per model that has runs on every task; of a single task there are none."""
    command: str

    @property
    def title(self) -> str:
        if len(self.comparisons) == 1:
            return self.comparisons[0].title
        tasks = ", ".join(str(comparison.runs[0].config["names.task"]) for comparison in self.comparisons)
        return f"{len(self.comparisons)} tasks: {tasks} (protocol {self.comparisons[0].protocol})"


def report(
    paths: Sequence[Path],
    *,
    baseline: str | None = None,
    loss: float | None = None,
    mix: Sequence[str] = (),
    group: str | None = None,
    command: str = "",
) -> Report:
    """The finished runs below some folders, compared.

    `baseline` is the label of a row, `loss` the held-out loss to which steps are counted, `mix` the kinds
    of settings in which runs may differ, `group` the one of several groups that compare among themselves
    (zoo.train.comparison.partition), `command` the command line for the report.
    Raises UserError if there are no runs, or if some aren't comparable.
    """
    runs = finished_runs(paths)
    if group is not None:
        runs = select(runs, group)
    options: dict[str, Any] = {"baseline": baseline, "loss": loss, "mix": mix, "command": command}
    versions = {run.protocol.get("protocol") for run in runs}
    if None in versions or len(versions) > 1:
        return Report([compare_runs(runs, **options)], [], command)
    by_task: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        if run.protocol["purpose"] == protocol.SCORE:
            by_task.setdefault((run.config["names.task"], str(run.config["names.size"])), []).append(run)
    if not by_task:
        raise UserError("compare: all of these runs chose learning rates; expected some with scores")
    rate_runs = [run for run in runs if run.protocol["purpose"] in protocol.CHOOSE_RATE]
    options["rate_runs"] = rate_runs + diverged_runs(paths)
    options["long_runs"] = [run for run in runs if run.protocol["purpose"] == protocol.LONG]
    tasks = list(by_task.values())
    has_baseline = [baseline in {group.label for group in group_runs(of_task)} for of_task in tasks]
    elsewhere = baseline if baseline is not None and any(has_baseline) else ""
    comparisons = [
        compare_by_protocol(of_task, **options, baseline_elsewhere="" if has else elsewhere)
        for of_task, has in zip(tasks, has_baseline, strict=True)
    ]
    return Report(comparisons, over_tasks(comparisons) if len(comparisons) > 1 else [], command)


def finished_runs(paths: Sequence[Path]) -> list[FinishedRun]:
    finished, others = folders(paths)
    if unfinished := [str(folder) for folder in others if not protocol.has_diverged(folder)]:
        print(f"left out, not finished: {', '.join(unfinished)}", file=sys.stderr)
    if not finished:
        raise UserError(f"compare: no finished run below {', '.join(map(str, paths))}")
    return [read_run(folder) for folder in finished]


def read_finished(paths: Sequence[Path]) -> list[FinishedRun]:
    return [read_run(folder) for folder in folders(paths)[0]]


def diverged_runs(paths: Sequence[Path]) -> list[FinishedRun]:
    return [read_diverged(folder) for folder in folders(paths)[1] if protocol.has_diverged(folder)]
