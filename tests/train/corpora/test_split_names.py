"""Splits that names of folders and files announce, and how a path is shown before a run reads it."""

import json
import sys

import pytest

from tests.train.corpora.files import contents, jsonl, tar, write
from zoo.train.commands import list as list_command
from zoo.train.corpora.catalog import open_corpus
from zoo.train.corpora.split_names import announced_splits, split_and_words

T, V, E, H, O = "train", "val", "test", "held out", None  # noqa: E741


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", T), ("train.txt", T), ("Training", T), ("TRAIN.TXT", T), ("wiki.train.tokens", T),
        ("train-00000-of-00003.txt", T), ("train0", T), ("my_train_2.jsonl.gz", T), ("myTrain.txt", T),
        ("dev", V), ("valid", V), ("validation-00000-of-00001.parquet", V), ("mine.eval.jsonl", V),
        ("test", E), ("news-test2013.en.txt", E), ("testing", E),
        ("heldout", H), ("held-out.txt", H), ("held_out", H), ("holdout.txt", H), ("Held Out", H),
        ("tests", O), ("trained", O), ("latest.txt", O), ("contest", O), ("training_test.txt", O),
        ("train.py", O), ("test_model.py", O), ("validation.ipynb", O), ("a.txt", O), ("developer", O),
    ],
)  # fmt: skip
def test_the_word_of_a_split_may_stand_anywhere(name, split):
    assert split_and_words(name, is_file=True)[0] == split


@pytest.mark.parametrize(
    ("splits", "left_out"),
    [
        ({"train-0-of-2.txt": T, "train-1-of-2.txt": T, "dev-0-of-1.txt": V, "test-0-of-1.txt": E}, []),
        ({"data/train/a.txt": T, "data/val/b.txt": V}, ["README.md", "LICENSE", "data/notes.txt"]),
        ({"en/train/a": T, "en/dev/b": V, "fr/train/a": T, "fr/dev/b": V}, ["en/a.txt"]),
        ({"train/test/a.txt": T, "train/dev.txt": T, "test/train.txt": E}, []),
        ({"test_set/train/a.txt": T, "test_set/heldout/b.txt": H}, ["c.txt"]),
        ({"a_train.txt": T, "a_test.txt": E, "b_train.txt": T}, ["c.txt"]),
        ({"train.jsonl#0123456789abcdef": T, "dev.jsonl#fedcba9876543210": V}, []),
        ({"c#/train/a.txt": T, "c#/test/b.txt": E}, []),
        ({"train.txt": T, "valid.txt": V}, ["vocab.txt", "merges.txt", "config.json", "notes.txt"]),
    ],
)  # fmt: skip
def test_parts_that_stand_side_by_side(splits, left_out):
    names = [*splits, *left_out]
    assert announced_splits(names) == [*splits.values(), *[None] * len(left_out)]


@pytest.mark.parametrize(
    "names",
    [
        ["test/a.py", "code/b.py"],
        ["train.py", "test.py", "model.py"],
        ["night_train.txt", "the_test.txt", "other.txt"],
        ["a/train/x.txt", "b/test/y.txt"],
        ["train/a.txt", "tests/b.txt"],
        ["train.txt", "other.txt"],
        ["dev.txt", "test.txt"],
        ["как_train.txt", "контроль_test.txt", "a.txt", "b.txt"],
        ["entraîné_train.txt", "entraine_test.txt", "a.txt"],
    ],
)
def test_names_that_announce_nothing(names):
    assert announced_splits(names) == [None] * len(names)


def marked(root, **texts):
    """A corpus whose texts begin with a word, by their names."""
    for name, text in texts.items():
        write(root / "mine" / name, (text + " keeper of the zoo" * 9).encode())
    return open_corpus(str(root / "mine"), root)


def beginnings(corpus):
    return {split: [text.split()[0].decode() for text in contents(corpus, split)] for split in corpus.parts}


@pytest.mark.parametrize("held_out", ["heldout.txt", "test.txt"])
def test_the_only_held_out_part_is_val_and_test(root, held_out):
    corpus = marked(root, **{"train.txt": "TRAIN", held_out: "HELD", "README.md": "ABOUT"})
    assert beginnings(corpus) == {"train": ["TRAIN"], "val": ["HELD"], "test": ["HELD"]}
    assert corpus.note.endswith(
        "left out: 1 outside the splits; val is the test split, the only held-out one"
    )


def test_held_out_is_what_there_is_not(root):
    corpus = marked(root, **{"train.txt": "TRAIN", "val.txt": "VAL", "heldout.txt": "HELD"})
    assert beginnings(corpus) == {"train": ["TRAIN"], "val": ["VAL"], "test": ["HELD"]}
    write(root / "mine/val.txt", b"")
    corpus = marked(root, **{"test.txt": "TEST"})
    assert beginnings(corpus) == {"train": ["TRAIN"], "val": ["HELD"], "test": ["TEST"]}


def test_a_split_by_hash_says_which_names_it_ignores(root):
    corpus = marked(root, **{"test/a.txt": "A", "test/b.txt": "B", "c.txt": "C"})
    assert corpus.note.endswith(
        "split by hash, not by names (test/a.txt and 1 more): no train and held-out part stand side by side"
    )
    assert "split by hash" not in open_corpus(str(root / "mine/c.txt"), root).note


def test_nothing_held_out_is_trained_on_whatever_the_archive(root):
    rows = {"top/train.jsonl": jsonl(*"abc"), "top/dev.jsonl": jsonl(*"de"), "top/README.md": b"about"}
    corpus = open_corpus(str(write(root / "packed_test.tar", tar(rows))), root)
    assert sorted(contents(corpus, "train")) == [b"a", b"b", b"c"]
    assert sorted(contents(corpus, "val")) == [b"d", b"e"]


# -- zoo list corpora path=


def listing(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["zoo list", *words])
    with pytest.raises(SystemExit) as exit_:
        list_command.main()
    printed = capsys.readouterr()
    return exit_.value.code, printed.out, printed.err


def test_how_a_path_is_read(root, monkeypatch, capsys):
    for name, text in {
        "train/a.txt": b"A" * 50,
        "val/b.txt": b"B\xff",
        "c.bin": b"\0",
        "d.txt": b"d",
    }.items():
        write(root / "mine" / name, text)
    write(root / "mine/train/e.txt", "é".encode("utf-16") * 9)
    write(root / "mine/train/f.jsonl", b'{"text": null}\n{"text": "F"}')
    code, out, _ = listing(monkeypatch, capsys, "corpora", f"path={root / 'mine'}", "format=json")
    shown = json.loads(out)
    (row,) = [document for document in shown["train"] if document["begins"] == "F"]
    assert row["bytes"] == 1
    assert row["name"].startswith("train/f.jsonl#")
    assert [document for document in shown["train"] if document is not row] == [
        {"name": "train/a.txt", "bytes": 50, "begins": "A" * 40}
    ]
    assert shown["val"] == [{"name": "val/b.txt", "bytes": 2, "begins": "B\ufffd"}]
    assert shown["test"] == []
    why = {left_out["name"].partition("#")[0]: left_out["why"] for left_out in shown["left_out"]}
    assert code == 0
    assert why == {
        "c.bin": "has a NUL byte",
        "train/e.txt": "is UTF-16: expected UTF-8",
        "train/f.jsonl": "is a row whose text is null",
        "d.txt": "outside the splits",
    }
    code, out, _ = listing(monkeypatch, capsys, f"path={root / 'mine'}")
    assert (code, "train/a.txt" in out, "outside the splits" in out, "model=" in out) == (
        0,
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=json"], "format= has no effect without path="),
        (["models", "path=x"], "path= is of corpora, found models"),
        (["path=x", "format=xml"], "format: expected table | json, found xml"),
        (["path=nowhere"], "no corpus 'nowhere'"),
        (["path="], "path: expected a value"),
    ],
)
def test_a_path_that_cannot_be_listed(monkeypatch, capsys, words, message):
    code, out, err = listing(monkeypatch, capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
