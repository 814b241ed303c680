"""`zoo sweep`: planned jobs, runs that count as done, processes started, resumed and stopped.

Most tests replace training by a script that takes no time; the last one trains.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from zoo.train.commands import sweep
from zoo.train.commands.sweep import arguments, seeds
from zoo.train.sweep import display, process, resources, scheduler
from zoo.train.sweep.job import Job
from zoo.train.sweep.plan import plan

WORDS = ("size=nano", "data.corpus=text", "steps=8", "trainer.accelerator=cpu")
FAKE_TRAINING = """
import json, os, pathlib, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(words.get("resume") or words["run_dir"])
log = pathlib.Path("started.txt").open("a")
resources = os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES")
print(folder, "resume" in words, *resources, file=log, flush=True)
if (pathlib.Path("fails") / folder.name).exists():
    sys.exit("error: no luck")
(folder / "config.yaml").write_text(json.loads(pathlib.Path("configs.json").read_text())[str(folder)])
def leave(*_):
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
progress = {"step": 4, "steps": 8, "loss": 1.5, "tokens_per_s": 900}
progress["val"] = {"loss": 1.6, "bits_per_byte": 2.2}
(folder / "progress.json").write_text(json.dumps(progress))
while pathlib.Path("hold").exists():
    time.sleep(0.02)
time.sleep(0.1)
result = {"val/loss": 1.4, "val/bits_per_byte": 2.0, "steps": 8, "task_version": 1, "tokens_per_s": 900}
(folder / "metrics.json").write_text(json.dumps(result))
"""


class SweepRunner:
    composed: ClassVar[dict[tuple[str, ...], str]] = {}

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        (folder / "fake_training.py").write_text(FAKE_TRAINING)
        monkeypatch.setattr(process, "PROGRAM", (sys.executable, str(folder / "fake_training.py")))
        monkeypatch.setattr(scheduler, "PAUSE", 0.02)

    def jobs(self, *words: str) -> list[Job]:
        options, matrix = arguments([*WORDS, *words])
        return plan(matrix, options)

    def write_configs(self, *words: str) -> None:
        """Writes configs.json, from which the fake runs take their config.yaml; the same words are composed
        once a session."""
        from zoo.train.runs import budget
        from zoo.train.runs.config import compose, stored_config

        if words not in self.composed:
            configs = {}
            for job in self.jobs(*words):
                cfg = compose([*job.words, "run_dir=."])
                cfg.model = budget.solve_width(cfg)
                configs[str(job.folder)] = stored_config(cfg)
            self.composed[words] = json.dumps(configs)
        (self.folder / "configs.json").write_text(self.composed[words])

    def run(self, *words: str) -> tuple[Any, str, str]:
        self.write_configs(*words)
        self.monkeypatch.setattr(sys, "argv", ["zoo sweep", *WORDS, *words])
        code: Any = 0
        try:
            sweep.main()
        except SystemExit as error:
            code = error.code
        return (code, *self.capsys.readouterr())

    def started(self) -> list[str]:
        """Of every process its folder, True if it resumed, its threads and GPUs."""
        log = self.folder / "started.txt"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def runner(zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> SweepRunner:
    return SweepRunner(zoo.folder, monkeypatch, capsys)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# -- plan


@pytest.mark.parametrize(
    ("word", "expected"),
    [("0:5", [0, 1, 2, 3, 4]), (":2", [0, 1]), ("2:4", [2, 3]), ("7", [7]), ("0,3", [0, 3])],
)
def test_seeds(word: str, expected: list[int]) -> None:
    assert seeds(word) == expected


ERRORS = [
    ("seeds=3:1", r"seeds: expected 0:5 .*found '3:1'"),
    ("seeds=a", "seeds: expected 0:5 .*found 'a'"),
    ("seeds=0,0", "seeds: expected 0:5 .*each once, found .0,0."),
    ("seed=1", "seed can't be set here; take seeds="),
    ("run_dir=x", "run_dir can't be set here; take runs="),
    ("resume=x", "resume can't be set here"),
    ("jobs=0", "jobs: expected a whole number of at least 1, found 0"),
    ("jobs=x", "jobs: expected a whole number"),
    ("rmt", "expected key=value, found 'rmt'"),
    ("model=rmt,", "model: expected names with commas between"),
    ("model=rmt,rtm", "Could not find 'model/rtm'"),
    ("modle=rmt", "'modle'"),
    ("optim.lr=1e-3,2e-3", ".*"),
    ("optim.lr=0", "optim.lr: expected a number above 0"),
    ("model.width=abc", ".*"),
    ("results=nowhere", "results: no folder nowhere"),
]


@pytest.mark.parametrize(("word", "expected"), ERRORS, ids=[word for word, _ in ERRORS])
def test_user_errors_are_one_line_before_any_run_starts(
    runner: SweepRunner, word: str, expected: str
) -> None:
    runner.monkeypatch.setattr(runner, "write_configs", lambda *words: None)
    code, out, err = runner.run(word)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: (sweep: )?.*{expected}.*\n", err)
    assert not (runner.folder / "runs").exists()
    assert runner.started() == []


def test_folders_depend_on_the_settings_that_change_results(runner: SweepRunner) -> None:
    jobs = runner.jobs("model=rmt,transformer", "seeds=0:2", "optim.lr=0.01")
    same = runner.jobs(
        "optim.lr=0.01", "seeds=0:2", "model=rmt,transformer", "val_every=2", "data.root=x", "task.root=y"
    )
    different = runner.jobs("model=rmt,transformer", "seeds=0:2", "optim.lr=0.02")
    assert [job.folder for job in jobs] == [job.folder for job in same]
    assert not {job.folder for job in jobs} & {job.folder for job in different}
    assert str(jobs[0].folder).startswith("runs/lm/rmt/nano-s0-")
    options, matrix = arguments(["model=rmt", "size=nano", "seeds=4", "runs=elsewhere"])
    assert str(plan(matrix, options)[0].folder) == "elsewhere/lm/rmt/nano-s4"


# -- finished runs


def test_a_finished_run_is_not_run_again(runner: SweepRunner) -> None:
    words = ("model=rmt,transformer", "seeds=0:2", "jobs=2")
    code, out, err = runner.run(*words)
    assert (code, err) == (0, "")
    assert "4 done" in out
    assert len(runner.started()) == 4
    code, out, _ = runner.run(*words)
    assert code == 0
    assert "4 done" in out
    assert len(runner.started()) == 4
    runner.run(*words[1:], "model=rmt,transformer,mamba")  # a matrix grows
    assert len(runner.started()) == 6


def test_results_count_as_done(runner: SweepRunner) -> None:
    runner.run("model=rmt", "keep=results/runs")
    [copy] = (runner.folder / "results/runs/lm/rmt").iterdir()
    assert sorted(path.name for path in copy.iterdir()) == ["config.yaml", "metrics.json"]
    code, out, _ = runner.run("model=rmt", "runs=others")
    assert code == 0
    assert f"in results/runs/lm/rmt/{copy.name}" in out
    assert len(runner.started()) == 1


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda config: config["data"].update(root="/elsewhere"), True),
        (lambda config: config.update(val_every=1), True),
        (lambda config: config["trainer"].update(accelerator="auto"), True),
        (lambda config: config["trainer"].pop("compile"), True),  # a setting that is newer than the run
        (lambda config: config["optim"].update(lr=9.0), False),
        (lambda config: config.pop("steps"), False),  # on the command line
        (lambda config: config["model"].update(mlp_width=47), False),
        (lambda config: config["model"].update(more=1), False),
    ],
)
def test_which_results_count(runner: SweepRunner, change: Callable[[Any], Any], counts: bool) -> None:
    runner.run("model=rmt", "keep=results/runs")
    path = next((runner.folder / "results/runs").rglob("config.yaml"))
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))
    code, _, _ = runner.run("model=rmt", "runs=others")
    assert code == 0
    assert len(runner.started()) == 1 + (not counts)


@pytest.mark.parametrize("key", ["task_version", "model_code", "task_code"])
def test_an_older_task_or_other_code_does_not_count(runner: SweepRunner, key: str) -> None:
    runner.run("model=rmt", "keep=results/runs")
    path = next((runner.folder / "results/runs").rglob("metrics.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "0"}))
    runner.run("model=rmt", "runs=others")
    assert len(runner.started()) == 2


def test_a_folder_with_another_run_is_left_alone(runner: SweepRunner) -> None:
    runner.run("model=rmt,transformer")
    path = next((runner.folder / "runs/lm/rmt").rglob("config.yaml"))
    path.write_text(path.read_text().replace("batch_size: 4", "batch_size: 5"))
    before = path.read_text()
    code, out, err = runner.run("model=rmt,transformer")
    assert code == 1
    assert re.search(
        r"failed: lm/rmt/nano-s0: .* holds another run: .*data.batch_size 5 there, 4 asked for", err
    )
    assert "1 failed, 1 done" in out
    assert path.read_text() == before


# -- processes


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
    options, matrix = arguments([*WORDS, "model=rmt", "seeds=0:3", "jobs=2"])
    first = scheduler.Sweep(plan(matrix, options), options)
    second = scheduler.Sweep(plan(matrix, options), options)
    first.step()
    wait_for(lambda: len(list(runner.folder.rglob("progress.json"))) == 2)
    first.step()
    assert [job.state for job in first.jobs] == ["running", "running", "waiting"]
    assert display.job_row(first.jobs[0])[2:5] == ("4/8", "2.200 bits/byte", "900")
    second.step()  # takes the run that is left
    assert [job.state for job in second.jobs] == ["elsewhere", "elsewhere", "running"]
    hold.unlink()
    wait_for(lambda: not first.step() and not second.step())
    assert [job.state for job in [*first.jobs, *second.jobs]] == ["done"] * 6
    assert len(runner.started()) == 3


def test_a_signal_stops_all_runs_and_the_same_command_resumes_them(runner: SweepRunner) -> None:
    (runner.folder / "hold").touch()
    words = ("model=rmt", "seeds=0:3", "jobs=2")
    runner.write_configs(*words)
    options, matrix = arguments([*WORDS, *words])
    sweep_run = scheduler.Sweep(plan(matrix, options), options)
    step, signalled = sweep_run.step, False

    def interrupted_step() -> bool:
        nonlocal signalled
        if not signalled and all((job.folder / "progress.json").exists() for job in sweep_run.jobs[:2]):
            signalled = True
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    runner.monkeypatch.setattr(sweep_run, "step", interrupted_step)
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
