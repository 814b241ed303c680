"""Published corpora by name: their layouts, and checks that each is the published one."""

import gzip
import hashlib
import json
import lzma
import os

import numpy as np
import pytest

from tests.train.corpora.files import contents, jsonl, tar, write
from zoo.errors import UserError
from zoo.train.corpora import catalog, splits
from zoo.train.corpora.catalog import open_corpus
from zoo.train.tasks.lm import compression_baselines


def test_layouts_of_named_corpora(root):
    for split, count in (("train", 5), ("val", 3), ("test", 2)):
        texts = [f"{split} {i}" for i in range(count)]
        write(root / "wikilong" / f"{split}.jsonl.xz", lzma.compress(jsonl(*texts)))
    corpus = open_corpus("wikilong", root)
    assert corpus.note == "wikilong: 5 train / 3 val / 2 test articles (62 bytes)"
    assert contents(corpus, "train") == [b"train %d" % i for i in range(5)]
    assert sorted(contents(corpus, "val")) == [b"val %d" % i for i in range(3)]

    members = {
        f"books/{split}/{i}.txt": f"{split} {i}".encode() for split in ("train", "val") for i in range(3)
    }
    write(root / "books.tar.xz", lzma.compress(tar(members)))
    assert contents(open_corpus("books", root), "train") == [b"train 0", b"train 1", b"train 2"]

    write(root / "stacks.tar.xz", lzma.compress(tar({f"stacks/{name}": name.encode() for name in "abcd"})))
    with pytest.raises(UserError, match=r"expected .*stacks_split.json to map"):
        open_corpus("stacks", root)
    write(root / "stacks_split.json", json.dumps({"train": ["a"], "val": ["c"], "test": ["b"]}).encode())
    corpus = open_corpus("stacks", root)
    assert [contents(corpus, split) for split in ("train", "val", "test")] == [[b"a"], [b"c"], [b"b"]]
    assert corpus.note.endswith("left out: 1 outside the splits")
    write(root / "stacks_split.json", json.dumps({"train": ["b"], "val": ["c"]}).encode())
    assert contents(open_corpus("stacks", root), "train") == [b"b"]


@pytest.mark.slow
@pytest.mark.skipif("ZOO_DATA" not in os.environ, reason="needs the corpora in $ZOO_DATA")
def test_the_corpora_themselves():
    root = os.environ["ZOO_DATA"]
    assert open_corpus("wikilong", root).note.startswith(
        "wikilong: 4,764 train / 265 val / 251 test articles ("
    )
    assert open_corpus("books", root).note.startswith("books: 124 train / 8 val / 10 test books (")
    assert open_corpus("stacks", root).note.startswith("stacks: 107 train / 6 val / 6 test files (")
    assert open_corpus("wikitext-2", root).note.endswith(
        "10,797,148 train / 1,121,681 val / 1,256,449 test bytes"
    )
    assert list(open_corpus("wikitext-103", root).parts) == ["val", "test"]
    for name, order0, xz in (("wikilong", 4.606, 2.307), ("books", 4.490, 2.266), ("stacks", 5.072, 1.337)):
        baselines = compression_baselines(b"".join(contents(open_corpus(name, root), "test")))
        assert baselines == {"xz -9": pytest.approx(xz, abs=2e-3), "order-0": pytest.approx(order0, abs=1e-3)}


def small_enwik8(monkeypatch, text):
    monkeypatch.setattr(
        splits,
        "ENWIK8",
        splits.Enwik8(100, hashlib.md5(text).hexdigest(), 90, 5, 40, hashlib.md5(text[:40]).hexdigest()),
    )
    monkeypatch.setattr(catalog, "ENWIK8", splits.ENWIK8)


def test_enwik8_is_known_by_its_md5(root, monkeypatch):
    text = bytes(range(1, 101))
    small_enwik8(monkeypatch, text)
    write(root / "enwik8.gz", gzip.compress(text[:95]))
    corpus = open_corpus("enwik8", root)
    assert corpus.note == "enwik8, its first 95 bytes only: train and val, no test"
    assert [contents(corpus, split) for split in ("train", "val")] == [[text[:90]], [text[90:95]]]
    with pytest.raises(UserError, match="corpus enwik8 has no split 'test': found train, val"):
        corpus.split("test")
    write(root / "enwik8", text)  # the complete file is preferred
    corpus = open_corpus("enwik8", root)
    assert corpus.note == f"enwik8 (100 bytes, md5 {hashlib.md5(text).hexdigest()})"
    assert contents(corpus, "test") == [text[95:]]
    for wrong, message in [
        (text[:50], "expected 100 bytes .* found 50"),
        (text[:99] + b"x", "expected md5 .* of the first 100 bytes, found"),
        (b"x" + text[1:95], "expected md5 .* of the first 40 bytes, found"),
    ]:
        write(root / "enwik8", wrong)
        for _ in range(2):  # nothing of it was cached
            with pytest.raises(UserError, match=f"this is not enwik8: {message}"):
                open_corpus("enwik8", root)


def test_the_real_enwik8_is_pinned():
    pinned = splits.Enwik8()
    assert (pinned.size, pinned.md5) == (100_000_000, "a1fa5ffddb56f4953e226637dabbb36a")
    assert pinned.train + pinned.val == 95_000_000


def test_wikitext_is_counted_in_tokens(root, monkeypatch):
    monkeypatch.setitem(splits.WIKITEXT, "wikitext-103", {"train": 7, "val": 3, "test": 3})
    for split, text in (("train", "a b c\n\n d \n"), ("valid", " e f \n"), ("test", "g h\n")):
        write(root / "wikitext-103" / f"wiki.{split}.tokens", text.encode())
    corpus = open_corpus("wikitext-103", root)
    assert contents(corpus, "train") == [b"a b c\n\n d \n"]
    assert corpus.note == "wikitext-103: 11 train / 6 val / 4 test bytes"
    write(root / "wikitext-103" / "wiki.valid.tokens", b"e f g\n")
    with pytest.raises(UserError, match="this is not wikitext-103: expected 3 tokens in val, found 4"):
        open_corpus("wikitext-103", root)


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
def test_tokens_are_words_and_lines(chunk):
    text = b" one  two\tthree\r\n\n four\x0bfive\n six"
    assert splits.count_tokens(np.frombuffer(text, np.uint8), chunk) == len(text.split()) + text.count(b"\n")


def test_val_and_test_of_pg19_are_complete(root, monkeypatch):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        monkeypatch.setitem(splits.PG19, split, count)
        for i in range(count):
            folder = "validation" if split == "val" else split
            write(root / "pg19" / folder / f"{i}.txt", f"{split} {i}".encode())
    write(root / "pg19" / "metadata.csv", b"no book")
    assert open_corpus("pg19", root).note.startswith("pg19: 3 train / 2 val / 1 test books (")
    (root / "pg19" / "train" / "0.txt").unlink()
    assert "the release has 3 train" in open_corpus("pg19", root).note
    (root / "pg19" / "validation" / "0.txt").unlink()
    with pytest.raises(UserError, match="this is not PG-19: expected 2 books in val, found 1"):
        open_corpus("pg19", root)
