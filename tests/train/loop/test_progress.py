"""The line that a run shows on a terminal."""

from pathlib import Path
from unittest.mock import Mock

import lightning as L
import pytest

from zoo.train.loop.metrics import Metrics
from zoo.train.loop.progress import ProgressReport, progress_line
from zoo.train.tasks.base import Task

PARTS = ["step 119999/120000", "loss 2.345", "3.383 bits/byte", "123,456 targets/s", "12:34:56 left"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_step_loss_speed_and_time_are_whole(width: int) -> None:
    line = progress_line(PARTS, 0.5, width - 1)
    for part in (PARTS[0], PARTS[1], PARTS[3], PARTS[4]):
        assert part in line
    assert len(line) <= width - 1 or width == 60  # these are 63 columns
    assert ("bits/byte" in line) == (width > 80)
    assert ("━" in line) == (width >= 80)


def test_the_bar_takes_what_is_left_and_shows_the_share() -> None:
    line = progress_line(["step 1/4", "loss 2.000", "0:00:09 left"], 0.25, 60)
    assert len(line) == 60
    bar = line.split("  ")[1]
    assert bar == "━" * round(len(bar) / 4) + "─" * (len(bar) - round(len(bar) / 4))


def test_no_bar_of_less_than_four_columns() -> None:
    parts = ["step 1/4", "left"]
    assert progress_line(parts, 1.0, len("  ".join(parts)) + 5) == "step 1/4  left"
    assert progress_line(parts, 1.0, len("  ".join(parts)) + 6) == "step 1/4  ━━━━  left"


@pytest.mark.parametrize(
    ("seconds", "end"), [(9.9, "accuracy 50.0%"), (83.4, "accuracy 50.0%  took 0:01:23")]
)
def test_a_slow_validation_says_how_long_it_took(
    seconds: float,
    end: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = Mock(spec=Task, metric="accuracy", target_noun="target")
    report = ProgressReport(Mock(spec=Metrics, task=task, latest={"val/accuracy": 0.5}), tmp_path)
    trainer = Mock(spec=L.Trainer, is_global_zero=True, global_step=3, max_steps=4)
    model = Mock(spec=L.LightningModule)
    clock = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr("zoo.train.loop.progress.time.perf_counter", lambda: next(clock))
    with caplog.at_level("INFO"):
        report.on_validation_start(trainer, model)
        report.on_validation_end(trainer, model)
    assert caplog.messages == [f"step 3/4  held-out samples: {end}"]
