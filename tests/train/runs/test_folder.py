"""The error for a folder without a run names a run near it."""

from pathlib import Path

import pytest

from zoo.train.runs.folder import no_run

EXPECTED = "expected a run's folder with a config.yaml, found none in "


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "'nowhere'"),
        ("", "''"),
        ("runs/lm/rmt", "'runs/lm/rmt'; there is one in runs/lm/rmt/micro-s0-3f"),
        ("runs", "'runs'; there is one in runs/lm/rmt/micro-s0-3f"),
        ("runs/lm/rmt/micro-s1", "'runs/lm/rmt/micro-s1'; did you mean runs/lm/rmt/micro-s1-3f?"),
        ("runs/lm/rmt/tiny", "'runs/lm/rmt/tiny'"),
    ],
)
def test_runs_nearby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("micro-s0-3f", "micro-s1-3f"):
        (tmp_path / "runs/lm/rmt" / run).mkdir(parents=True)
        (tmp_path / "runs/lm/rmt" / run / "config.yaml").touch()
    assert str(no_run(Path(folder))) == EXPECTED + message
