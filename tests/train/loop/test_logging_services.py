"""Loggers of services whose packages are large: installed here, and read back without the service."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_resumed_run_is_whole_in_a_run_of_its_own(name: str, tmp_path: Path) -> None:
    """What the killed process logged stays where it is; the resumed one has every value once."""
    site, folder = tmp_path / "site", tmp_path / "runs"
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site), name]
    installed = subprocess.run(
        [*pip, "-c", str(ROOT / "constraints/cpu.txt")], capture_output=True, text=True, check=False
    )
    assert installed.returncode == 0, installed.stderr[-2000:]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.train.loop.logged_runs", name],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    logged = json.loads(ended.stdout.splitlines()[-1])
    killed, resumed = logged["runs"]
    assert logged["stray"] == []
    assert len(logged["expected"]) == 8
    for points, expected in ((killed, logged["expected"][:5]), (resumed, logged["expected"])):
        assert [x for x, _ in points] == [x for x, _ in expected]
        assert [loss for _, loss in points] == pytest.approx([loss for _, loss in expected])
