"""How far a score holds at lengths that a run wasn't trained at."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

Shares = Mapping[int | float, dict[str, Any]]
"""Proportions with their bounds, by length."""


def longest_length(shares: Shares, trained_at: int | float) -> int | float | None:
    """The longest length up to which, from the training length on, the lower bound of every share stays above
    half of the share at the training length; None without that one, and where its own bound is below."""
    if trained_at not in shares:
        return None
    least, longest = shares[trained_at]["share"] / 2, None
    for length in sorted(length for length in shares if length >= trained_at):
        if shares[length]["low"] <= least:
            break
        longest = length
    return longest


def area(shares: Shares, trained_at: int | float) -> tuple[float, float] | None:
    """The area under the share against log2 of the length, from the training length to the longest one
    measured, and the area that a share of 1 would have; None for fewer than two lengths."""
    lengths = sorted(length for length in shares if length >= trained_at)
    if len(lengths) < 2:
        return None
    total = 0.0
    for short, long in pairwise(lengths):
        total += math.log2(long / short) * (shares[short]["share"] + shares[long]["share"]) / 2
    return total, math.log2(lengths[-1] / lengths[0])
