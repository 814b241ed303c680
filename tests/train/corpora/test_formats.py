"""Files that are cut, damaged or of another kind than plain text: read in whole or refused, never in part."""

import gzip
import json
import lzma
import re

import pytest

from tests.train.corpora.files import contents, jsonl, tar, write
from zoo.errors import UserError
from zoo.train.corpora.catalog import open_corpus
from zoo.train.corpora.unread import ENDINGS

SIX = {f"d/{n}.txt": f"text {n} ".encode() * 300 for n in range(6)}


def everything(corpus):
    return sorted({text for split in corpus.parts for text in contents(corpus, split)})


def refusal(path, root, **options):
    with pytest.raises(UserError) as caught:
        open_corpus(str(path), root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("ending", "pack"), [("tar", bytes), ("tar.gz", gzip.compress), ("tar.xz", lzma.compress)]
)
def test_an_archive_that_is_cut_anywhere_is_refused_or_complete(root, ending, pack):
    whole = tar(SIX)
    end = whole.rindex(b"text 5 ") // 512 * 512 + 1024  # of the last text, after which only zeros follow
    outcomes = set()
    for size in [*range(170, len(whole), 510), end - 512, end - 511, end - 1, end]:
        path = write(root / f"cut{size}.{ending}", pack(whole[:size]))
        if size < end:
            assert refusal(path, root).startswith(f"cannot read {path}: ")
        else:
            assert everything(open_corpus(str(path), root)) == sorted(SIX.values())
        outcomes.add(size < end)
    assert outcomes == {True, False}


@pytest.mark.parametrize("at", [0, 512, 3072])
@pytest.mark.parametrize("damage", [b"\0" * 512, b"\xff" * 8, b"x" * 512])
def test_a_damaged_header_is_not_the_end(root, at, damage):
    whole = bytearray(tar(SIX))
    headers = [i for i in range(0, len(whole), 512) if whole[i : i + 2] == b"d/"]
    header = headers[at // 512 % 6]
    whole[header : header + len(damage)] = damage
    assert "cannot read" in refusal(write(root / "a.tar", bytes(whole)), root)


def test_two_archives_in_one_file_are_not_the_first_alone(root):
    assert "continues after its end mark" in refusal(write(root / "a.tar", tar(SIX) + tar(SIX)), root)


# -- rows

ROWS = "".join(json.dumps({"text": f"{n} the keeper", "url": "x"}) + "\n" for n in range(9))
BODIES = ROWS.replace("text", "body")
EXPECTED = sorted(f"{n} the keeper".encode() for n in range(9))


@pytest.mark.parametrize(
    "name", ["a.json", "a.ndjson", "a.jsonlines", "a.jsonl", "a.txt", "a.JSONL", "a", "a.json.gz"]
)
def test_rows_are_rows_whatever_the_ending_says(root, name):
    content = gzip.compress(ROWS.encode()) if name.endswith("gz") else ROWS.encode()
    assert everything(open_corpus(str(write(root / name, content)), root)) == EXPECTED


def test_a_first_row_longer_than_what_is_looked_at_first(root):
    texts = ["x" * 100_000, "y"]
    assert everything(open_corpus(str(write(root / "a.json", jsonl(*texts))), root)) == [b"x" * 100_000, b"y"]
    with_mark = b"\xef\xbb\xbf" + jsonl("a", "b")
    assert everything(open_corpus(str(write(root / "b.jsonl", with_mark)), root)) == [b"a", b"b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", BODIES, "JSON objects without a field 'text', found body, url; data.field="),
        ("a.json", json.dumps([{"text": "a"}, {"text": "b"}], indent=1), "is a JSON list of objects"),
        ("a.jsonl", BODIES, "line 1: .* found fields body, url; data.field=… names another"),
        ("a.jsonl", '{"text": ["a", 3]}', "line 1: expected a JSON object with a string `text`"),
    ],
    ids=str,
)
def test_rows_without_the_field(root, name, content, message):
    assert re.search(message, refusal(write(root / name, content.encode()), root))


@pytest.mark.parametrize("text", ['{\n "name": "x",\n "text": 3}\n', '{"name": 3}', "[1, 2]", "[[[", "{[}"])
def test_json_that_is_no_rows_is_text(root, text):
    corpus = open_corpus(str(write(root / "a.json", text.encode())), root)
    assert b"".join(everything_in_order(corpus)) == text.encode()


def everything_in_order(corpus):
    return [text for split in ("train", "val", "test") for text in contents(corpus, split)]


def test_another_field_lists_and_null(root):
    rows = [{"body": ["a", "b"]}, {"body": None}, {"body": "c"}, {"body": []}, {"body": "d", "text": "e"}]
    path = write(root / "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    corpus = open_corpus(str(path), root, field="body")
    assert everything(corpus) == [b"a\nb", b"c", b"d"]
    assert corpus.note.endswith("left out: 1 empty, 1 null")
    assert "line 1: expected" in refusal(path, root)


# -- formats that aren't read

SIGNATURES = {
    "Zstandard": bytes.fromhex("28b52ffd") + bytes(range(1, 255)),
    "bzip2": b"BZh91AY&SY" + bytes(range(1, 99)),
    "7-Zip": b"7z\xbc\xaf\x27\x1c" + b"x" * 99,
    "Parquet": b"PAR1\x15\x04\x15\x00" + b"x" * 99,
    "PDF": b"%PDF-1.4\n" + b"x" * 99,
    "gzip": gzip.compress(b"x" * 99),
    "xz": lzma.compress(b"x" * 99),
    "zip": b"PK\x03\x04" + b"x" * 99,
    "tar": tar(SIX),
}


@pytest.mark.parametrize("kind", SIGNATURES)
def test_formats_are_told_by_their_first_bytes(root, kind):
    path = write(root / "mine" / "a.txt", SIGNATURES[kind])
    write(root / "mine" / "README.md", b"about")
    assert f"a.txt is {kind}" in refusal(path, root)
    assert f"a.txt is {kind}" in refusal(root / "mine", root)
    assert f"a.txt is {kind}" in refusal(write(root / "b.tar", tar({"a.txt": SIGNATURES[kind]})), root)


@pytest.mark.parametrize("ending", sorted(ENDINGS))
def test_formats_are_told_by_their_endings(root, ending):
    assert f"is {ENDINGS[ending]}, which isn't read" in refusal(
        write(root / f"a.jsonl{ending}", b"x" * 99), root
    )


@pytest.mark.parametrize("text", [b"BZh! said the keeper " * 9, b"PAR1 is a word " * 9, b"7z 4 " * 9])
def test_letters_that_begin_like_a_format_are_text(root, text):
    assert b"".join(everything_in_order(open_corpus(str(write(root / "a.txt", text)), root))) == text


def test_what_is_no_text_is_told_apart(root):
    assert refusal(write(root / "a.txt", "ab\n".encode("utf-16")), root).endswith(
        "a.txt is UTF-16: expected UTF-8"
    )
    assert refusal(write(root / "b.txt", b"text" * 9 + b"\0"), root).endswith("b.txt has a NUL byte")
    write(root / "mine/a.txt", "ab\n".encode("utf-16"))
    write(root / "mine/b.txt", b"abc")
    write(root / "mine/c.txt", b"a\0c")
    assert open_corpus(str(root / "mine"), root).note.endswith("left out: 1 binary, 1 UTF-16")
