"""A corpus by name or path: documents in splits and a note, or an error of one line."""

import gzip
import io
import lzma
import os
import zipfile

import numpy as np
import pytest

from tests.train.corpora.files import contents, jsonl, tar, write
from zoo.errors import UserError
from zoo.train.corpora import catalog
from zoo.train.corpora.catalog import open_corpus


def everything(corpus):
    return sorted(text for split in corpus.parts for text in contents(corpus, split))


def zipped(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


TEXTS = [f"text number {i} é \ud800" for i in range(40)]
RAW = sorted(text.encode("utf-8", "surrogatepass") for text in TEXTS)
FILES = {f"some/folder/{i}.txt": raw for i, raw in enumerate(RAW)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl(*TEXTS)),
        ("a.jsonl.gz", gzip.compress(jsonl(*TEXTS))),
        ("a.JSONL.XZ", lzma.compress(jsonl(*TEXTS))),
        ("a.tar", tar(FILES)),
        ("a.tar.gz", gzip.compress(tar(FILES))),
        ("a.tgz", gzip.compress(tar(FILES))),
        ("a.tar.xz", lzma.compress(tar(FILES))),
        ("a.txz", lzma.compress(tar(FILES))),
        ("a.zip", zipped(FILES)),
        ("rows_in_a.tar", tar({"x/rows.jsonl": jsonl(*TEXTS)})),
        ("gz_in_a.tar", tar({name + ".gz": gzip.compress(raw) for name, raw in FILES.items()})),
    ],
)
def test_every_kind_of_file_gives_its_texts_once(root, name, content):
    corpus = open_corpus(str(write(root / name, content)), root)
    assert everything(corpus) == RAW
    assert set(corpus.parts) >= {"train", "val"}


@pytest.mark.parametrize("packed", [bytes, gzip.compress, lzma.compress])
def test_a_single_text_is_cut_along_its_length(root, packed):
    text = os.urandom(2000).replace(b"\0", b"\1")  # bytes are bytes: it needn't be UTF-8
    name = {bytes: "t.txt", gzip.compress: "t.gz", lzma.compress: "t.txt.xz"}[packed]
    corpus = open_corpus(str(write(root / name, packed(text))), root)
    assert [contents(corpus, split) for split in ("train", "val", "test")] == [
        [text[:1800]],
        [text[1800:1900]],
        [text[1900:]],
    ]
    assert corpus.note == f"{name}: 1,800 train / 100 val / 100 test bytes of one text"


def test_a_folder_is_split_by_names_alone(root):
    folder = root / "mine"
    for i in range(300):
        write(folder / f"{i % 7}" / f"{i}.txt", f"text {i}".encode())
    corpus = open_corpus(str(folder), root)
    sizes = {split: len(corpus.split(split)) for split in ("train", "val", "test")}
    assert sum(sizes.values()) == 300
    assert 5 <= sizes["val"] <= 30
    assert 5 <= sizes["test"] <= 30
    counts = f"{sizes['train']} train / {sizes['val']} val / {sizes['test']} test"
    assert corpus.note.startswith(f"mine: {counts} documents (")
    held_out = contents(corpus, "val")
    write(folder / "later.txt", b"one more")  # moves no other document
    (folder / "0" / "0.txt").write_bytes(b"changed")
    later = contents(open_corpus(str(folder), root), "val")
    assert [text for text in later if text not in (b"one more", b"changed")] == [
        t for t in held_out if t != b"text 0"
    ]


def test_the_order_of_val_does_not_follow_names(root):
    for i in range(200):
        write(root / "mine" / "train" / f"{i:03}.txt", b"%d" % i)
        write(root / "mine" / "validation" / f"{i:03}.txt", b"%d" % i)
    corpus = open_corpus(str(root / "mine"), root)
    assert [int(text) for text in contents(corpus, "train")] == list(range(200))
    order = [int(text) for text in contents(corpus, "val")]
    assert sorted(order) == list(range(200))
    assert 60 < np.mean(order[:50]) < 140
    assert list(corpus.parts) == ["train", "val"]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_documents_still_give_train_and_val(root, count):
    for start in range(25):
        folder = root / f"{start}"
        for i in range(count):
            write(folder / f"{start}-{i}.txt", b"%d" % i)
        corpus = open_corpus(str(folder), root)
        assert len(corpus.split("train")) >= 1
        assert len(corpus.split("val")) >= 1
        assert everything(corpus) == [b"%d" % i for i in range(count)]


@pytest.mark.parametrize(
    "names",
    [
        ("train/a", "val/a", "test/a"),
        ("train.txt", "valid.txt", "test.txt"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("mine_train.jsonl", "mine_dev.jsonl", "mine_test.jsonl"),
        ("x/y/train/a/b.txt", "x/y/dev/c.txt", "x/y/test/d.txt"),
    ],
)
def test_existing_splits_are_used(root, names):
    for name, text in zip(names, "abc", strict=True):
        write(root / "mine" / name, jsonl(text) if name.endswith("jsonl") else text.encode())
    corpus = open_corpus(str(root / "mine"), root)
    assert [contents(corpus, split) for split in ("train", "val", "test")] == [[b"a"], [b"b"], [b"c"]]
    packed = write(
        root / "packed.tar", tar({f"top/{name}": (root / "mine" / name).read_bytes() for name in names})
    )
    assert everything(open_corpus(str(packed), root)) == [b"a", b"b", b"c"]
    assert contents(open_corpus(str(packed), root), "val") == [b"b"]


def test_a_folder_of_tests_announces_no_split(root):
    for name in [*(f"code/{i}.py" for i in range(20)), "test/a.py", "test/b.py"]:
        write(root / "mine" / name, name.encode())
    assert len(everything(open_corpus(str(root / "mine"), root))) == 22


def test_skipped_texts_are_counted(root):
    folder = root / "mine"
    for name, content in {
        "train/a.txt": b"a",
        "val/b.txt": b"b",
        "train/binary": b"\0",
        "val/late": b"x" * 3_000_000 + b"\0",
        "train/empty": b"",
        "README": b"r",
        ".git/config": b"hidden",
        "val/._b.txt": b"hidden",
    }.items():
        write(folder / name, content)
    (folder / "train" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to("self")
    os.mkfifo(folder / "pipe")
    corpus = open_corpus(str(folder), root)
    assert everything(corpus) == [b"a", b"b"]
    assert corpus.note == "mine: 1 train / 1 val bytes; left out: 2 binary, 1 empty, 1 outside the splits"


def test_links_are_followed(root):
    for i in range(3):
        write(root / "elsewhere" / f"{i}.txt", b"%d" % i)
    (root / "mine").mkdir()
    (root / "mine" / "linked").symlink_to(root / "elsewhere", target_is_directory=True)
    assert everything(open_corpus(str(root / "mine"), root)) == [b"0", b"1", b"2"]


def test_stdlib_is_source_code_without_its_tests_and_tables():
    corpus = open_corpus("stdlib", "nowhere")
    train = b"".join(contents(corpus, "train"))
    assert len(train) > 3_000_000
    assert b"import unittest" in train
    assert len(corpus.split("val")) > 5
    names = [source.name for source in catalog.stdlib_sources()]
    assert "argparse.py" in names
    assert all(name.endswith(".py") for name in names)
    left_out = {"test", "tests", "site-packages", "encodings", "pydoc_data"}
    assert left_out.isdisjoint(part for name in names for part in name.split("/"))


def test_bytes_of_is_a_view_within_the_document(root):
    documents = open_corpus(str(write(root / "t.txt", b"0123456789" * 10)), root).split("train")
    view = documents.bytes_of(0, 3, 7)
    assert view.tobytes() == b"3456"
    assert not view.flags.writeable
    assert not view.flags.owndata
    for start, stop in ((-1, 3), (5, 4), (0, 91)):
        with pytest.raises(IndexError):
            documents.bytes_of(0, start, stop)


# -- errors ------------------------------------------------------------------------------------------------


def refusal(name, root):
    with pytest.raises(UserError) as caught:
        open_corpus(str(name), root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors_are_one_line_with_the_existing_corpora(root):
    write(root / "wikilong" / "train.jsonl", jsonl("a"))
    message = refusal("wikilnog", root)
    assert "one of stdlib, wikilong, books" in message
    assert f"under {root}: wikilong" in message
    assert message.endswith("did you mean wikilong?")
    assert f"under {root}: wikilong" in refusal("books", root)
    assert "expected books or books.tar.xz" in refusal("books", root)
    assert f"under {root / 'none'}: none of them" in refusal("enwik8", root / "none")
    write(root / "wikitext/wt2.test.txt.xz", b"")
    assert refusal("books", root).endswith(f"(under {root}: wikilong, wikitext-2 (without train, valid))")
    (root / "empty").mkdir()
    assert "no files in the folder" in refusal(root / "empty", root)
    assert "no corpus" in refusal(root / "missing.txt", root)
    assert "no corpus ''" in refusal("", root)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "0 binary files and 1 empty file"),
        ("a.txt", b"ab\0", "1 binary file and 0 empty files"),
        ("a.txt", b"ab", "has 2 bytes: expected at least 3"),
        ("a.jsonl", b"\n\n", "0 binary files and 0 empty files"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', "line 2: expected a JSON object with a string `text`"),
        ("a.jsonl", b'{"text": 3}', "line 1: expected"),
        ("a.jsonl", b"[1]", "line 1: expected"),
        ("a.jsonl", b"{\xff}", "line 1: expected"),
        ("a.jsonl", b"[" * 100_000, "line 1: expected"),
        ("a.gz", b"no gzip", "cannot read .*Not a gzipped file"),
        ("a.gz", gzip.compress(os.urandom(1000).hex().encode())[:300], "cannot read .*ended before"),
        ("a.xz", b"no xz", "cannot read .*not supported"),
        ("a.xz", lzma.compress(os.urandom(1000).hex().encode())[:300], "cannot read .*ended before"),
        ("a.tar", b"no tar", "cannot read"),
        ("a.tar", tar({"a": b"x" * 5000})[:3000], "cannot read .*unexpected end"),
        ("a.zip", b"no zip", "cannot read .*not a zip"),
    ],
)
def test_unreadable_files_are_refused(root, name, content, message):
    path = write(root / name, content)
    with pytest.raises(UserError, match=message) as caught:
        open_corpus(str(path), root)
    assert "\n" not in str(caught.value)
    assert not list((root.parent / "cache").glob("*"))
