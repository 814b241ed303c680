"""ListOps: values of lists, and the generator."""

import statistics
from collections import Counter

import numpy as np
import pytest

from tests.train.tasks.listops import WORDS, value_and_depth
from zoo.errors import UserError
from zoo.train.tasks import listops_language
from zoo.train.tasks.listops_language import CLOSE, END, distinct_trees, evaluate


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops_language, "CHUNK", 512)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("( ( ( ( ( [MAX 2 ) 9 ) ( ( ( [MIN 4 ) 7 ) ] ) ) 0 ) ] )", 9),
        ("[MED 1 2 ]", 1),
        ("[MED 8 9 1 2 ]", 5),
        ("[MED 9 0 3 ]", 3),
        ("[SM 9 9 9 ]", 7),
        ("[MIN 3 [SM 5 5 ] X", 0),
        ("7", 7),
    ],
)
def test_values_by_hand(line: str, expected: int) -> None:
    words = line.replace("(", "").replace(")", "").split()
    ids = [WORDS.index("]" if word == "X" else word) for word in words]
    for tokens in (line, words, ids, np.array([*ids, END], np.uint8)):
        assert evaluate(tokens) == expected


@pytest.mark.parametrize(
    "line", ["", "[MAX", "[MAX ]", "]", "1 2", "[MAX 1 ] ]", "[MAX 1 2", "[AVG 1 2 ]", "10"]
)
def test_malformed_lists_have_no_value(line: str) -> None:
    with pytest.raises(UserError, match="expected"):
        evaluate(line)


def test_generation_is_the_same_for_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops_language, "CHUNK", 128)
    trees = list(distinct_trees(3, 5, 40, 4, 400, workers=1))
    assert len(set(trees)) == 400
    assert list(distinct_trees(3, 5, 40, 4, 400, workers=3)) == trees
    assert list(distinct_trees(3, 5, 40, 4, 100, workers=1)) == trees[:100]
    assert len(set(distinct_trees(4, 5, 40, 4, 400, workers=1)) & set(trees)) < 100


def test_more_lists_than_exist_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops_language, "CHUNK", 16)  # at depth 2 the longest has ten digits
    with pytest.raises(UserError, match=r"expected 5 different lists of 13 to 29 .* depth up to 2, found 0"):
        list(distinct_trees(0, 12, 30, 2, 5, workers=1))


@pytest.mark.slow
def test_ten_thousand_lists_are_distributed_as_the_originals() -> None:
    """Against 10,360 samples of Long Range Arena's generator: lengths, answers, arguments of the root."""
    lengths, answers, arguments, roots = [], Counter[int](), Counter[int](), Counter[int]()
    for tree in distinct_trees(0, 500, 2000, 10, 10_000):
        *tokens, end, answer = tree
        assert end == END
        assert evaluate(tokens) == answer
        assert value_and_depth(tokens) == (answer, 9)
        lengths.append(len(tokens))
        answers[answer] += 1
        roots[tokens[0]] += 1
        arguments[_count_arguments(tokens)] += 1
    assert abs(statistics.mean(lengths) - 1028) < 15
    assert abs(statistics.median(lengths) - 945) < 25
    assert abs(statistics.stdev(lengths) - 392.8) < 10
    assert (min(lengths), max(lengths)) >= (501, 0)
    assert max(lengths) <= 1999
    original = [16.9, 8.8, 7.9, 8.7, 9.1, 8.5, 8.0, 6.7, 8.4, 17.1]
    assert _chi_square([answers[digit] for digit in range(10)], original) < 27.88  # p = 0.001, 9 degrees
    original = [4.4, 6.6, 9.1, 9.6, 11.8, 13.0, 14.2, 15.3, 16.1]
    assert _chi_square([arguments[count] for count in range(2, 11)], original) < 26.12  # 8 degrees
    original = [25.2, 25.3, 25.5, 24.0]
    assert _chi_square([roots[token] for token in range(10, 14)], original) < 16.27  # 3 degrees


def _count_arguments(tokens: list[int]) -> int:
    depth = count = 0
    for token in tokens[1:-1]:
        count += depth == 0 and token != CLOSE
        depth += (10 <= token < CLOSE) - (token == CLOSE)
    return count


def _chi_square(counts: list[int], shares: list[float], size: int = 10_360) -> float:
    """Of two samples: the original's shares, in per cent, are those of `size` samples."""
    generated, original = np.array(counts, float), np.array(shares) / sum(shares) * size
    ratio = np.sqrt(original.sum() / generated.sum())
    return float(((generated * ratio - original / ratio) ** 2 / (generated + original)).sum())
