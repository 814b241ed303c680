"""Filler without end, its sentences, and texts woven of it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.train.corpora import open_corpus
from zoo.train.haystack import CHUNK, Ring, Woven

TEXT = (
    "Mr. Owl woke at noon! “Who is there?” he asked.\n\n"
    "A HEADING\n\nNobody (at all.) answered: 3.5 mice were asleep. “No.” …\n"
)


def ring_of(folder: Path, *texts: str) -> Ring:
    for split in ("train", "val"):
        (folder / "own" / split).mkdir(parents=True)
        for number, text in enumerate(texts):
            (folder / "own" / split / f"{number}.txt").write_text(text)
    return Ring(open_corpus(str(folder / "own"), "").split("train"))


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


def test_where_sentences_end(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, TEXT)
    ends = ring.sentence_ends(0, len(ring))
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
    assert ring.sentence_ends(0, 0) == [0, 0]
    assert ring.sentence_ends(6, 3) == [0, 3]


@pytest.mark.parametrize("size", [0, 1, 30, 31, 500, 3 * CHUNK])
@pytest.mark.parametrize("start", [0, 3, 40, 150])
def test_sentences_are_long_enough_and_fit(start: int, size: int, tmp_path: Path) -> None:
    ring = ring_of(tmp_path, TEXT)
    long = ("Owl woke at noon! ", "“Who is there?” ", "answered: 3.5 mice were asleep. ")
    spans = ring.sentences(start, size, 18)
    assert sum(map(len, spans)) == size
    assert all(one.stop <= other.start for one, other in pairwise(spans))
    assert not size or spans[0].start >= start
    whole = [ring.read(span.start, len(span)).tobytes().decode() for span in spans[:-1]]
    assert set(whole) <= set(long)
    assert all(long[(long.index(one) + 1) % 3] == other for one, other in pairwise(whole))


def test_a_text_without_sentences_is_cut_by_length(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, "x" * (CHUNK + 7))
    found = ring.sentences(5, 3 * CHUNK, 40)
    assert sum(map(len, found)) == 3 * CHUNK
    short = ring_of(tmp_path / "short", "No. " * 50)
    with pytest.raises(UserError, match="expected a corpus with sentences of 40 bytes or more, found none"):
        short.sentences(0, 100, 40)


def test_woven_texts_are_read_in_any_pieces(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, "abcdefghij")
    pieces = [b"1", range(8, 13), b"", b"23", range(4, 4), range(0, 2), b"", b"456"]
    whole = b"1ijabc23ab456"
    woven = Woven(ring, pieces)
    assert len(woven) == len(whole)
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            assert woven.read(start, stop).tobytes() == whole[start:stop]
    assert len(Woven(ring, [b"only"])) == 4
    np.testing.assert_array_equal(Woven(ring, [range(0, 3)]).read(1, 3), np.frombuffer(b"bc", np.uint8))
