"""Checkpoint files are loaded completely or refused, never run; the last one survives a failed write."""

import os
import pickle
import random
import subprocess
import sys
import zipfile
from typing import Any

import pytest
import torch

from zoo.errors import UserError
from zoo.train.runs.checkpoint import read_checkpoint


def check_refused(zoo: Any, message: str, *words: str) -> None:
    path = zoo.folder / "whole/checkpoints/last.ckpt"
    before = path.read_bytes() if path.is_file() else None
    ended = zoo.run("resume=whole", "steps=9", *words)
    assert ended.code == 2
    assert ended.out in ("", "resuming whole\n")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert message in ended.err
    assert "last.ckpt" in ended.err
    assert (path.read_bytes() if path.is_file() else None) == before


def test_bit_flips_are_noticed(zoo: Any, same_checkpoints: Any) -> None:
    """A flipped bit is refused wherever it could change what is read; a few bytes of padding can't."""
    zoo.train_whole()
    path = zoo.folder / "whole/checkpoints/last.ckpt"
    good, content = read_checkpoint(path), path.read_bytes()
    rng = random.Random(0)
    refused = 0
    size = len(content)
    for offset in [0, 1, size - 1, size - 10, *(rng.randrange(size) for _ in range(150))]:
        flipped = bytearray(content)
        flipped[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            restored = read_checkpoint(path)
        except UserError:
            refused += 1
        else:
            assert same_checkpoints(good, restored) == []
    assert refused > 75


def test_the_tensors_bytes_are_checked(zoo: Any) -> None:
    zoo.train_whole()
    path = zoo.folder / "whole/checkpoints/last.ckpt"
    weight = zoo.checkpoint("whole")["state_dict"]["embed.weight"]
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    check_refused(zoo, "is damaged: the checksum of")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "damaged or unrelated"),
        (lambda path: os.truncate(path, 0), "damaged or unrelated"),
        (lambda path: path.write_text("a note"), "damaged or unrelated"),
        (lambda path: path.unlink(), "expected a checkpoint"),
        (lambda path: torch.save({"weights": torch.zeros(3)}, path), "found another kind of file"),
        (lambda path: torch.save([1, 2], path), "found another kind of file"),
        (lambda path: torch.save({"zoo": {"version": 99}}, path), "version 1"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "it is not loaded"),
    ],
)
def test_other_files(zoo: Any, change: Any, message: str) -> None:
    zoo.train_whole()
    change(zoo.folder / "whole/checkpoints/last.ckpt")
    check_refused(zoo, message)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, (os.path.abspath("exploded"), "w")


@pytest.mark.parametrize("form", ["zip", "pickle", "legacy"])
def test_a_pickle_that_is_no_checkpoint_is_never_run(zoo: Any, form: str) -> None:
    zoo.train_whole()
    path = zoo.folder / "whole/checkpoints/last.ckpt"
    content = zoo.checkpoint("whole") | {"bomb": Bomb()}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    check_refused(zoo, "more than tensors and plain Python data" if form == "zip" else "damaged or unrelated")
    assert not os.path.exists("exploded")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("norm.weight"), "norm.weight expected (32,), found absent"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "extra expected absent, found (1,)"),
        (
            lambda weights: weights.update(
                memory=weights["norm.weight"], **{"norm.weight": weights["memory"]}
            ),
            "memory expected (2, 32), found (32,)",
        ),
    ],
)
def test_another_models_weights(zoo: Any, change: Any, message: str) -> None:
    zoo.train_whole()
    path = zoo.folder / "whole/checkpoints/last.ckpt"
    content = zoo.checkpoint("whole")
    change(content["state_dict"])
    torch.save(content, path)
    check_refused(zoo, message)


@pytest.mark.parametrize(
    "part", ["metrics", "optimizer_states", "loops", "state_dict", "global_step", "callbacks"]
)
def test_a_part_that_is_missing(zoo: Any, part: str) -> None:
    zoo.train_whole()
    content = zoo.checkpoint("whole")
    del content[part]
    torch.save(content, zoo.folder / "whole/checkpoints/last.ckpt")
    check_refused(zoo, part)


def test_memory_of_another_shape(zoo: Any) -> None:
    zoo.train_whole()
    content = zoo.checkpoint("whole")
    content["zoo"]["ranks"][0]["carried"] = [torch.zeros(4, 3, 32)]
    torch.save(content, zoo.folder / "whole/checkpoints/last.ckpt")
    ended = zoo.run("resume=whole", "steps=9")
    assert ended.code == 2
    assert "expected zoo.ranks.0.carried.0 of shape (4, 2, 32), found (4, 3, 32)" in ended.err
    assert ended.err.count("\n") == 1


def test_a_checkpoint_of_another_run(zoo: Any) -> None:
    zoo.train_whole()
    assert zoo.run("model=transformer_xl", "run_dir=other").code == 0
    os.replace("other/checkpoints/last.ckpt", "whole/checkpoints/last.ckpt")
    check_refused(zoo, "is of another model: weight")


def test_a_checkpoint_of_another_corpus(zoo: Any) -> None:
    zoo.train_whole()
    (zoo.folder / "text/train/new.txt").write_text("a document that was not there")
    ended = zoo.run("resume=whole", "steps=9")
    assert ended.code == 2
    assert "resume: data.corpus is fixed by the run, and the texts of text have changed" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("when", [pytest.param("first", marks=pytest.mark.slow), "second"])
def test_a_full_disk(zoo: Any, when: str) -> None:
    """A limit on the size of files stands for a full disk, and leaves room for small ones."""
    size = 0 if when == "first" else 10**6
    script = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
import lightning as L
from zoo.train.commands import train
from zoo.train.loop import trainer as loop
class Room(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        room = {size} if trainer.global_step < 4 else 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (room or 200_000, resource.RLIM_INFINITY))
made = loop.make_trainer
def make_trainer(*given):
    trainer = made(*given)
    trainer.callbacks.append(Room())
    return trainer
loop.make_trainer = make_trainer
train.main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, *zoo.with_settings([])],
        cwd=zoo.folder,
        env=zoo.env,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: can't save ")
    assert "last.ckpt: File too large; " in ended.stderr
    if when == "first":
        assert ended.stderr.endswith("there is no previous one\n")
        assert list((zoo.folder / "run").rglob("*.ckpt*")) == []
    else:
        assert ended.stderr.endswith("the previous checkpoint is intact\n")
        assert zoo.checkpoint("run")["global_step"] == 4
    assert zoo.run("resume=run").code == 0


def test_checkpoints_hold_nothing_but_data(zoo: Any) -> None:
    zoo.train_whole()
    for name in ("last.ckpt", "best.ckpt"):
        path = zoo.folder / "whole/checkpoints" / name
        assert torch.load(path, weights_only=True)["zoo"]["version"] == 1
        assert str(zoo.folder).encode() not in path.read_bytes()
