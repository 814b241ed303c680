"""The cache: an entry is complete or missing, with killed writers, simultaneous ones and files cut short."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zoo.errors import UserError
from zoo.train.corpora import cache, catalog
from zoo.train.corpora.catalog import open_corpus

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789" * 1000)
    return path


def content(path):
    corpus = open_corpus(str(path), path.parent)
    return b"".join(
        corpus.split(split).bytes_of(0, 0, int(corpus.split(split).lengths[0])).tobytes()
        for split in ("train", "val", "test")
    )


def test_read_once_and_then_from_the_cache(text, cache_folder, monkeypatch):
    before = content(text)
    assert before == text.read_bytes()
    assert sorted(path.suffix for path in cache_folder.iterdir()) == [".bin", ".json"]
    monkeypatch.setattr(catalog, "gather", None)  # nothing is gathered again
    assert content(text) == before


def test_another_content_name_or_version_is_another_entry(text, cache_folder, monkeypatch):
    content(text)
    text.write_bytes(b"9876543210" * 1000)  # as long as before
    assert content(text) == text.read_bytes()
    assert len(list(cache_folder.iterdir())) == 4
    content(text.rename(text.with_name("b.txt")))
    assert len(list(cache_folder.iterdir())) == 6
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    content(text.with_name("b.txt"))
    assert len(list(cache_folder.iterdir())) == 8


@pytest.mark.parametrize(
    "harm",
    [
        lambda data, index: os.truncate(data, 100),
        lambda data, index: os.truncate(data, 0),
        lambda data, index: data.unlink(),
        lambda data, index: index.unlink(),
        lambda data, index: os.truncate(index, 10),
        lambda data, index: index.write_bytes(b"\xff\0"),
        lambda data, index: index.write_text("[]"),
    ],
)
def test_a_harmed_entry_is_built_again(text, cache_folder, harm):
    before = content(text)
    harm(next(cache_folder.glob("*.bin")), next(cache_folder.glob("*.json")))
    assert content(text) == before


def test_a_writer_that_fails_leaves_nothing(text, cache_folder, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=r"cannot write the cache in .* \(set ZOO_CACHE\): No space left"):
            content(text)
    assert not list(cache_folder.iterdir())
    assert content(text) == text.read_bytes()


def test_a_file_at_the_folders_path_is_an_error(text, cache_folder):
    cache_folder.write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot write the cache in"):
        content(text)


def test_a_killed_writer_leaves_no_entry_and_its_part_is_removed_later(text, cache_folder):
    script = (
        "import sys, time; from zoo.train.corpora import cache, catalog\n"
        "def sleep(_): print('writing', flush=True); time.sleep(60)\n"
        "cache.os.fsync = sleep; catalog.open_corpus(sys.argv[1], '.')"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, text], cwd=CHECKOUT, stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    (part,) = cache_folder.iterdir()
    assert part.suffix == ".part"
    assert content(text) == text.read_bytes()
    assert part.exists()  # its writer might still run
    long_ago = time.time() - 2 * 86_400
    os.utime(part, (long_ago, long_ago))
    next(cache_folder.glob("*.json")).unlink()
    assert content(text) == text.read_bytes()
    assert not part.exists()


def test_simultaneous_writers_all_read_the_complete_text(text):
    script = (
        "import sys; from zoo.train.corpora.catalog import open_corpus as o; print(o(sys.argv[1], '.').note)"
    )
    command = [sys.executable, "-c", script, text]
    writers = [subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(content, [text] * 24)) == {text.read_bytes()}
    assert {writer.communicate()[0] for writer in writers} == {
        b"a.txt: 9,000 train / 500 val / 500 test bytes of one text\n"
    }


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.cache_folder() != Path("/xdg/zoo")
    monkeypatch.delenv("ZOO_CACHE")
    assert cache.cache_folder() == Path("/xdg/zoo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "zoo"
