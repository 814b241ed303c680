"""Corpora as people really have them: what can be read is read, the rest is passed over or one line."""

import gzip
import io
import json
import lzma
import os
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from zoo.errors import UserError
from zoo.train.corpora.catalog import open_corpus
from zoo.train.data.loaders import EvalLoader, TrainLoader
from zoo.train.tasks.lm import ByteDataset, compression_baselines

TEXT = b"the keeper of the zoo counts what she remembers, twice a day\n" * 4


def tar(content: bytes, name: str = "a.txt", kind: bytes = tarfile.REGTYPE) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.linkname = len(content) if kind == tarfile.REGTYPE else 0, kind, "a.txt"
        archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def zipped(content: bytes, name: str = "a.txt") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return packed.getvalue()


ROWS = b"".join(json.dumps({"text": f"row {n}"}).encode() + b"\n" for n in range(4))
PACKED = {
    ".gz": gzip.compress(TEXT),
    ".xz": lzma.compress(TEXT),
    ".tar": tar(TEXT),
    ".tgz": gzip.compress(tar(TEXT)),
    ".tar.xz": lzma.compress(tar(TEXT)),
    ".zip": zipped(TEXT),
    ".jsonl": ROWS,
    ".jsonl.gz": gzip.compress(ROWS),
}
FOREIGN = [
    b"",
    b"\0",
    b"\0\1\2" * 50,
    b"a",
    b"ab",
    b"\xff\xfe\xfd" * 20,
    b"\xed\xa0\x80",
    b"\n" * 100,
    b"\r",
    b"one line " * 40_000,
    "é🦒".encode() * 30,
    TEXT + b"\0",
    b"{" * 5_000,
    b'{"text": 1}',
    b'{"text": "a", "text": null}',
    b'{"text": ""}',
    b'{"txet": "a"}',
    b'"text"',
    b"[]",
    b'{"text": "\\ud800"}',
    b"[" * 100_000,
    tar(TEXT, "../outside.txt"),
    tar(TEXT, "/etc/absolute.txt"),
    tar(b"", "link", tarfile.SYMTYPE),
    tar(b"", "loop", tarfile.LNKTYPE),
    zipped(TEXT, "../outside.txt"),
    gzip.compress(b"\0" * 100_000),
    zipped(zipped(TEXT), "a.zip"),
    gzip.compress(gzip.compress(TEXT)),
]
SPECIAL = [
    "loop",
    "itself",
    "broken link",
    "pipe",
    "socket",
    "link to the corpus",
    "folder called a.txt",
    "long name",
]
NAMES = [
    "a",
    "b.txt",
    "train/a",
    "val/a.txt",
    "valid.txt",
    "test/x",
    ".hidden",
    "dev/train/x",
    "é 🦒",
    "-",
    "a#b",
]


def contents() -> st.SearchStrategy[tuple[str, bytes]]:
    """(ending, bytes): archives that are cut or flipped, foreign bytes under any ending."""

    def spoilt(ending: str) -> st.SearchStrategy[tuple[str, bytes]]:
        good = PACKED[ending]
        place = st.integers(0, len(good) - 1)
        cut = place.map(lambda at: good[:at])
        flipped = st.tuples(place, st.integers(0, 7)).map(
            lambda one: good[: one[0]] + bytes([good[one[0]] ^ 1 << one[1]]) + good[one[0] + 1 :]
        )
        more = st.binary(min_size=1, max_size=20).map(lambda rest: good + rest)
        return st.tuples(st.just(ending), cut | flipped | more)

    endings = st.sampled_from([*PACKED, ".txt", "", ".GZ", ".md"])
    foreign = st.tuples(endings, st.sampled_from(FOREIGN) | st.binary(max_size=80))
    return st.sampled_from(list(PACKED)).flatmap(spoilt) | foreign


def place_special(folder: Path, what: str) -> None:
    match what:
        case "loop":
            (folder / "deep").mkdir(exist_ok=True)
            (folder / "deep" / "up").symlink_to(folder)
        case "itself":
            (folder / "me").symlink_to(folder / "me")
        case "broken link":
            (folder / "gone.txt").symlink_to(folder / "nowhere")
        case "pipe":
            os.mkfifo(folder / "pipe.txt")
        case "socket":
            with socket.socket(socket.AF_UNIX) as door:
                here = os.getcwd()
                os.chdir(folder)  # its name may not be long
                door.bind("door.txt")
                os.chdir(here)
        case "link to the corpus":
            (folder / "again").symlink_to(folder)
        case "folder called a.txt":
            (folder / "folder.txt").mkdir()
        case "long name":
            (folder / ("x" * 250)).write_bytes(b"text")


@pytest.mark.parametrize(
    ("examples", "at_least"), [(60, 60), pytest.param(900, 850, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_any_folder(
    fuzzing: Any, tmp_path: Path, examples: int, at_least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    count = 0

    def check(found: tuple[list[tuple[str, tuple[str, bytes]]], set[str], bool]) -> bool:
        nonlocal count
        files, special, alone = found
        folder = tmp_path / f"corpus{count}"
        folder.mkdir()
        count += 1
        path = folder
        for number, (name, (ending, content)) in enumerate(files):
            path = folder / f"{name}{number}{ending}"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(content)
        for what in special:
            place_special(folder, what)
        before = fuzzing.snapshot(folder)
        said = "read"
        try:
            read_all(open_corpus(str(path if alone else folder), tmp_path / "root"))
        except UserError as error:
            said = str(error)
        assert len(said.splitlines()) == 1, said
        assert fuzzing.snapshot(folder) == before
        assert not list((tmp_path / "cache").glob("*.part"))
        return True

    odd = st.lists(st.tuples(st.sampled_from(NAMES), contents()), min_size=1, max_size=3)
    special = st.sets(st.sampled_from(SPECIAL), max_size=2)
    assert fuzzing.fuzz(examples, st.tuples(odd, special, st.booleans()), check) >= at_least


def read_all(corpus: Any) -> None:
    """What training, validation and the figures beside it do with a corpus."""
    assert "\n" not in corpus.note
    for split in ("train", "val"):
        texts = ByteDataset(corpus.split(split))
        assert (texts.lengths > 1).all()
        for batch, _ in zip(TrainLoader(texts, batch_size=2, seq_len=8, seed=0), range(3), strict=False):
            assert batch.tokens.max() <= 256
        for batch, _ in zip(EvalLoader(texts, batch_size=2, seq_len=8), range(3), strict=False):
            assert batch.tokens.min() >= 0
        if split == "val":
            compression_baselines(texts.text(0) or b"")
