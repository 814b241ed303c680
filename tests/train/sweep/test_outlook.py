"""When a sweep will be done, and how its runs are compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from zoo.train.sweep.job import Job, JobState
from zoo.train.sweep.outlook import compare_commands, seconds_left


def make_job(folder: Path, state: JobState = "waiting", seconds: float = 0.0, **config: Any) -> Job:
    names = {"names.model": "rmt", "names.task": "lm", "names.size": "nano"} | config
    job = Job(folder, [], names, set(), 1, {}, {})
    job.state, job.previous_seconds = state, seconds
    return job


def finish(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "metrics.json").write_text(json.dumps({}))


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


def test_the_fewest_folders_without_runs_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [Path("runs/lm", model, f"nano-s{seed}") for model in ("gru", "rmt") for seed in (0, 1)]
    jobs = [make_job(folder, "done") for folder in folders]
    for job in jobs:
        finish(job.folder)
        job.result_folder = job.folder
    assert compare_commands(jobs) == ["zoo compare runs/lm"]
    finish(Path("runs/lm/rmt/micro-s0"))
    expected = "zoo compare runs/lm/gru runs/lm/rmt/nano-s0 runs/lm/rmt/nano-s1"
    assert compare_commands(jobs) == [expected]


def test_runs_that_do_not_compare_have_commands_of_their_own(tmp_path: Path) -> None:
    jobs = []
    for task, size in (("lm", "nano"), ("lm", "tiny"), ("passkey", "nano")):
        folder = tmp_path / task / "rmt" / f"{size}-s0"
        finish(folder)
        jobs.append(make_job(folder, "done", **{"names.task": task, "names.size": size}))
        jobs[-1].result_folder = folder
    commands = compare_commands(jobs)
    lm = tmp_path / "lm" / "rmt"
    assert commands == [
        f"zoo compare {lm / 'nano-s0'}",
        f"zoo compare {lm / 'tiny-s0'}",
        f"zoo compare {tmp_path / 'passkey'}",
    ]
    for job in jobs:
        job.purpose = "score"
    assert compare_commands(jobs) == [f"zoo compare {tmp_path / 'lm'} {tmp_path / 'passkey'}"]
