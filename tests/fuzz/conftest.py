"""What every bad input must meet: one line on stderr, exit code 2, and everything left as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from tests.train.conftest import same_checkpoints, zoo

__all__ = ["same_checkpoints", "zoo"]


def fuzz(examples: int, inputs: SearchStrategy[Any], check: Callable[[Any], bool]) -> int:
    """Try `check` on so many inputs, the same ones every time; how many of them were bad (it says so)."""
    bad = 0

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(found: Any) -> None:
        nonlocal bad
        bad += check(found)

    one()
    return bad


def is_refused(ended: Any) -> bool:
    """Whether a command was refused, in one line; False where it was taken for a good one."""
    assert "Traceback" not in ended.err, ended.err
    if ended.code in (0, "killed"):
        return False
    assert ended.code == 2, ended
    assert ended.err.startswith("error: "), ended.err
    assert ended.err.endswith("\n"), ended.err
    assert len(ended.err[:-1].splitlines()) == 1, ended.err
    assert len(ended.err) > len("error: ") + 5, ended.err
    return True


def snapshot(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file; lines may be added to a log, and a lock is nothing."""
    return {
        path: (path.lstat().st_size, path.lstat().st_mtime_ns)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("train.log", ".lock")
    }


class Fuzzing:
    fuzz = staticmethod(fuzz)
    is_refused = staticmethod(is_refused)
    snapshot = staticmethod(snapshot)


@pytest.fixture
def fuzzing() -> type[Fuzzing]:
    return Fuzzing
