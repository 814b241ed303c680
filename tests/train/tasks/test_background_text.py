"""Cyclic text, its sentences, and texts spliced from them."""

from itertools import pairwise
from pathlib import Path

import pytest

from zoo.errors import UserError
from zoo.train.corpora.catalog import open_corpus
from zoo.train.tasks import background_text
from zoo.train.tasks.background_text import MIN_LOOKAHEAD, BackgroundText, CyclicText, SplicedText

TEXT = (
    "Mr. Owl woke at noon! “Who is there?” he asked.\n\n"
    "A HEADING\n\nNobody (at all.) answered: 3.5 mice were asleep. “No.” …\n"
)


def cyclic_text(folder: Path, *texts: str) -> CyclicText:
    for split in ("train", "val"):
        (folder / "corpus" / split).mkdir(parents=True)
        for i, text in enumerate(texts):
            (folder / "corpus" / split / f"{i}.txt").write_text(text)
    return CyclicText(open_corpus(str(folder / "corpus"), "").split("train"))


def read(source: CyclicText, span: range) -> str:
    return source.read(span.start, len(span)).tobytes().decode()


def test_the_first_document_follows_the_last(tmp_path: Path) -> None:
    source = cyclic_text(tmp_path, "abc", "d", "efghij")
    assert len(source) == 10
    for start in range(23):
        for size in range(25):
            expected = "".join("abcdefghij"[(start + i) % 10] for i in range(size))
            assert read(source, range(start, start + size)) == expected


@pytest.mark.parametrize("block", [1, 2, 5, background_text.BLOCK])
def test_sentence_ends(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_text, "BLOCK", block)
    source = cyclic_text(tmp_path, TEXT)
    edges = [0, *source.sentence_ends(0, len(source)), len(source)]
    assert [read(source, range(start, stop)) for start, stop in pairwise(edges)] == [
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
    assert not list(source.sentence_ends(0, 0))
    assert not list(source.sentence_ends(6, 3))


@pytest.mark.parametrize("size", [0, 1, 30, 31, 500, 3 * MIN_LOOKAHEAD])
@pytest.mark.parametrize("start", [0, 3, 40, 150])
def test_sentences_are_long_enough_and_fit(start: int, size: int, tmp_path: Path) -> None:
    source = cyclic_text(tmp_path, TEXT)
    long = ("Owl woke at noon! ", "“Who is there?” ", "answered: 3.5 mice were asleep. ")
    spans = list(BackgroundText(source, start, size, 18).sentences())
    assert sum(map(len, spans)) == size
    assert all(span.stop <= following.start for span, following in pairwise(spans))
    assert not size or spans[0].start >= start
    complete = [read(source, span) for span in spans[:-1]]
    assert set(complete) <= set(long)
    assert all(long[(long.index(text) + 1) % 3] == following for text, following in pairwise(complete))


@pytest.mark.parametrize("size", [0, 1, 60, 500])
def test_a_background_is_the_same_in_any_reads(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_text, "BLOCK", 7)
    monkeypatch.setattr(background_text, "CURSOR_SPACING", 100)
    source = cyclic_text(tmp_path, TEXT)
    background = BackgroundText(source, 3, size, 18)
    spans = list(background.sentences())
    assert background.num_sentences == len(spans)
    expected = b"".join(source.read(span.start, len(span)).tobytes() for span in spans)
    if size:
        expected = expected[:-1] + b" "
    for start in range(0, size, 13):
        for length in (0, 1, 40, 200):
            part = background.read(start, min(length, size - start)).tobytes()
            assert part == expected[start : start + length]
    middle = len(spans) // 2
    before_middle = sum(map(len, spans[:middle]))
    assert background.offsets([0, 0, middle, len(spans)]) == [0, 0, before_middle, size]


def test_a_text_without_sentence_ends_is_cut_by_length(tmp_path: Path) -> None:
    source = cyclic_text(tmp_path, "x" * (MIN_LOOKAHEAD + 7))
    spans = list(BackgroundText(source, 5, 3 * MIN_LOOKAHEAD, 40).sentences())
    assert sum(map(len, spans)) == 3 * MIN_LOOKAHEAD
    short = cyclic_text(tmp_path / "short", "No. " * 50)
    with pytest.raises(UserError, match="expected a corpus with sentences of 40 bytes or more, found none"):
        BackgroundText(short, 0, 100, 40)


def test_a_spliced_text_is_the_same_in_any_reads(tmp_path: Path) -> None:
    source = cyclic_text(tmp_path, "abcdefghij")
    parts = [b"1", range(8, 13), b"", b"23", range(4, 4), range(0, 2), b"", b"456"]
    expected = b"1ijabc23ab456"
    spliced = SplicedText(source, parts)
    assert len(spliced) == len(expected)
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            assert spliced.read(start, stop).tobytes() == expected[start:stop]
    assert len(SplicedText(source, [b"only"])) == 4
    assert SplicedText(source, [range(0, 3)]).read(1, 3).tobytes() == b"bc"
