"""95 % intervals: Wilson's of a proportion, Student's of a mean over seeds.

mean ± t(0.975, n - 1) s / sqrt(n),    s^2 = sum (x - mean)^2 / (n - 1)
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy import special


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
    return Estimate(mean, float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * math.sqrt(variance / n), n)
