"""The chapters of chain and recall: where they begin and which alphabet they have."""

import numpy as np
import pytest

from tests.train.tasks.mad_cases import chi_square
from zoo.train.tasks.chapters import chapters, drawn_lengths, held_out_lengths, last_before


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(("length", "shortest", "longest"), [(16, 4, 8), (64, 16, 32), (256, 16, 96)])
def test_drawn_chapters_are_uniform(length: int, shortest: int, longest: int, step: int) -> None:
    rng = np.random.default_rng(0)
    first = []
    for _ in range(4000):
        lengths = drawn_lengths(rng, length, step)
        assert sum(lengths) == length
        assert all(shortest <= chapter <= longest for chapter in lengths[:-1])
        assert 1 <= lengths[-1] <= longest
        assert all(chapter % step == 0 for chapter in lengths)
        first.append(lengths[0])
    values, counts = np.unique(first, return_counts=True)
    assert values.tolist() == list(range(shortest, longest + 1, step))
    degrees = len(values) - 1
    assert chi_square(counts, np.full(len(values), 1 / len(values))) < degrees + 5 * (2 * degrees) ** 0.5


def test_held_out_chapters_leave_an_alphabet_and_return_to_it() -> None:
    assert held_out_lengths(256, 2) == [96, 96, 64]
    assert held_out_lengths(4096, 2) == [96, 3936, 64]
    assert held_out_lengths(16, 2) == [6, 6, 4]
    assert held_out_lengths(100, 1) == [37, 37, 26]
    assert [tuple(chapter) for chapter in chapters([6, 6, 4])] == [(0, 6, 0), (6, 12, 1), (12, 16, 0)]


def test_the_last_equal_symbol_before_each() -> None:
    symbols = np.random.default_rng(0).integers(5, size=60)
    expected = [max((i for i in range(j) if symbols[i] == symbols[j]), default=-1) for j in range(60)]
    assert last_before(symbols).tolist() == expected
    assert last_before(symbols[:0]).tolist() == []
