"""The commands that compare a sweep's runs."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from zoo.train.runs.folder import folders
from zoo.train.sweep.job import Job


def compare_commands(jobs: Sequence[Job]) -> list[str]:
    """A command for all runs of a protocol, or one for each task and size: runs of several aren't compared.

    Each names folders that hold no finished runs but the sweep's.
    """
    done = [job for job in jobs if job.result_folder is not None]
    groups: dict[tuple[object, ...], list[Job]] = {}
    for job in done:
        groups.setdefault(() if job.purpose else job.kind[1:], []).append(job)
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
