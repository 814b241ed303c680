"""Groups of runs that compare, where all of them together don't."""

from pathlib import Path
from typing import Any

from tests.train.stored_runs import make_run


def make_groups(folder: Path) -> None:
    """Two runs of 40 steps, three of 80, and a newer one of another task."""
    for seed in range(2):
        make_run(folder / f"runs/short/{seed}", "rmt", seed)
    for seed in range(3):
        make_run(folder / f"runs/long/{seed}", "gru" if seed else "rmt", seed, steps=80)
    newest = {"names.task": "needle", "metrics": {"date": "2031-01-01T00:00:00+00:00"}}
    make_run(folder / "runs/other", "mamba", **newest)


def test_groups_are_listed_with_their_commands(run: Any, tmp_path: Path) -> None:
    make_groups(tmp_path)
    code, out, err = run("runs", "baseline=rmt")
    assert (code, out) == (2, "")
    first, *lines = err.splitlines()
    assert first.startswith("error: compare: the runs differ in task: ")
    command = "zoo compare runs baseline=rmt"
    assert lines == [
        f"3 runs of 2 models, lm at nano, 20,480 tokens: {command} group=1",
        f"2 runs of 1 model, lm at nano, 10,240 tokens: {command} group=2",
        f"1 run of 1 model, needle at nano, 10,240 tokens: {command} group=3",
    ]


def test_a_group_is_compared_by_its_number_or_name(run: Any, tmp_path: Path) -> None:
    make_groups(tmp_path)
    for name, title in (
        *(("1", "2 models on lm"), ("largest", "2 models on lm"), ("2", "1 model on lm")),
        *(("3", "1 model on needle"), ("newest", "1 model on needle")),
    ):
        code, out, err = run("runs", f"group={name}")
        assert (code, err) == (0, ""), name
        assert title in out


def test_a_group_that_is_not_there(run: Any, tmp_path: Path) -> None:
    make_groups(tmp_path)
    for name, end in (
        ("4", "found 4\n"),
        ("0", "found 0\n"),
        ("²", "found ²\n"),
        ("newst", "did you mean newest?\n"),
    ):
        code, _, err = run("runs", f"group={name}")
        assert code == 2
        assert err.startswith("error: compare: group: expected largest, newest or a number from 1 to 3")
        assert err.endswith(end)


def test_there_are_never_more_than_ten_lines(run: Any, tmp_path: Path) -> None:
    for steps in range(1, 15):
        make_run(tmp_path / f"runs/{steps}", steps=steps)
    err = run("runs")[2]
    assert err.count("\n") == 10
    assert err.endswith("and 6 more groups, to group=14\n")
