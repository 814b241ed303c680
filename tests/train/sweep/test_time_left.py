"""How long a sweep will still take."""

from pathlib import Path
from typing import Any

import pytest

from zoo.train.sweep.job import Job, JobState
from zoo.train.sweep.time_left import seconds_left


def make_job(folder: Path, state: JobState = "waiting", seconds: float = 0.0, **config: Any) -> Job:
    names = {"names.model": "rmt", "names.task": "lm", "names.size": "nano"} | config
    job = Job(folder, [], names, set(), 1, {}, {})
    job.state, job.previous_seconds = state, seconds
    return job


def test_nothing_is_known_before_a_run_has_ended() -> None:
    assert seconds_left([make_job(Path("a")), make_job(Path("b"), "running")], 1) is None
    assert seconds_left([make_job(Path("a")), make_job(Path("b"), "done")], 1) is None  # of an earlier sweep
    assert seconds_left([make_job(Path("a")), make_job(Path("b"), "failed", 3.0)], 1) is None


def test_runs_take_as_long_as_those_like_them() -> None:
    slow = {"names.model": "mamba"}
    jobs = [make_job(Path("a"), "done", 10.0), make_job(Path("b"), "done", 20.0), make_job(Path("c"))]
    assert seconds_left(jobs, 1) == 15
    jobs += [make_job(Path("d"), "done", 100.0, **slow), make_job(Path("e"), **slow)]
    assert seconds_left(jobs, 1) == 115
    assert seconds_left(jobs, 2) == 100  # no less than the longest run
    other = make_job(Path("f"), **{"names.model": "gru"})
    assert seconds_left([*jobs, other], 1) == pytest.approx(115 + 130 / 3)
    jobs[2].previous_seconds = 12.0  # it was interrupted
    assert seconds_left(jobs, 1) == 103
    for job in jobs:
        job.state = "done"
    assert seconds_left(jobs, 1) == 0
