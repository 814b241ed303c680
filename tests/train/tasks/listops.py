"""The value of a list computed by recursion, independently of the task."""

from collections.abc import Sequence

import numpy as np

WORDS = [*map(str, range(10)), "[MAX", "[MIN", "[MED", "[SM", "]"]


def value_and_depth(tokens: Sequence[int]) -> tuple[int, int]:
    """The value of one complete list, and how deeply operators are nested in it."""
    words = [WORDS[token] for token in tokens]
    value, depth = _consume(words)
    assert not words
    return value, depth


def _consume(words: list[str]) -> tuple[int, int]:
    """Removes the words of one tree."""
    word = words.pop(0)
    if word.isdigit():
        return int(word), 0
    values, depths = [], []
    while words[0] != "]":
        value, depth = _consume(words)
        values.append(value)
        depths.append(depth)
    words.pop(0)
    assert 2 <= len(values) <= 10
    operator = {
        "[MAX": max,
        "[MIN": min,
        "[MED": lambda values: int(np.median(values)),
        "[SM": lambda values: int(np.sum(values)) % 10,
    }[word]
    return operator(values), 1 + max(depths)
