"""What is printed of a corpus and of the parts that a single text is cut into."""

from pathlib import Path

import pytest

from tests.train.corpora.files import write
from zoo.train.corpora.catalog import MissingSplitError, open_corpus
from zoo.train.corpora.parts import describe, describe_part
from zoo.train.corpora.token_files import TokenCorpus


def test_a_folder_in_a_line(root: Path) -> None:
    for name, content in {
        "train/a.txt": b"abc",
        "train/b.txt": b"x" * 1500,
        "dev/c.txt": b"de",
        "dev/none.txt": b"",
        "dev/d.bin": b"\0",
        "README": b"of all this",
    }.items():
        write(root / "own" / name, content)
    corpus = open_corpus(str(root / "own"), root)
    assert describe(corpus) == (
        "corpus own, texts: train 2 (1,503 bytes), val 1 (2 bytes), test 0; "
        "left out: 1 binary, 1 empty, 1 outside the splits"
    )
    assert describe_part(corpus, "val") == ""
    with pytest.raises(
        MissingSplitError, match=r"^corpus own has no split 'test': found train, val$"
    ) as error:
        corpus.split("test")
    assert error.value.existing == ["train", "val"]


def test_a_single_text_is_cut(root: Path) -> None:
    corpus = open_corpus(str(write(root / "book.txt", b"x" * 24_296)), root)
    assert describe(corpus) == "corpus book.txt, one text: train 21,868, val 1,214, test 1,214 bytes"
    first, middle, last = "the first 21,868", "the 1,214 before the last 1,214", "the last 1,214"
    of = "of 24,296 bytes"
    assert [describe_part(corpus, split) for split in ("train", "val", "test")] == [
        f"book.txt: train split, {first} {of}; split=val is {middle}, split=test is {last}",
        f"book.txt: val split, {middle} {of}; split=train is {first}, split=test is {last}",
        f"book.txt: test split, {last} {of}; split=train is {first}, split=val is {middle}",
    ]


def test_published_corpora_are_known(root: Path) -> None:
    write(root / "books" / "train.txt", b"abc")
    corpus = open_corpus("books", root)
    assert (describe(corpus), describe_part(corpus, "train")) == ("", "")
    assert describe(open_corpus("stdlib", root)) == ""
    write(root / "books" / "none.txt", b"")
    assert describe(open_corpus("books", root)).endswith("left out: 1 empty")
    assert describe(open_corpus(str(root / "books"), root)).startswith("corpus books, one text: train 1, ")


def test_prepared_tokens_without_a_split(root: Path) -> None:
    write(root / "train.npy", b"")
    corpus = TokenCorpus(root, "book", "", 3, None, None, "")
    with pytest.raises(MissingSplitError, match=r"has no split 'test': found train$"):
        corpus.split("test")
