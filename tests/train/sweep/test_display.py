"""What a sweep shows of a run: its scores under their names."""

from pathlib import Path

import pytest
from rich.console import Console

from zoo.train.sweep.display import Display, job_row
from zoo.train.sweep.job import Job
from zoo.train.sweep.plan import make_job


def finished_job(task: str, **scores: float) -> Job:
    job = make_job([f"task={task}", "model=rmt", "size=nano"], Path("runs"))
    job.state, job.result = "done", {"steps": 8, "tokens_per_s": 900.0, "val/loss": 1.0, **scores}
    return job


@pytest.mark.parametrize(
    ("task", "scores", "text"),
    [
        ("passkey", {"val/exact": 0.031, "val/accuracy": 0.471}, "exact match 3.1%\nper digit 47.1%"),
        ("passkey", {"val/accuracy": 0.471}, "per digit 47.1%"),  # of a version without exact match
        ("mqar", {"val/exact": 0.5, "val/accuracy": 0.75}, "exact match 50.0%\nper value 75.0%"),
        ("induction", {"val/accuracy": 0.471}, "accuracy 47.1%"),
        ("passkey", {}, ""),  # nats would stand in a column of shares,
    ],
)
def test_a_share_stands_beside_its_name(task: str, scores: dict[str, float], text: str) -> None:
    assert job_row(finished_job(task, **scores))[2] == text


def test_both_scores_fit_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display([finished_job("passkey", **{"val/exact": 1.0, "val/accuracy": 0.998})])
    display.jobs[0].note = "in runs/passkey/rmt/nano-s0"
    console = Console(width=80)
    console.print(display.table(complete=True))
    out = capsys.readouterr().out
    assert "exact match 100.0%" in out
    assert "per digit 99.8%" in out
    assert "passkey/rmt/nano-s0" in out
