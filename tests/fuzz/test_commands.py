"""Bad input to real commands, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TRAIN = [
    ("rmt",),
    ("--bogus",),
    ("--cfg=x",),
    ("-m", "model=rmt,nowhere"),
    ("model=nowhere",),
    ("steps=many",),
    ("optim.lr=${nowhere}",),
    ("model.width=\udcff",),
    ("run_dir=\udcff\udcfe",),
    ("data.corpus=\udcff",),
    ("data.corpus=zeros",),
    ("data.corpus=damaged",),
    ("data.corpus=loop",),
    ("data.corpus=pipe.txt",),
    ("data.corpus=/dev/null",),
    ("data.corpus=secret",),
    ("data.corpus=" + "x" * 5000,),
    ("run_dir=" + "x" * 300,),
    ("run_dir=text/train/0.txt",),
    ("run_dir=/proc/nowhere",),
    ("model._target_=os.system",),
    ("model.base=whole",),
    ("data.batch_size=99999999999",),
    ("data.seq_len=160000000000",),
    ("trainer.accelerator=gpu", "trainer.devices=99"),
    ("hydra.searchpath=[file://nowhere]", "model=mine"),
    ("resume=text",),
    ("resume=" + "x" * 5000,),
    ("resume=whole",),
    ("resume=whole", "model=rmt"),
    ("resume=cut", "steps=9"),
    ("resume=swapped", "steps=9"),
    ("resume=foreign", "steps=9"),
    ("resume=emptied", "steps=9"),
    ("resume=renamed", "steps=9"),
]
OTHERS = [
    ("evaluate", "run=nowhere"),
    ("evaluate", "run=cut"),
    ("evaluate", "run=foreign"),
    ("evaluate", "run=emptied"),
    ("evaluate", "run=whole", "checkpoint=best", "split=train", "batch_size=0"),
    ("evaluate", "run=whole", "lengths=9"),
    ("evaluate", "runs=whole"),
    ("check", "nowhere.Model"),
    ("check", "os.system"),
    ("check", "model=nowhere"),
    ("sweep", "model=nowhere"),
    ("sweep", "seeds=5:1"),
    ("sweep", "rmt"),
    ("compare", "nowhere"),
    ("compare", "text"),
    ("bogus",),
]
ALL = [("train", *words) for words in TRAIN] + OTHERS


def prepare(zoo: Any) -> None:
    """Corpora and runs that are damaged in one way each."""
    zoo.train_whole()
    Path("zeros").mkdir()
    Path("zeros/a.bin").write_bytes(bytes(100))
    Path("damaged").mkdir()
    Path("damaged/a.tar.gz").write_bytes(b"\x1f\x8b\x08\0 no archive")
    Path("loop").mkdir()
    Path("loop/me").symlink_to("me")
    Path("loop/up").symlink_to(Path("loop").resolve())
    os.mkfifo("pipe.txt")
    Path("secret").mkdir()
    Path("secret/rows.jsonl").write_bytes(b'{"text": 1}\n')
    good = Path("whole/checkpoints/last.ckpt").read_bytes()
    half = len(good) // 2
    for name, content in {
        "cut": good[:half],
        "swapped": good[half:] + good[:half],
        "foreign": b"\x80\x04cos\nsystem\n(S'touch exploded'\ntR.",
        "emptied": b"",
    }.items():
        subprocess.run(["cp", "-r", "whole", name], check=True)
        Path(name, "checkpoints/last.ckpt").write_bytes(content)
    subprocess.run(["cp", "-r", "whole", "renamed"], check=True)
    config = Path("renamed/config.yaml")
    config.write_text(config.read_text().replace("zoo.models.rmt.RMT", "antigravity.RMT"))


def check(zoo: Any, fuzzing: Any, command: tuple[str, ...]) -> None:
    before = fuzzing.snapshot(zoo.folder)
    name, *words = command
    module, given = ("zoo.train", zoo.with_settings(words)) if name == "train" else ("zoo", [name, *words])
    if name == "train" and words[0].startswith("-"):
        given = list(words)
    ended = subprocess.run(
        [sys.executable, "-m", module, *given],
        cwd=zoo.folder,
        env=zoo.env,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2, (ended.stdout, ended.stderr)
    assert ended.stderr.startswith("error: "), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    after = fuzzing.snapshot(zoo.folder)
    assert {path: after.get(path) for path in before} == before
    assert not Path("exploded").exists()


def test_some_real_commands(zoo: Any, fuzzing: Any) -> None:
    prepare(zoo)
    for command in [
        ("train", "model.width=\udcff"),
        ("train", "resume=cut", "steps=9"),
        ("evaluate", "run=foreign"),
    ]:
        check(zoo, fuzzing, command)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ALL, ids=lambda command: " ".join(command)[:50].encode("ascii", "replace").decode()
)
def test_real_commands(zoo: Any, fuzzing: Any, command: tuple[str, ...]) -> None:
    prepare(zoo)
    check(zoo, fuzzing, command)


def test_their_number() -> None:
    assert len(ALL) >= 50
