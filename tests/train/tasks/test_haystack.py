"""Filler without end, its sentences, and texts woven of it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.train.corpora.catalog import open_corpus
from zoo.train.tasks import haystack
from zoo.train.tasks.haystack import MIN_LOOKAHEAD, BackgroundText, CyclicText, SplicedText

TEXT = (
    "Mr. Owl woke at noon! “Who is there?” he asked.\n\n"
    "A HEADING\n\nNobody (at all.) answered: 3.5 mice were asleep. “No.” …\n"
)


def ring_of(folder: Path, *texts: str) -> CyclicText:
    for split in ("train", "val"):
        (folder / "own" / split).mkdir(parents=True)
        for number, text in enumerate(texts):
            (folder / "own" / split / f"{number}.txt").write_text(text)
    return CyclicText(open_corpus(str(folder / "own"), "").split("train"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def test_behind_the_last_document_comes_the_first(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, "abc", "d", "efghij")
    assert len(ring) == 10
    for start in range(23):
        for size in range(25):
            expected = "".join("abcdefghij"[(start + n) % 10] for n in range(size))
            assert ring.read(start, size).tobytes().decode() == expected


@pytest.mark.parametrize("block", [1, 2, 5, haystack.BLOCK])
def test_where_sentences_end(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haystack, "BLOCK", block)
    ring = ring_of(tmp_path, TEXT)
    ends = [0, *ring.sentence_ends(0, len(ring)), len(ring)]
    assert [ring.read(a, b - a).tobytes().decode() for a, b in pairwise(ends)] == [
        "Mr. ",
        "Owl woke at noon! ",
        "“Who is there?” ",
        "he asked.\n\n",
        "A HEADING\n\n",
        "Nobody (at all.) ",
        "answered: 3.5 mice were asleep. ",
        "“No.” ",
        "…\n",
    ]
    assert not list(ring.sentence_ends(0, 0))
    assert not list(ring.sentence_ends(6, 3))


@pytest.mark.parametrize("size", [0, 1, 30, 31, 500, 3 * MIN_LOOKAHEAD])
@pytest.mark.parametrize("start", [0, 3, 40, 150])
def test_sentences_are_long_enough_and_fit(start: int, size: int, tmp_path: Path) -> None:
    ring = ring_of(tmp_path, TEXT)
    long = ("Owl woke at noon! ", "“Who is there?” ", "answered: 3.5 mice were asleep. ")
    spans = list(BackgroundText(ring, start, size, 18).sentences())
    assert sum(map(len, spans)) == size
    assert all(one.stop <= other.start for one, other in pairwise(spans))
    assert not size or spans[0].start >= start
    whole = [ring.read(span.start, len(span)).tobytes().decode() for span in spans[:-1]]
    assert set(whole) <= set(long)
    assert all(long[(long.index(one) + 1) % 3] == other for one, other in pairwise(whole))


@pytest.mark.parametrize("size", [0, 1, 60, 500])
def test_a_book_is_read_in_any_pieces(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haystack, "BLOCK", 7)
    monkeypatch.setattr(haystack, "CURSOR_SPACING", 100)
    ring = ring_of(tmp_path, TEXT)
    book = BackgroundText(ring, 3, size, 18)
    spans = list(book.sentences())
    assert book.num_sentences == len(spans)
    whole = b"".join(ring.read(span.start, len(span)).tobytes() for span in spans)[:-1] + b" " * (size > 0)
    for start in range(0, size, 13):
        for length in (0, 1, 40, 200):
            assert book.read(start, min(length, size - start)).tobytes() == whole[start : start + length]
    before = [sum(map(len, spans[:number])) for number in range(len(spans) + 1)]
    assert book.offsets([0, 0, len(spans) // 2, len(spans)]) == [0, 0, before[len(spans) // 2], size]


def test_a_text_without_sentences_is_cut_by_length(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, "x" * (MIN_LOOKAHEAD + 7))
    found = list(BackgroundText(ring, 5, 3 * MIN_LOOKAHEAD, 40).sentences())
    assert sum(map(len, found)) == 3 * MIN_LOOKAHEAD
    short = ring_of(tmp_path / "short", "No. " * 50)
    with pytest.raises(UserError, match="expected a corpus with sentences of 40 bytes or more, found none"):
        BackgroundText(short, 0, 100, 40)


def test_woven_texts_are_read_in_any_pieces(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, "abcdefghij")
    pieces = [b"1", range(8, 13), b"", b"23", range(4, 4), range(0, 2), b"", b"456"]
    whole = b"1ijabc23ab456"
    woven = SplicedText(ring, pieces)
    assert len(woven) == len(whole)
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            assert woven.read(start, stop).tobytes() == whole[start:stop]
    assert len(SplicedText(ring, [b"only"])) == 4
    np.testing.assert_array_equal(SplicedText(ring, [range(0, 3)]).read(1, 3), np.frombuffer(b"bc", np.uint8))
