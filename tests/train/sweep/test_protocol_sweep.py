"""`zoo sweep protocol=1`: which runs choose a rate, which follow, and how a sweep goes on elsewhere."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from zoo.train.commands import sweep
from zoo.train.commands.sweep import parse_args
from zoo.train.runs import protocol as rules
from zoo.train.sweep import plan, process, protocol, scheduler
from zoo.train.sweep.job import Job
from zoo.train.sweep.protocol import Protocol

WORDS = (
    "model=rmt",
    "task=passkey",
    "size=nano",
    "task.form=compact",
    "task.length=64",
    "steps=40",
    "trainer.accelerator=cpu",
    "protocol=1",
    "beyond=20",
)
FAKE_TRAINING = """
import json, pathlib, sys
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(words["run_dir"])
print("train", folder, words["optim.lr"], words["seed"], file=pathlib.Path("started.txt").open("a"))
outcomes = json.loads(pathlib.Path("outcomes.json").read_text())
short = "short" if words["task.length"] == "16" else "full"
rate = f"{short} {words['optim.lr']}"
outcome = outcomes.get(f"{rate} {words['seed']}", outcomes.get(rate))
(folder / "config.yaml").write_text(pathlib.Path("configs", folder).read_text())
if outcome == "diverges":
    sys.exit("error: step 3: the loss or a gradient is not finite; first in layer x")
if outcome == "dies":
    sys.exit("error: no luck")
solved, loss = outcome
result = {"val/loss": loss, "val/exact": 0.5, "steps": 40, "task_version": int(words.get("v", VERSION))}
(folder / "metrics.json").write_text(json.dumps(result | {"solved_at": solved, "collapsed": False}))
"""
FAKE_EVALUATION = """
import json, pathlib, sys
words = dict(word.split("=", 1) for word in sys.argv[1:])
if pathlib.Path("evaluation_fails").exists():
    sys.exit("error: no luck either")
print("evaluate", *sys.argv[1:], file=pathlib.Path("started.txt").open("a"))
pathlib.Path(words["run"], "evaluation.json").write_text('{"format": 1, "evaluations": []}')
"""


class ProtocolRunner:
    """Sweeps in this process whose runs are scripts that take no time."""

    composed: ClassVar[dict[tuple[str, ...], Job]] = {}

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        version = json.dumps(self.task_version())
        (folder / "train.py").write_text(FAKE_TRAINING.replace("VERSION", version))
        (folder / "evaluate.py").write_text(FAKE_EVALUATION)
        monkeypatch.setattr(process, "PROGRAM", (sys.executable, str(folder / "train.py")))
        monkeypatch.setattr(process, "EVALUATE", (sys.executable, str(folder / "evaluate.py")))
        monkeypatch.setattr(scheduler, "POLL_INTERVAL", 0.02)
        monkeypatch.setattr(protocol, "make_job", self.make_job)

    @staticmethod
    def task_version() -> int:
        from zoo.train.tasks.passkey import Passkey

        return Passkey.VERSION

    def make_job(self, overrides: list[str], runs: Path, purpose: str = "") -> Job:
        """The job itself, and what its fake run writes as config.yaml; each is composed once a session."""
        key = (*overrides, str(runs), purpose)
        if key not in self.composed:
            self.composed[key] = plan.make_job(overrides, runs, purpose)
        job = dataclasses.replace(self.composed[key], result={})
        nested: dict[str, Any] = {}
        for key, value in job.config.items():
            *groups, last = key.split(".")
            node = nested
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = value
        path = self.folder / "configs" / job.folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(nested))
        return job

    def run(self, *words: str, **outcomes: Any) -> tuple[Any, str, str]:
        """`outcomes` by "short RATE", "full RATE" or "full RATE SEED": solved_at and loss, or how it ends."""
        if outcomes:
            (self.folder / "outcomes.json").write_text(json.dumps(outcomes["of"]))
        self.monkeypatch.setattr(sys, "argv", ["zoo sweep", *WORDS, *words])
        code: Any = 0
        try:
            sweep.main()
        except SystemExit as error:
            code = error.code
        return (code, *self.capsys.readouterr())

    def trained(self) -> list[tuple[str, str]]:
        """Rate and seed of every run that was trained, in order; the short ones' seed is "short"."""
        lines = [line.split() for line in self.lines() if line.startswith("train")]
        return [(rate, "short" if self.is_short(folder) else seed) for _, folder, rate, seed in lines]

    def is_short(self, folder: str) -> bool:
        return yaml.safe_load((self.folder / "configs" / folder).read_text())["task"]["length"] == 16

    def lines(self) -> list[str]:
        log = self.folder / "started.txt"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def runner(zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ProtocolRunner:
    return ProtocolRunner(zoo.folder, monkeypatch, capsys)


SOLVES = {
    "short 0.001": [30, 1.0],
    "short 0.004": [20, 1.0],
    "short 0.016": [None, 2.0],
    "full 0.004": [40, 0.5],
    "full 0.001": [30, 0.6],
}
TRIED = [("0.001", "short"), ("0.004", "short"), ("0.016", "short"), ("0.004", "100"), ("0.001", "100")]


def test_rates_are_chosen_then_seeds_run_and_are_evaluated(runner: ProtocolRunner) -> None:
    code, out, err = runner.run("keep=kept", of=SOLVES)
    assert (code, err) == (0, "")
    assert runner.trained() == [*TRIED, ("0.001", "0"), ("0.001", "1"), ("0.001", "2")]  # the earlier solver
    evaluated = [line for line in runner.lines() if line.startswith("evaluate")]
    assert [line.split(" ", 2)[2] for line in evaluated] == [
        "lengths=1x depths=none prompts=512",
        "lengths=4x depths=none prompts=128",
        "lengths=16x depths=none prompts=64",
    ] * 3
    copies = sorted((runner.folder / "kept").rglob("protocol.json"))
    purposes = [json.loads(copy.read_text())["purpose"] for copy in copies]
    assert sorted(purposes) == ["rate"] * 2 + ["score"] * 3 + ["short rate"] * 3
    assert "passkey/rmt/nano-s100 short rate 0.001" in out
    # elsewhere, from the committed files alone, nothing is left to do
    code, out, err = runner.run("results=kept", "runs=elsewhere")
    assert (code, err) == (0, "")
    assert len(runner.trained()) == 8
    assert not (runner.folder / "elsewhere").exists()


def test_a_sweep_that_died_half_way_goes_on_elsewhere_with_the_same_runs(runner: ProtocolRunner) -> None:
    code, _, err = runner.run("keep=kept", of=SOLVES | {"full 0.001 1": "dies"})
    assert code == 1
    assert "no luck" in err
    before = runner.trained()
    code, _, err = runner.run("results=kept", "runs=elsewhere", of=SOLVES)
    assert (code, err) == (0, "")
    assert runner.trained() == [*before, ("0.001", "1")]


def test_an_edge_extends_the_grid_once(runner: ProtocolRunner) -> None:
    outcomes = SOLVES | {"short 0.016": [10, 1.0], "short 0.064": [5, 1.0]}
    runner.run(of=outcomes | {"full 0.064": [None, 2.0], "full 0.016": [None, 1.5]})
    tried = [*TRIED[:3], ("0.064", "short"), ("0.064", "100"), ("0.016", "100")]
    scores = [("0.016", "0"), ("0.016", "1"), ("0.016", "2")]
    assert runner.trained() == [*tried, *scores, ("0.016", "0")]  # the last with more steps


def test_a_rate_that_diverges_is_not_chosen_and_no_failure(runner: ProtocolRunner) -> None:
    outcomes = SOLVES | {"short 0.016": "diverges", "full 0.004": "diverges"}
    code, out, err = runner.run("keep=kept", of=outcomes)
    assert (code, err) == (0, "")
    assert "2 diverged" in out
    assert runner.trained()[5:] == [("0.001", "0"), ("0.001", "1"), ("0.001", "2")]
    for words in ((), ("results=kept", "runs=elsewhere")):  # neither here nor elsewhere is one tried again
        code, out, err = runner.run(*words)
        assert (code, err) == (0, "")
        assert "2 diverged" in out
        assert len(runner.trained()) == 8


def test_a_rate_run_that_fails_otherwise_decides_nothing(runner: ProtocolRunner) -> None:
    code, _, err = runner.run(of=SOLVES | {"short 0.016": "dies"})
    assert code == 1
    assert "failed: passkey/rmt/nano-s100 short rate 0.016: exit code 1: no luck" in err
    assert len(runner.trained()) == 3


def test_seeds_that_disagree_get_two_more(runner: ProtocolRunner) -> None:
    runner.run(of=SOLVES | {"full 0.001 1": [None, 1.0]})
    assert runner.trained()[5:] == [("0.001", str(seed)) for seed in range(5)]


def test_a_row_without_a_solver_is_given_four_times_the_steps_once(runner: ProtocolRunner) -> None:
    unsolved = {f"full 0.001 {seed}": [None, 1.0] for seed in range(3)}
    code, out, err = runner.run(of=SOLVES | unsolved)
    assert (code, err) == (0, "")
    assert runner.trained()[5:] == [("0.001", seed) for seed in ("0", "1", "2", "0")]
    assert "passkey/rmt/nano-s0 160 steps" in out
    [long_run] = [path for path in Path("runs").rglob("protocol.json") if "long" in path.read_text()]
    usual, other = (
        yaml.safe_load((folder / "config.yaml").read_text())
        for folder in (next(p.parent for p in Path("runs").rglob("nano-s1-*/config.yaml")), long_run.parent)
    )
    assert (usual["steps"], other["steps"]) == (40, 160)
    for key, value in {"warmup": 4, "decay": 0.25}.items():  # the same run up to the usual steps
        assert (usual["optim"][key], other["optim"][key]) == (value, value)
    assert usual["data"].get("curriculum") == other["data"].get("curriculum")
    assert runner.run()[0] == 0
    assert len(runner.trained()) == 9
    assert not any(line.startswith(f"evaluate run={long_run.parent}") for line in runner.lines())


def test_a_run_with_more_steps_is_the_usual_one_up_to_its_last_step(zoo: Any) -> None:
    """Before the decay that ends both."""
    words = ["model=rmt", "task=passkey", "size=nano", "task.form=compact", "task.length=32", "steps=12"]
    words += ["trainer.accelerator=cpu", "task.eval_samples=8", "val_every=4", "protocol=1", "beyond=8"]
    options, matrix = parse_args(words)
    [cell] = Protocol(matrix, options).cells
    curves = {}
    for name, overrides in {"usual": cell.full(1e-3, 0, 8), "long": cell.long(1e-3, 8)}.items():
        assert zoo.run(*overrides, f"run_dir={name}", as_given=True).code == 0
        curves[name] = zoo.metrics(name)["curve"]
    assert [point["step"] for point in curves["usual"][:3]] == [4, 8, 12]
    assert curves["long"][-1]["step"] > 48
    for usual, longer in zip(curves["usual"][:3], curves["long"], strict=False):
        assert usual["val/loss"] == longer["val/loss"]


def test_a_run_without_evaluation_is_evaluated_and_not_trained_again(runner: ProtocolRunner) -> None:
    (runner.folder / "evaluation_fails").touch()
    code, _, err = runner.run("seeds=0", of=SOLVES)
    assert code == 1
    assert "no luck either" in err
    (runner.folder / "evaluation_fails").unlink()
    trained = runner.trained()
    assert runner.run("seeds=0")[0] == 0
    assert runner.trained() == trained
    assert len([line for line in runner.lines() if line.startswith("evaluate")]) == 3


def test_collapse_loses_and_ties_go_to_the_smaller_loss_then_the_smaller_rate() -> None:
    slow = {"solved_at": None, "collapsed": False, "val/loss": 1.0}
    solved, collapsed = slow | {"solved_at": 9}, slow | {"collapsed": True}
    assert rules.best_rate({0.1: slow, 0.2: solved, 0.3: collapsed}) == 0.2
    assert rules.best_rate({0.1: slow, 0.2: slow | {"val/loss": 0.9}}) == 0.2
    assert rules.best_rate({0.2: slow, 0.1: slow}) == 0.1
    assert rules.best_rate({0.1: None, 0.2: collapsed}) == 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("optim.lr=1e-3",), "optim.lr can't be set with protocol=1, which chooses it"),
        (("seeds=100:103",), "seeds: 100 chooses learning rates under protocol=1, so no score uses it"),
        (("seeds=7,100",), "seeds: 100 chooses learning rates under protocol=1, so no score uses it"),
        (("compare.jump=false",), "compare.jump can't be set here; the task's yaml file fixes it"),
    ],
)
def test_what_the_protocol_sets_is_refused(
    runner: ProtocolRunner, words: tuple[str, ...], message: str
) -> None:
    code, out, err = runner.run(*words)
    assert (code, out, err) == (2, "", f"error: sweep: {message}\n")


def test_beyond_needs_a_protocol(runner: ProtocolRunner) -> None:
    runner.monkeypatch.setattr(sys, "argv", ["zoo sweep", "model=rmt", "beyond=3"])
    with pytest.raises(SystemExit) as ended:
        sweep.main()
    assert ended.value.code == 2
    assert "beyond has no effect without protocol=1" in runner.capsys.readouterr().err


def test_text_tries_the_grid_at_half_the_steps(runner: ProtocolRunner) -> None:
    shutil.copytree("text/val", "text/test")
    words = ["model=rmt", "task=lm", "size=nano", "data.corpus=text", "steps=40", "protocol=1"]
    options, matrix = parse_args(words)
    by_protocol = Protocol(matrix, options)
    first = by_protocol.jobs()
    assert [(job.config["steps"], job.config["optim.lr"], job.config["seed"]) for job in first] == [
        (20, rate, 100) for rate in (1e-3, 4e-3, 1.6e-2)
    ]
    assert by_protocol.beyond is None
    for job, loss in zip(first, (2.0, 1.0, 3.0), strict=True):
        job.state, job.result = "done", {"val/loss": loss}
    scores = by_protocol.jobs()[3:]
    assert [(job.config["steps"], job.config["optim.lr"], job.config["seed"]) for job in scores] == [
        (40, 4e-3, seed) for seed in (0, 1, 2)
    ]
    assert scores[0].evaluations == [["tokens=1000000"]]


def test_a_text_without_a_test_split_is_refused_before_any_run(
    zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("model=rmt", "size=nano", "task=lm", "data.corpus=text", "steps=8", "protocol=1")
    monkeypatch.setattr(sys, "argv", ["zoo sweep", *words])
    with pytest.raises(SystemExit) as ended:
        sweep.main()
    assert ended.value.code == 2
    assert "corpus text has no split 'test'" in capsys.readouterr().err
    assert not (zoo.folder / "runs").exists()
