"""Which run is meant where a folder holds none."""

from pathlib import Path

import pytest

from zoo.train.runs.folder import no_run

FOUND = "expected a run's folder with a config.yaml, found none in "


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("nowhere", "'nowhere'"),
        ("", "''"),
        ("runs/lm/rmt", "'runs/lm/rmt'; there is one in runs/lm/rmt/micro-s0-3f"),
        ("runs", "'runs'; there is one in runs/lm/rmt/micro-s0-3f"),
        ("runs/lm/rmt/micro-s1", "'runs/lm/rmt/micro-s1'; did you mean runs/lm/rmt/micro-s1-3f?"),
        ("runs/lm/rmt/tiny", "'runs/lm/rmt/tiny'"),
    ],
)
def test_near_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("micro-s0-3f", "micro-s1-3f"):
        (tmp_path / "runs/lm/rmt" / run).mkdir(parents=True)
        (tmp_path / "runs/lm/rmt" / run / "config.yaml").touch()
    assert str(no_run(Path(named))) == FOUND + says
