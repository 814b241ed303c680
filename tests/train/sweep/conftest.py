"""A sweep of runs that take no time."""

from typing import Any

import pytest

from tests.train.sweep.runner import SweepRunner


@pytest.fixture
def runner(zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> SweepRunner:
    return SweepRunner(zoo.folder, monkeypatch, capsys)
