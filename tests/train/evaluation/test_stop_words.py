"""Stop words in text that comes piece by piece."""

import itertools

import pytest

from zoo.train.evaluation.stop_words import stop_at, stop_at_numbers


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one END two", ["END"], "one "),
        ("one ENN ED END", ["END"], "one ENN ED "),
        ("aab", ["ab", "b"], "a"),  # the first place counts, not the first word
        ("ENEND", ["END"], "EN"),
        ("one EN", ["END"], "one EN"),  # held back, then released
        ("END", ["END"], ""),
        ("one", [], "one"),
    ],
)
def test_text_ends_before_the_first_stop_word(text: str, stops: list[str], expected: str) -> None:
    """However it is cut into pieces."""
    for cuts in itertools.product((False, True), repeat=len(text) - 1):
        pieces, start = [], 0
        for end in [i + 1 for i, cut in enumerate(cuts) if cut] + [len(text)]:
            pieces.append((end, text[start:end]))
            start = end
        released = list(stop_at(iter(pieces), stops))
        assert "".join(piece for _, piece in released) == expected
        assert all(expected.startswith("".join(p for _, p in released[:n])) for n in range(len(released)))


@pytest.mark.parametrize(
    ("numbers", "stop", "expected"),
    [
        ([15, 5, 7], "5", "15"),
        ([15, 51, 7], "5", "15 51 7 "),
        ([3, 1, 3, 1, 4], "3, 1,4", "3 1"),
        ([5], "5", ""),
    ],
)
def test_numbers_are_whole_words(numbers: list[int], stop: str, expected: str) -> None:
    pieces = [(i, f"{number} ") for i, number in enumerate(numbers, start=1)]
    assert "".join(text for _, text in stop_at_numbers(iter(pieces), [stop])) == expected
