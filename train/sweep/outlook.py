"""When a sweep will be done, and the commands that compare its runs."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from zoo.train.runs.folder import folders
from zoo.train.sweep.job import Job


def seconds_left(jobs: Sequence[Job], num_slots: int) -> float | None:
    """What is left to do, shared by the slots: a run takes as long as those of its model, task and size that
    ended in this sweep, or else as all that ended; None before the first has ended."""
    ended = [job for job in jobs if job.state in ("done", "diverged") and job.previous_seconds > 0]
    if not ended:
        return None
    remaining = []
    for job in jobs:
        if job.is_waiting or job.state == "running":
            alike = [other.previous_seconds for other in ended if kind(other) == kind(job)]
            expected = mean(alike or [other.previous_seconds for other in ended])
            remaining.append(max(0.0, expected - job.seconds))
    return max([sum(remaining) / num_slots, *remaining], default=0.0)


def kind(job: Job) -> tuple[object, ...]:
    return tuple(job.config[f"names.{key}"] for key in ("model", "task", "size"))


def compare_commands(jobs: Sequence[Job]) -> list[str]:
    """A command for all runs of a protocol, or one for each task and size: runs of several aren't compared.

    Each names folders that hold no finished runs but the sweep's.
    """
    done = [job for job in jobs if job.result_folder is not None]
    groups: dict[tuple[object, ...], list[Job]] = {}
    for job in done:
        groups.setdefault(() if job.purpose else kind(job)[1:], []).append(job)
    return [shlex.join(["zoo", "compare", *map(str, covering(group))]) for group in groups.values()]


def covering(jobs: Sequence[Job]) -> list[Path]:
    """The fewest folders that have the results of all jobs, and no other finished run."""
    runs = {job.result_folder for job in jobs if job.result_folder is not None}
    roots = {
        job.folder.parents[1] if job.result_folder == job.folder else job.result_folder
        for job in jobs
        if job.result_folder is not None
    }
    result: list[Path] = []
    left = sorted(root for root in roots if not roots & set(root.parents))
    while left:
        folder = left.pop(0)
        if set(folders([folder])[0]) <= runs:
            result.append(folder)
        else:
            left += sorted(
                child for child in folder.iterdir() if any(run.is_relative_to(child) for run in runs)
            )
    return result
