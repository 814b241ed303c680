"""Checkpoint files: damaged, of other programs, or edited with their checksums right.

A file is loaded as it was written, or refused; nothing in it is ever run.
"""

import copy
import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from zoo.errors import UserError
from zoo.train.runs.checkpoint import read_checkpoint


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """Bits flipped, an end cut off, pieces put in, swapped or set to zero."""
    offset = st.integers(0, len(good) - 1)

    def flip(args: tuple[list[int], int]) -> bytes:
        content = bytearray(good)
        for at in args[0]:
            content[at] ^= 1 << args[1]
        return bytes(content)

    def swap(args: tuple[int, int, int]) -> bytes:
        first, second = sorted((args[0], args[1]))
        size = min(args[2], second - first, len(good) - second)
        content = bytearray(good)
        content[first : first + size], content[second : second + size] = (
            good[second : second + size],
            good[first : first + size],
        )
        return bytes(content)

    flipped = st.tuples(st.lists(offset, min_size=1, max_size=4), st.integers(0, 7)).map(flip)
    cut = offset.map(lambda at: good[:at]) | offset.map(lambda at: good[at:])
    put_in = st.tuples(offset, st.binary(min_size=1, max_size=9)).map(
        lambda args: good[: args[0]] + args[1] + good[args[0] :]
    )
    zeroed = st.tuples(offset, st.integers(1, 9_000)).map(
        lambda args: (good[: args[0]] + bytes(args[1]) + good[args[0] + args[1] :])[: len(good)]
    )
    swapped = st.tuples(offset, offset, st.integers(1, 4_000)).map(swap)
    return flipped | flipped | cut | put_in | zeroed | swapped | st.binary(max_size=300)


@pytest.mark.parametrize(
    ("examples", "at_least"), [(80, 60), pytest.param(800, 650, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_any_damage(zoo: Any, fuzzing: Any, same_checkpoints: Any, examples: int, at_least: int) -> None:
    """Refused, or loaded unchanged: zip files have bytes that nothing depends on."""
    zoo.train_whole()
    path = Path("whole/checkpoints/last.ckpt")
    good, before = path.read_bytes(), read_checkpoint(path)
    damaged_path = Path("damaged.ckpt")

    def check(content: bytes) -> bool:
        damaged_path.write_bytes(content)
        try:
            restored = read_checkpoint(damaged_path)
        except UserError as error:
            message = str(error)
        else:
            assert same_checkpoints(before, restored) == []
            return False
        assert len(message.splitlines()) == 1
        assert damaged_path.read_bytes() == content
        return True

    assert fuzzing.fuzz(examples, damaged(good), check) >= at_least


CALLS = [
    ("os", "system", ("touch exploded",)),
    ("posix", "system", ("touch exploded",)),
    ("builtins", "eval", ("open('exploded', 'w')",)),
    ("builtins", "exec", ("open('exploded', 'w')",)),
    ("builtins", "open", ("exploded", "w")),
    ("io", "open", ("exploded", "w")),
    ("subprocess", "check_output", (["touch", "exploded"],)),
    ("pathlib", "Path.touch", ("exploded",)),
    ("torch", "save", (1, "exploded")),
    ("torch.hub", "load", ("a", "b")),
    ("zoo.train.runs.files", "write_text", ("exploded", "x")),
    ("runpy", "run_path", ("bomb.py",)),
    ("importlib", "import_module", ("bomb",)),
    ("shutil", "rmtree", ("text",)),
    ("os", "unlink", ("text/train/0.txt",)),
    ("functools", "partial", (print,)),
]


class Call:
    def __init__(self, module: str, name: str, args: tuple[Any, ...]) -> None:
        self.module, self.name, self.args = module, name, args

    def __reduce__(self) -> tuple[Any, ...]:
        target: Any = __import__(self.module, fromlist=["_"])
        for part in self.name.split("."):
            target = getattr(target, part)
        return target, self.args


@pytest.mark.parametrize("examples", [30, pytest.param(200, marks=pytest.mark.slow)], ids=["some", "all"])
def test_pickles_of_other_programs(zoo: Any, fuzzing: Any, examples: int) -> None:
    zoo.train_whole()
    Path("bomb.py").write_text("open('exploded', 'w')")
    good = zoo.checkpoint("whole")
    path = Path("foreign.ckpt")

    def check(case: tuple[tuple[Any, ...], str, int, str]) -> bool:
        call, where, protocol, form = case
        content = {**good, "state_dict": dict(good["state_dict"]), "zoo": dict(good["zoo"])}
        bomb = Call(*call)
        match where:
            case "alone":
                content = bomb  # type: ignore[assignment]
            case "key":
                content["bomb"] = bomb
            case "weight":
                content["state_dict"]["embed.weight"] = bomb
            case _:
                content["zoo"]["ranks"] = [bomb]
        if form == "pickle":
            path.write_bytes(pickle.dumps(content, protocol))
        elif form == "zip":
            torch.save(content, path, pickle_protocol=max(2, protocol))
        elif form == "legacy":
            torch.save(content, path, _use_new_zipfile_serialization=False)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"{form}/data.pkl", pickle.dumps(content, protocol))
                archive.writestr(f"{form}/version", "3\n")
        written = path.read_bytes()
        with pytest.raises(UserError) as refused:
            read_checkpoint(path)
        assert len(str(refused.value).splitlines()) == 1
        assert path.read_bytes() == written
        assert not os.path.exists("exploded")
        assert os.path.exists("text/train/0.txt")
        return True

    inputs = st.tuples(
        st.sampled_from(CALLS),
        st.sampled_from(["alone", "key", "weight", "ranks"]),
        st.integers(0, 5),
        st.sampled_from(["pickle", "zip", "legacy", "archive", "last"]),
    )
    assert fuzzing.fuzz(examples, inputs, check) >= examples * 0.9


# -- complete files with other values in them

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    7,
    2**70,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "é",
    [],
    [0],
    (),
    {},
    {"a": 1},
]
ODD += [
    torch.zeros(()),
    torch.zeros(3),
    torch.zeros(3, 2, 1),
    torch.ones(1, dtype=torch.long),
    torch.zeros(0),
]
ODD += [torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex64), torch.zeros(1).expand(9, 9)]


def paths_of(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a checkpoint, but for the hundreds of numbers of RNG states."""
    paths = [path] if path else []
    if isinstance(node, dict):
        for key, value in node.items():
            paths += paths_of(value, (*path, key))
    elif isinstance(node, (list, tuple)) and len(node) < 20:
        for index, value in enumerate(node):
            paths += paths_of(value, (*path, index))
    return paths


def with_change(node: Any, path: tuple[Any, ...], change: Any) -> Any:
    """A copy of the nest in which the value at the path is `change(value)`; gone where that is GONE."""
    key, *rest = path
    inner = with_change(node[key], tuple(rest), change) if rest else change(node[key])
    if isinstance(node, dict):
        result = {**node, key: inner}
        if inner is GONE:
            del result[key]
        return result
    items = [value for value in [*node[:key], inner, *node[key + 1 :]] if value is not GONE]
    return items if isinstance(node, list) else tuple(items)


GONE = object()


def at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def changes(good: dict[str, Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """(path, kind of change, second path); every part of a checkpoint is equally likely, however large."""
    by_part: dict[Any, list[tuple[Any, ...]]] = {}
    for path in paths_of(good):
        by_part.setdefault(path[0], []).append(path)
    paths = st.sampled_from(sorted(by_part)).flatmap(lambda part: st.sampled_from(by_part[part]))
    change_kind = st.sampled_from(["gone", "wrapped", "transposed", "swapped"]) | st.integers(0, len(ODD) - 1)
    return st.tuples(paths, change_kind, paths)


def changed(good: dict[str, Any], case: tuple[Any, ...]) -> dict[str, Any]:
    path, change_kind, second_path = case
    if change_kind == "gone":
        return with_change(good, path, lambda value: GONE)
    if change_kind == "wrapped":
        return with_change(good, path, lambda value: [value])
    if change_kind == "transposed":
        return with_change(
            good, path, lambda value: value.mT if isinstance(value, Tensor) and value.ndim > 1 else 1
        )
    if change_kind == "swapped":  # with another value of the checkpoint
        return with_change(good, path, lambda value: copy.deepcopy(at(good, second_path)))
    return with_change(good, path, lambda value: ODD[change_kind])


@pytest.mark.parametrize(
    ("examples", "at_least"), [(12, 6), pytest.param(300, 180, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_complete_files_with_other_values_in_them(
    zoo: Any, fuzzing: Any, examples: int, at_least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run resumes from it to its next step, or refuses it and changes no file; nothing else happens."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    zoo.train_whole()
    good = zoo.checkpoint("whole")
    path = Path("whole/checkpoints/last.ckpt")
    contents = {file: file.read_bytes() for file in Path("whole").rglob("*") if file.is_file()}

    def restore() -> None:
        for file in [file for file in Path("whole").rglob("*") if file.is_file() and file not in contents]:
            file.unlink()
        for file, content in contents.items():
            file.write_bytes(content)

    def check(case: tuple[Any, ...]) -> bool:
        packed = io.BytesIO()
        torch.save(changed(good, case), packed)
        path.write_bytes(packed.getvalue())
        before = fuzzing.snapshot(Path("whole"))
        try:
            refused = fuzzing.is_refused(zoo.run("resume=whole", "steps=9", "val_every=9"))
            if refused:
                after = fuzzing.snapshot(Path("whole"))
                assert {file: after.get(file) for file in before} == before
        finally:
            restore()
        return refused

    assert fuzzing.fuzz(examples, changes(good), check) >= at_least


def test_an_optimiser_of_another_shape(zoo: Any, fuzzing: Any) -> None:
    zoo.train_whole()
    content = zoo.checkpoint("whole")
    rng = random.Random(0)
    path = Path("whole/checkpoints/last.ckpt")
    for index in rng.sample(sorted(content["optimizer_states"][0]["state"]), 3):
        moments = content["optimizer_states"][0]["state"][index]
        good = moments["exp_avg"]
        moments["exp_avg"] = torch.zeros(2, 3, 4)
        torch.save(content, path)
        ended = zoo.run("resume=whole", "steps=9")
        assert fuzzing.is_refused(ended)
        assert f"0.state.{index}.exp_avg of shape {tuple(good.shape)}, found (2, 3, 4)" in ended.err
        moments["exp_avg"] = good
