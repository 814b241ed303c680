"""Chapters: texts that leave an alphabet for another one and return to it, A B A B …

What was learned in a chapter of A is needed again after a chapter of B, in which nothing repeats it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from zoo.train.tasks.base import Symbols

MIN_LENGTH = 16  # of a text
SHORTEST, LONGEST = 16, 96  # chapters of a training text longer than LONGEST
FIRST, RETURN = 96, 64  # chapters of a held-out text that is longer than both and another FIRST


class Chapter(NamedTuple):
    """Positions start..stop-1 of a text, and the index of their alphabet."""

    start: int
    stop: int
    alphabet: int


def drawn_lengths(rng: np.random.Generator, length: int, step: int) -> list[int]:
    """Chapters of a training text, multiples of `step` that are uniform from 16 to 96, or, in a text of at
    most 96 symbols, from a quarter to half of it; the last one is cut."""
    shortest, longest = (length // 4, length // 2) if length <= LONGEST else (SHORTEST, LONGEST)
    lengths: list[int] = []
    while (left := length - sum(lengths)) > 0:
        drawn = step * int(rng.integers(shortest // step, longest // step + 1))
        lengths.append(min(drawn, left))
    return lengths


def held_out_lengths(length: int, step: int) -> list[int]:
    """The three chapters of a held-out text: A, a gap of B that grows with the length, and A again; multiples
    of `step`."""
    if length >= 2 * FIRST + RETURN:
        return [FIRST, length - FIRST - RETURN, RETURN]
    first = 3 * length // 8 // step * step
    return [first, first, length - 2 * first]


def chapters(lengths: list[int]) -> Iterator[Chapter]:
    stop = 0
    for index, length in enumerate(lengths):
        start, stop = stop, stop + length
        yield Chapter(start, stop, index % 2)


def last_before(symbols: Symbols) -> Symbols:
    """For each symbol the index of the last equal one before it; -1 where there is none."""
    order = np.argsort(symbols, kind="stable")
    before = np.full(len(symbols), -1, np.int64)
    same = symbols[order[1:]] == symbols[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before
