"""The commands that compare a sweep's runs: theirs alone, in as few folders as can be."""

import json
from pathlib import Path

import pytest

from tests.train.sweep.test_time_left import make_job
from zoo.train.sweep.compare_commands import compare_commands


def finish(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "metrics.json").write_text(json.dumps({}))


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
