"""Means over seeds with their 95 % intervals: Student's t, and differences paired by seed.

    mean ± t(0.975, n - 1) s / sqrt(n),    s^2 = sum (x - mean)^2 / (n - 1)

A difference between two models is the same of x_seed - y_seed, over the seeds that both have: what a seed
does to both of them (the order of the data) cancels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


def share(hits: int, of: int) -> dict[str, Any]:
    """A share with the bounds of its 95 % interval, as evaluation.json holds it."""
    low, high = wilson(hits, of)
    return {"share": hits / of, "low": low, "high": high, "hits": hits, "of": of}


def wilson(hits: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of the 95 % interval of a share (Wilson 1927)."""
    part, spread = hits / asked, z * z / asked
    middle = (part + spread / 2) / (1 + spread)
    half = z * math.sqrt(part * (1 - part) / asked + spread / (4 * asked)) / (1 + spread)
    return max(0.0, middle - half) if hits else 0.0, min(1.0, middle + half) if hits < asked else 1.0


LEVEL = 0.95


class Estimate(NamedTuple):
    mean: float
    half: float | None
    """Half the width of the 95 % interval; None for a single number, which says nothing of its spread."""
    runs: int


def estimate(numbers: Sequence[float]) -> Estimate | None:
    """None where there are no numbers."""
    count = len(numbers)
    if not count:
        return None
    mean = math.fsum(numbers) / count
    if count == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (count - 1)
    return Estimate(mean, student_quantile((1 + LEVEL) / 2, count - 1) * math.sqrt(variance / count), count)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Of ours - theirs, by seed; None where they have no seed in common."""
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def student_quantile(share: float, freedom: int) -> float:
    """t below which this share of Student's distribution lies; share from 1/2 up to below 1."""
    low, high = 0.0, 1.0
    while student_share(high, freedom) < share:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_share(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def student_share(t: float, freedom: int) -> float:
    """The share of Student's distribution below t >= 0 (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    if freedom % 2:
        term, total = math.cos(angle), 0.0
        for k in range(1, freedom, 2):  # cos, 2/3 cos^3, 2 4 / (3 5) cos^5, …
            total += term
            term *= square * (k + 1) / (k + 2)
        between = 2 / math.pi * (angle + sine * total)
    else:
        term, total = 1.0, 0.0
        for k in range(0, freedom, 2):  # 1, 1/2 cos^2, 1 3 / (2 4) cos^4, …
            total += term
            term *= square * (k + 1) / (k + 2)
        between = sine * total
    return (1 + between) / 2
