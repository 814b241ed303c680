"""config.yaml of a run that is to go on, damaged in any way: refused in one line, or what it says is done."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from hypothesis import strategies as st

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "abc",
    "é",
    [],
    [1],
    {},
    {"a": 1},
]
VALUES += [
    "${",
    "${x}",
    "${seed}",
    "???",
    "os.system",
    "zoo.nowhere.Model",
    "antigravity.Model",
    [[]],
    {"": None},
]


def paths_of(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(node, dict):
        for key, value in node.items():
            found += paths_of(value, (*path, key))
    return found


def edited(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Good yaml with a value that isn't, a key too few or too many."""
    paths = paths_of(good)

    def change(one: tuple[tuple[Any, ...], str, Any]) -> bytes:
        path, how, value = one
        content = copy.deepcopy(good)
        node = content
        for key in path[:-1]:
            node = node[key]
        if how == "drop":
            del node[path[-1]]
        elif how == "add":
            node[f"{path[-1]}_"] = value
        else:
            node[path[-1]] = value
        return yaml.safe_dump(content, allow_unicode=True).encode()

    hows = st.sampled_from(["set", "set", "set", "drop", "add"])
    return st.tuples(st.sampled_from(paths), hows, st.sampled_from(VALUES)).map(change)


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """Bytes flipped, cut off, put in or repeated; or others altogether."""
    place = st.integers(0, len(good) - 1)
    flipped = st.tuples(place, st.integers(0, 7)).map(
        lambda one: good[: one[0]] + bytes([good[one[0]] ^ 1 << one[1]]) + good[one[0] + 1 :]
    )
    cut = place.map(lambda at: good[:at])
    odd = st.binary(min_size=1, max_size=8).filter(lambda piece: b"/" not in piece)
    inserted = st.tuples(place, odd).map(lambda one: good[: one[0]] + one[1] + good[one[0] :])
    return flipped | cut | inserted | st.binary(max_size=200)


@pytest.mark.parametrize(
    ("examples", "at_least"), [(20, 8), pytest.param(600, 350, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_any_config(
    zoo: Any, fuzzing: Any, examples: int, at_least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*given: Any, **named: Any) -> None:
        raise zoo.KilledError

    zoo.train_whole()
    monkeypatch.setattr(L.Trainer, "fit", fit)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    path = Path("whole/config.yaml")
    good = path.read_bytes()

    def check(content: bytes) -> bool:
        path.write_bytes(content)
        before = fuzzing.snapshot(zoo.folder)
        try:
            refused = fuzzing.is_refused(zoo.run("resume=whole", "steps=9"))
            assert fuzzing.snapshot(zoo.folder / "whole") == {
                file: facts for file, facts in before.items() if (zoo.folder / "whole") in file.parents
            }
        finally:
            path.write_bytes(good)
        return refused

    inputs = edited(yaml.safe_load(good)) | damaged(good)
    assert fuzzing.fuzz(examples, inputs, check) >= at_least
