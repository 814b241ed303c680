"""`zoo sweep`: which runs there are, which count as done, and how their processes are looked after.

Most tests train with a script that takes no time (`pretend`); the last ones with the real thing.
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
from typing import Any

import pytest
import yaml

from zoo.train.commands import sweep
from zoo.train.commands.sweep import arguments, seeds
from zoo.train.sweep import scheduler
from zoo.train.sweep.plan import Job, plan

WORDS = ("size=nano", "data.corpus=text", "steps=8", "trainer.accelerator=cpu")
PRETEND = """
import json, os, pathlib, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(words.get("resume") or words["run_dir"])
log = pathlib.Path("started.txt").open("a")
share = os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES")
print(folder, "resume" in words, *share, file=log, flush=True)
if (pathlib.Path("fails") / folder.name).exists():
    sys.exit("error: no luck")
(folder / "config.yaml").write_text(json.loads(pathlib.Path("configs.json").read_text())[str(folder)])
def leave(*_):
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print("step 4/8  loss 1.5  2.2 bits/byte  900 tokens/s  0:00:01 left", flush=True)
while pathlib.Path("hold").exists():
    time.sleep(0.02)
time.sleep(0.1)
result = {"val/loss": 1.4, "val/bits_per_byte": 2.0, "steps": 8, "task_version": 1, "tokens_per_s": 900}
(folder / "metrics.json").write_text(json.dumps(result))
"""


class Swept:
    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        (folder / "pretend.py").write_text(PRETEND)
        monkeypatch.setattr(scheduler, "PROGRAM", (sys.executable, str(folder / "pretend.py")))
        monkeypatch.setattr(scheduler, "PAUSE", 0.02)

    def jobs(self, *words: str) -> list[Job]:
        own, matrix = arguments([*WORDS, *words])
        return plan(matrix, own)

    def configs(self, *words: str) -> None:
        """What the pretended runs write as their configs."""
        from zoo.train.runs import budget
        from zoo.train.runs.config import compose, stored_config

        said = {}
        own, matrix = arguments([*WORDS, *words])
        for line, job in zip(matrix, plan(matrix, own), strict=True):
            cfg = compose([*line, "run_dir=."])
            cfg.model = budget.solve_width(cfg)
            said[str(job.folder)] = stored_config(cfg)
        (self.folder / "configs.json").write_text(json.dumps(said))

    def run(self, *words: str) -> tuple[Any, str, str]:
        self.configs(*words)
        self.monkeypatch.setattr(sys, "argv", ["zoo sweep", *WORDS, *words])
        code: Any = 0
        try:
            sweep.main()
        except SystemExit as left:
            code = left.code
        return (code, *self.capsys.readouterr())

    def started(self) -> list[str]:
        log = self.folder / "started.txt"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def swept(zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Swept:
    return Swept(zoo.folder, monkeypatch, capsys)


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


# -- what was asked


@pytest.mark.parametrize(
    ("word", "expected"),
    [("0:5", [0, 1, 2, 3, 4]), (":2", [0, 1]), ("2:4", [2, 3]), ("7", [7]), ("0,3", [0, 3])],
)
def test_seeds(word: str, expected: list[int]) -> None:
    assert seeds(word) == expected


SLIPS = [
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


@pytest.mark.parametrize(("word", "expected"), SLIPS, ids=[word for word, _ in SLIPS])
def test_slips_are_one_line_before_anything_starts(swept: Swept, word: str, expected: str) -> None:
    swept.monkeypatch.setattr(swept, "configs", lambda *words: None)
    code, out, err = swept.run(word)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: (sweep: )?.*{expected}.*\n", err)
    assert not (swept.folder / "runs").exists()
    assert swept.started() == []


def test_folders_have_names_that_hold(swept: Swept) -> None:
    ours = swept.jobs("model=rmt,transformer", "seeds=0:2", "optim.lr=0.01")
    again = swept.jobs(
        "optim.lr=0.01", "seeds=0:2", "model=rmt,transformer", "val_every=2", "data.root=x", "task.root=y"
    )
    others = swept.jobs("model=rmt,transformer", "seeds=0:2", "optim.lr=0.02")
    assert [job.folder for job in ours] == [job.folder for job in again]
    assert not {job.folder for job in ours} & {job.folder for job in others}
    assert str(ours[0].folder).startswith("runs/lm/rmt/nano-s0-")
    own, matrix = arguments(["model=rmt", "size=nano", "seeds=4", "runs=elsewhere"])
    assert str(plan(matrix, own)[0].folder) == "elsewhere/lm/rmt/nano-s4"


# -- what counts as done


def test_a_finished_run_is_not_run_again(swept: Swept) -> None:
    words = ("model=rmt,transformer", "seeds=0:2", "jobs=2")
    code, out, err = swept.run(*words)
    assert (code, err) == (0, "")
    assert "4 done" in out
    assert len(swept.started()) == 4
    code, out, _ = swept.run(*words)
    assert code == 0
    assert "4 done" in out
    assert len(swept.started()) == 4
    swept.run(*words[1:], "model=rmt,transformer,mamba")  # a matrix grows
    assert len(swept.started()) == 6


def test_results_count_as_done(swept: Swept) -> None:
    swept.run("model=rmt", "keep=results/runs")
    [kept] = (swept.folder / "results/runs/lm/rmt").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["config.yaml", "metrics.json"]
    code, out, _ = swept.run("model=rmt", "runs=others")
    assert code == 0
    assert f"in results/runs/lm/rmt/{kept.name}" in out
    assert len(swept.started()) == 1


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda config: config["data"].update(root="/elsewhere"), True),
        (lambda config: config.update(val_every=1), True),
        (lambda config: config["trainer"].update(accelerator="auto"), True),
        (lambda config: config["trainer"].pop("compile"), True),  # a setting that is newer than the run
        (lambda config: config["optim"].update(lr=9.0), False),
        (lambda config: config.pop("steps"), False),  # asked for in so many words
        (lambda config: config["model"].update(mlp_width=47), False),
        (lambda config: config["model"].update(more=1), False),
    ],
)
def test_which_results_count(swept: Swept, change: Callable[[Any], Any], counts: bool) -> None:
    swept.run("model=rmt", "keep=results/runs")
    path = next((swept.folder / "results/runs").rglob("config.yaml"))
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))
    code, _, _ = swept.run("model=rmt", "runs=others")
    assert code == 0
    assert len(swept.started()) == 1 + (not counts)


@pytest.mark.parametrize("key", ["task_version", "model_code", "task_code"])
def test_an_older_task_or_other_code_does_not_count(swept: Swept, key: str) -> None:
    swept.run("model=rmt", "keep=results/runs")
    path = next((swept.folder / "results/runs").rglob("metrics.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "0"}))
    swept.run("model=rmt", "runs=others")
    assert len(swept.started()) == 2


def test_a_folder_with_another_run_is_left_alone(swept: Swept) -> None:
    swept.run("model=rmt,transformer")
    path = next((swept.folder / "runs/lm/rmt").rglob("config.yaml"))
    path.write_text(path.read_text().replace("batch_size: 4", "batch_size: 5"))
    before = path.read_text()
    code, out, err = swept.run("model=rmt,transformer")
    assert code == 1
    assert re.search(
        r"failed: lm/rmt/nano-s0: .* holds another run: .*data.batch_size 5 there, 4 asked for", err
    )
    assert "1 failed, 1 done" in out
    assert path.read_text() == before


# -- processes


def test_a_failed_run_is_reported_and_the_others_go_on(swept: Swept) -> None:
    [bad, *_] = swept.jobs("model=rmt", "seeds=0:3")
    (swept.folder / "fails" / bad.folder.name).mkdir(parents=True)
    code, out, err = swept.run("model=rmt", "seeds=0:3")
    assert code == 1
    assert "2 done" in out
    assert err == f"failed: lm/rmt/nano-s0: exit code 1: no luck (see {bad.folder}/output.log)\n"
    (swept.folder / "fails" / bad.folder.name).rmdir()
    assert swept.run("model=rmt", "seeds=0:3")[0] == 0
    assert len(swept.started()) == 4


def test_a_dead_run_is_resumed(swept: Swept) -> None:
    swept.run("model=rmt")
    [job] = swept.jobs("model=rmt")
    (job.folder / "metrics.json").unlink()
    code, out, _ = swept.run("model=rmt")
    assert code == 0
    assert "running  resumed" in out
    assert [line.split()[1] for line in swept.started()] == ["False", "True"]


def test_each_run_has_its_share(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(scheduler, "gpus", lambda jobs: ["3", "5"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert swept.run("model=rmt", "seeds=0:4")[0] == 0
    told = [line.split()[2:] for line in swept.started()]
    assert {threads for threads, _ in told} == {"4"}
    assert {device for _, device in told} == {"3", "5"}


def test_no_more_than_jobs_at_once(swept: Swept) -> None:
    hold = swept.folder / "hold"
    hold.touch()
    swept.configs("model=rmt", "seeds=0:3")
    swept.monkeypatch.setattr(sys, "argv", ["zoo sweep"])
    own, matrix = arguments([*WORDS, "model=rmt", "seeds=0:3", "jobs=2"])
    one = scheduler.Sweep(plan(matrix, own), own)
    other = scheduler.Sweep(plan(matrix, own), own)
    one.step()
    wait_for(lambda: len(swept.started()) == 2)
    one.step()
    assert [job.state for job in one.jobs] == ["running", "running", "waiting"]
    assert "900" in one.row(one.jobs[0])
    other.step()  # a second sweep of the same runs takes the one that is left
    assert [job.state for job in other.jobs] == ["elsewhere", "elsewhere", "running"]
    hold.unlink()
    wait_for(lambda: not one.step() and not other.step())
    assert [job.state for job in [*one.jobs, *other.jobs]] == ["done"] * 6
    assert len(swept.started()) == 3


def test_a_signal_stops_all_and_the_same_command_goes_on(swept: Swept) -> None:
    (swept.folder / "hold").touch()
    swept.monkeypatch.setattr(sys, "argv", ["zoo sweep"])
    words = ("model=rmt", "seeds=0:3", "jobs=2")
    swept.configs(*words)
    own, matrix = arguments([*WORDS, *words])
    one = scheduler.Sweep(plan(matrix, own), own)
    step, done = one.step, []

    def interrupted() -> bool:
        if not done and all(
            (job.folder / "output.log").exists() and "step" in (job.folder / "output.log").read_text()
            for job in one.jobs[:2]
        ):
            done.append(os.kill(os.getpid(), signal.SIGINT))
        return step()

    swept.monkeypatch.setattr(one, "step", interrupted)
    assert one.run() == 130
    assert [(job.state, job.note) for job in one.jobs] == [("stopped", "saved")] * 2 + [("stopped", "")]
    assert "interrupted; the same command goes on from here" in swept.capsys.readouterr().err
    (swept.folder / "hold").unlink()
    assert swept.run(*words)[0] == 0
    assert [line.split()[1] for line in swept.started()] == ["False", "False", "True", "True", "False"]


# -- with real runs


@pytest.mark.slow
def test_killed_half_way_and_started_again(zoo: Any) -> None:
    """Sweep and run get SIGKILL; the numbers are those of runs that nothing happened to."""
    words = [word for word in zoo.words(()) if not word.startswith("run_dir=")]
    command = [sys.executable, "-m", "zoo", "sweep", *words, "seeds=0:2", "jobs=1"]
    process = subprocess.Popen(command, cwd=zoo.folder, env=zoo.env, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: any(zoo.folder.glob("runs/lm/rmt/*-s0-*/checkpoints/last.ckpt")))
    [first] = zoo.folder.glob("runs/lm/rmt/*-s0-*")
    for one in (process.pid, *children(process.pid)):
        os.kill(one, signal.SIGKILL)
    process.communicate()
    dead = not (first / "metrics.json").exists()
    ended = subprocess.run(command, cwd=zoo.folder, env=zoo.env, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "2 done" in ended.stdout
    assert not dead or "resumed" in ended.stdout
    for seed in (0, 1):
        assert zoo.run(f"seed={seed}", f"run_dir=whole{seed}").code == 0
        [folder] = zoo.folder.glob(f"runs/lm/rmt/*-s{seed}-*")
        ours, theirs = zoo.metrics(str(folder)), zoo.metrics(f"whole{seed}")
        assert {key: value for key, value in ours.items() if key not in zoo.CLOCKED} == {
            key: value for key, value in theirs.items() if key not in zoo.CLOCKED
        }


def children(process: int) -> list[int]:
    said = subprocess.run(
        ("ps", "-o", "pid=", "--ppid", str(process)), capture_output=True, text=True, check=False
    )
    return [int(word) for word in said.stdout.split()]
