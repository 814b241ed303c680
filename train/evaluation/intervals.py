"""95 % intervals: Wilson's of a proportion, of clusters too, Student's of a mean over seeds.

mean ± t(0.975, n - 1) s / sqrt(n),    s^2 = sum (x - mean)^2 / (n - 1)
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy import special


def proportion(hits: int, trials: int, effective: float | None = None) -> dict[str, Any]:
    """The proportion hits / trials with the bounds of its 95 % interval, as evaluation.json stores it.

    `effective`: how many independent trials have as much to say, where these aren't; stored beside it.
    """
    low, high = wilson(hits, trials, effective)
    share = {"share": hits / trials, "low": low, "high": high, "hits": hits, "of": trials}
    return share if effective is None else share | {"effective": effective}


def clustered_proportion(
    hits: Int64[np.ndarray, " clusters"], trials: Int64[np.ndarray, " clusters"]
) -> dict[str, Any]:
    """The proportion of all hits, whose interval takes clusters of trials (samples with several targets) as
    the units that are independent.

        p = sum h / sum n,    e = h - p n,    se^2 = m / (m - 1) sum e^2 / (sum n)^2

    The interval is Wilson's of p (1 - p) / se^2 trials, at most all and at least one; of m, the number of
    clusters, where p is 0 or 1 or m is 1.
    """
    hits, trials = hits[trials > 0], trials[trials > 0]
    count, num_hits, num_trials = len(trials), int(hits.sum()), int(trials.sum())
    if num_trials == count:
        return proportion(num_hits, num_trials)
    p, effective = num_hits / num_trials, float(count)
    if count > 1 and 0 < p < 1:
        errors = hits - p * trials
        variance = count / (count - 1) * float(errors @ errors) / num_trials**2
        most = p * (1 - p) / variance if variance else math.inf
        effective = min(max(most, 1.0), float(num_trials))
    return proportion(num_hits, num_trials, effective)


def ratio_standard_error(
    numerators: Float64[np.ndarray, " units"], denominators: Int64[np.ndarray, " units"]
) -> float | None:
    """The standard error of R = sum N / sum A over units (documents: nats, and targets or bytes) drawn
    at random; None for a single one.

        e = N - R A,    se = sqrt(n / (n - 1) sum e^2) / sum A
    """
    count = len(numerators)
    if count < 2:
        return None
    total = float(denominators.sum())
    errors = numerators - numerators.sum() / total * denominators
    return math.sqrt(count / (count - 1) * float(errors @ errors)) / total


def wilson(hits: int, trials: int, effective: float | None = None, z: float = 1.96) -> tuple[float, float]:
    """Bounds of the 95 % interval of a proportion (Wilson 1927), of `effective` trials if given."""
    count = trials if effective is None else effective
    p, spread = hits / trials, z * z / count
    centre = (p + spread / 2) / (1 + spread)
    half_width = z * math.sqrt(p * (1 - p) / count + spread / (4 * count)) / (1 + spread)
    low = max(0.0, centre - half_width) if hits else 0.0
    high = min(1.0, centre + half_width) if hits < trials else 1.0
    return low, high


LEVEL = 0.95


class Estimate(NamedTuple):
    mean: float
    half_width: float | None
    """Of the 95 % interval; None for a single value and for equal ones, whose spread is unknown."""
    runs: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """None where there are no values."""
    n = len(values)
    if not n:
        return None
    mean = math.fsum(values) / n
    if len({*values}) == 1:
        return Estimate(mean, None, n)
    variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
    return Estimate(mean, float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * math.sqrt(variance / n), n)
