"""Processes of a sweep: started, resumed and stopped; the last test trains."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.sweep.runner import WORDS, SweepRunner, wait_for
from zoo.train.commands.sweep import parse_args
from zoo.train.sweep import display, resources, scheduler
from zoo.train.sweep.plan import plan


def test_a_failed_run_is_reported_and_the_others_continue(runner: SweepRunner) -> None:
    [job, *_] = runner.jobs("model=rmt", "seeds=0:3")
    (runner.folder / "fails" / job.folder.name).mkdir(parents=True)
    code, out, err = runner.run("model=rmt", "seeds=0:3")
    assert code == 1
    assert "2 done" in out
    assert err == f"failed: lm/rmt/nano-s0: exit code 1: no luck (see {job.folder}/output.log)\n"
    (runner.folder / "fails" / job.folder.name).rmdir()
    assert runner.run("model=rmt", "seeds=0:3")[0] == 0
    assert len(runner.started()) == 4


def test_a_dead_run_is_resumed(runner: SweepRunner) -> None:
    runner.run("model=rmt")
    [job] = runner.jobs("model=rmt")
    (job.folder / "metrics.json").unlink()
    code, out, _ = runner.run("model=rmt")
    assert code == 0
    assert "running  resumed" in out
    assert [line.split()[1] for line in runner.started()] == ["False", "True"]


def test_each_run_has_its_share_of_cores_and_gpus(
    runner: SweepRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(resources, "visible_gpus", lambda jobs: ["3", "5"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert runner.run("model=rmt", "seeds=0:4")[0] == 0
    environments = [line.split()[2:] for line in runner.started()]
    assert {threads for threads, _ in environments} == {"4"}
    assert {gpu for _, gpu in environments} == {"3", "5"}


def test_no_more_than_jobs_at_once(runner: SweepRunner) -> None:
    hold = runner.folder / "hold"
    hold.touch()
    runner.write_configs("model=rmt", "seeds=0:3")
    options, matrix = parse_args([*WORDS, "model=rmt", "seeds=0:3", "jobs=2"])
    first = scheduler.Sweep(plan(matrix, options), options)
    second = scheduler.Sweep(plan(matrix, options), options)
    first.poll()
    wait_for(lambda: len(list(runner.folder.rglob("progress.json"))) == 2)
    first.poll()
    assert [job.state for job in first.jobs] == ["running", "running", "waiting"]
    assert display.job_row(first.jobs[0])[2:4] == ("2.200 bits/byte", "4/8")
    assert display.job_row(first.jobs[0])[5] == "900"
    second.poll()  # takes the run that is left
    assert [job.state for job in second.jobs] == ["running elsewhere", "running elsewhere", "running"]
    hold.unlink()
    wait_for(lambda: not first.poll() and not second.poll())
    assert [job.state for job in [*first.jobs, *second.jobs]] == ["done"] * 6
    assert len(runner.started()) == 3


def test_a_signal_stops_all_runs_and_the_same_command_resumes_them(runner: SweepRunner) -> None:
    (runner.folder / "hold").touch()
    words = ("model=rmt", "seeds=0:3", "jobs=2")
    runner.write_configs(*words)
    options, matrix = parse_args([*WORDS, *words])
    sweep_run = scheduler.Sweep(plan(matrix, options), options)
    poll, signalled = sweep_run.poll, False

    def interrupted_poll() -> bool:
        nonlocal signalled
        if not signalled and all((job.folder / "progress.json").exists() for job in sweep_run.jobs[:2]):
            signalled = True
            os.kill(os.getpid(), signal.SIGINT)
        return poll()

    runner.monkeypatch.setattr(sweep_run, "poll", interrupted_poll)
    assert sweep_run.run() == 130
    states = [(job.state, job.note) for job in sweep_run.jobs]
    assert states == [("stopped", "saved"), ("stopped", "saved"), ("stopped", "")]
    assert "interrupted; the same command resumes the sweep" in runner.capsys.readouterr().err
    (runner.folder / "hold").unlink()
    assert runner.run(*words)[0] == 0
    assert [line.split()[1] for line in runner.started()] == ["False", "False", "True", "True", "False"]


def test_progress_of_a_run_that_has_none_is_empty(tmp_path: Path) -> None:
    assert display.read_progress(tmp_path) == {}
    (tmp_path / "progress.json").write_text("{")
    assert display.read_progress(tmp_path) == {}


# -- real training


@pytest.mark.slow
def test_a_sweep_killed_half_way_and_started_again(zoo: Any) -> None:
    """Sweep and run get SIGKILL; the numbers are those of uninterrupted runs."""
    words = [word for word in zoo.with_settings(()) if not word.startswith("run_dir=")]
    command = [sys.executable, "-m", "zoo", "sweep", *words, "seeds=0:2", "jobs=1"]
    killed = subprocess.Popen(command, cwd=zoo.folder, env=zoo.env, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: any(zoo.folder.glob("runs/lm/rmt/*-s0-*/checkpoints/last.ckpt")))
    [first] = zoo.folder.glob("runs/lm/rmt/*-s0-*")
    for pid in (killed.pid, *children(killed.pid)):
        os.kill(pid, signal.SIGKILL)
    killed.communicate()
    unfinished = not (first / "metrics.json").exists()
    second = subprocess.run(command, cwd=zoo.folder, env=zoo.env, capture_output=True, text=True, timeout=300)
    assert (second.returncode, second.stderr) == (0, "")
    assert "2 done" in second.stdout
    assert not unfinished or "resumed" in second.stdout
    for seed in (0, 1):
        assert zoo.run(f"seed={seed}", f"run_dir=uninterrupted{seed}").code == 0
        [folder] = zoo.folder.glob(f"runs/lm/rmt/*-s{seed}-*")
        resumed, uninterrupted = (
            {key: value for key, value in zoo.metrics(name).items() if key not in zoo.VOLATILE}
            for name in (str(folder), f"uninterrupted{seed}")
        )
        assert resumed == uninterrupted


def children(pid: int) -> list[int]:
    ps = subprocess.run(("ps", "-o", "pid=", "--ppid", str(pid)), capture_output=True, text=True, check=False)
    return [int(word) for word in ps.stdout.split()]
