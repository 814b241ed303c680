"""Means over seeds with their 95 % intervals: Student's t, and differences paired by seed.

    mean ± t(0.975, n - 1) s / sqrt(n),    s^2 = sum (x - mean)^2 / (n - 1)

A difference between two models is the mean of x_seed - y_seed over the seeds that both have: the effects that
a seed has on both (the order of the data) cancel.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


def proportion(hits: int, trials: int) -> dict[str, Any]:
    """The proportion hits / trials with the bounds of its 95 % interval, as evaluation.json stores it."""
    low, high = wilson(hits, trials)
    return {"share": hits / trials, "low": low, "high": high, "hits": hits, "of": trials}


def wilson(hits: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of the 95 % interval of a proportion (Wilson 1927)."""
    p, spread = hits / trials, z * z / trials
    centre = (p + spread / 2) / (1 + spread)
    half_width = z * math.sqrt(p * (1 - p) / trials + spread / (4 * trials)) / (1 + spread)
    low = max(0.0, centre - half_width) if hits else 0.0
    high = min(1.0, centre + half_width) if hits < trials else 1.0
    return low, high


LEVEL = 0.95


class Estimate(NamedTuple):
    mean: float
    half_width: float | None
    """Of the 95 % interval; None for a single value, whose spread is unknown."""
    runs: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """None where there are no values."""
    n = len(values)
    if not n:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
    return Estimate(mean, student_quantile((1 + LEVEL) / 2, n - 1) * math.sqrt(variance / n), n)


def paired(x: Mapping[int, float], y: Mapping[int, float]) -> Estimate | None:
    """Estimate of x - y, by seed; None where they have no seed in common."""
    return estimate([x[seed] - y[seed] for seed in sorted(x.keys() & y.keys())])


def student_quantile(p: float, dof: int) -> float:
    """Quantile of Student's distribution; 1/2 <= p < 1."""
    low, high = 0.0, 1.0
    while student_cdf(high, dof) < p:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, dof) < p else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, dof: int) -> float:
    """Distribution function of Student's t at t >= 0 (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(dof))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    if dof % 2:
        term, total = math.cos(angle), 0.0
        for k in range(1, dof, 2):  # cos, 2/3 cos^3, 2 4 / (3 5) cos^5, …
            total += term
            term *= square * (k + 1) / (k + 2)
        between = 2 / math.pi * (angle + sine * total)
    else:
        term, total = 1.0, 0.0
        for k in range(0, dof, 2):  # 1, 1/2 cos^2, 1 3 / (2 4) cos^4, …
            total += term
            term *= square * (k + 1) / (k + 2)
        between = sine * total
    return (1 + between) / 2
