"""Statistics of finished runs: differences between models, corrections for many of them, aggregates of tasks.

Welch 1947; Newcombe 1998; Holm 1979; the two-way layout model + seed without interaction (Scheffé 1959,
chapter 4).
Interquartile mean, optimality gap and probability of improvement: Agarwal et al. 2021, arXiv:2108.13264.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from zoo.train.evaluation.intervals import LEVEL, wilson

SEED_EFFECT_LEVEL = 0.05
"""Models have a seed's effect in common where the F test of the two-way layout is below this."""
ROUNDING = 1e-12
"""Of scores in float64: relative residuals below this are no spread."""
Scores = NDArray[np.float64]


class Difference(NamedTuple):
    mean: float
    half_width: float | None
    """Of the 95 % interval; None where means differ and no runs of a row do: their spread is unknown."""
    p: float | None
    """Of the two-sided test that the difference is 0; None as the interval is."""
    error: float = 0.0
    """The standard error of the mean."""
    dof: float = math.inf
    """Degrees of freedom of the error."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


class ShareDifference(NamedTuple):
    """Of two proportions, whose interval isn't symmetric."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high


class TwoWay(NamedTuple):
    """score = model + seed + residual, for models that all have the same seeds."""

    residual_sd: float
    dof: int
    """(models - 1) (seeds - 1)."""
    seeds: int
    seed_p: float
    """Of the F test that seeds have no effect."""

    @property
    def applies(self) -> bool:
        return self.seed_p < SEED_EFFECT_LEVEL


def welch(x: Sequence[float], y: Sequence[float]) -> Difference | None:
    """The mean of x minus that of y, whose variances may differ; None for fewer than two values of either."""
    if min(len(x), len(y)) < 2:
        return None
    mean = float(np.mean(x) - np.mean(y))
    if len({*x}) == len({*y}) == 1:
        return _without_spread(x[0] - y[0])
    variances = [float(np.var(values, ddof=1)) / len(values) for values in (x, y)]
    total = sum(variances)
    weights = (variance**2 / (len(values) - 1) for variance, values in zip(variances, (x, y), strict=True))
    return _difference(mean, math.sqrt(total), total**2 / sum(weights))


def two_way(scores: Sequence[Mapping[int, float]]) -> TwoWay | None:
    """The layout of every model's scores by seed; None unless two or more models have the same two or more
    seeds."""
    if len(scores) < 2 or len(scores[0]) < 2 or any(row.keys() != scores[0].keys() for row in scores):
        return None
    table = np.array([[row[seed] for seed in scores[0]] for row in scores])
    models, seeds = table.shape
    seed_means, mean = table.mean(0), table.mean()
    residuals = table - table.mean(1, keepdims=True) - seed_means + mean
    residuals[abs(residuals) < ROUNDING * abs(table).max()] = 0.0
    dof = (models - 1) * (seeds - 1)
    variance = float((residuals**2).sum()) / dof
    between = models * float(((seed_means - mean) ** 2).sum()) / (seeds - 1)
    p = float(special.fdtrc(seeds - 1, dof, between / variance)) if variance else float(not between)
    return TwoWay(math.sqrt(variance), dof, seeds, p)


def two_way_difference(x: Sequence[float], y: Sequence[float], layout: TwoWay) -> Difference:
    """The mean of x minus that of y, with the residual that all models of the layout share."""
    mean = float(np.mean(x) - np.mean(y))
    error = layout.residual_sd * math.sqrt(2 / layout.seeds)
    return _difference(mean, error, layout.dof) if error else _without_spread(mean)


def with_document_error(difference: Difference, error: float, documents: int) -> Difference:
    """The difference whose error is of seeds and of documents together: all seeds read the same documents, so
    that more seeds don't make their error smaller.  Degrees of freedom: Satterthwaite 1946."""
    variances = (difference.error**2, difference.dof), (error**2, documents - 1)
    total = sum(variance for variance, _ in variances)
    if not total:
        return difference
    return _difference(
        difference.mean, math.sqrt(total), total**2 / sum(variance**2 / dof for variance, dof in variances)
    )


def share_difference(x: tuple[int, int], y: tuple[int, int]) -> ShareDifference:
    """The proportion x[0] / x[1] less y[0] / y[1], with Newcombe's interval (1998, method 10), which follows
    from Wilson's of either, and the p value of Fisher's exact test."""
    from scipy import stats  # half a second, for the tables that need it

    (p, (low, high)), (q, (q_low, q_high)) = ((k / n, wilson(k, n)) for k, n in (x, y))
    test = stats.fisher_exact([[x[0], x[1] - x[0]], [y[0], y[1] - y[0]]])
    return ShareDifference(
        p - q,
        p - q - math.hypot(p - low, q_high - q),
        p - q + math.hypot(high - p, q - q_low),
        float(test[1]),
    )


def _without_spread(mean: float) -> Difference:
    """Of rows in which no run differs from another: no test tells their means apart."""
    return Difference(mean, None, None) if mean else Difference(0.0, 0.0, 1.0)


def _difference(mean: float, error: float, dof: int | float) -> Difference:
    half_width = float(special.stdtrit(dof, (1 + LEVEL) / 2)) * error
    return Difference(mean, half_width, 2 * float(special.stdtr(dof, -abs(mean) / error)), error, dof)


def censored_median(values: Sequence[float | None]) -> float | None:
    """The median of times, of which None is later than any that was observed; None if it is one of those, or
    lies between one and a time."""
    ranked = sorted(math.inf if value is None else value for value in values)
    middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
    return sum(middle) / len(middle) if middle and math.isfinite(middle[-1]) else None


def holm(p: Sequence[float]) -> list[float]:
    """P values adjusted for their number: below a level they are false positives with at most that
    probability, all together."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


# -- over tasks: scores (runs, tasks), normalised so that 0 is trivial and 1 perfect


def interquartile_mean(scores: Scores) -> float:
    """The mean of the middle half of all runs of all tasks."""
    values = np.sort(scores, axis=None)
    cut = int(len(values) / 4)
    return float(values[cut : len(values) - cut].mean())


def iqm_interval(scores: Scores, resamples: int = 2_000) -> tuple[float, float]:
    """Bounds of the 95 % interval of the interquartile mean: the bootstrap over runs, each task's apart."""
    rng = np.random.default_rng(0)
    runs, tasks = scores.shape
    draws = rng.integers(runs, size=(resamples, runs, tasks))
    means = [interquartile_mean(np.take_along_axis(scores, draw, 0)) for draw in draws]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def optimality_gap(scores: Scores) -> float:
    """How far scores fall short of 1 on average; what lies above 1 doesn't make up for it."""
    return float(1 - np.minimum(scores, 1).mean())


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """The probability that a run of x is better than a run of y on a random task; ties count half."""
    pairs = x[:, None] - y[None]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


# -- over documents


def document_error(nats: Sequence[float], targets: Sequence[int]) -> tuple[float, float]:
    """The loss per target of documents, and its standard error, with documents as what was sampled: the ratio
    estimator.  Of the nats by which two models differ it is the error of their difference.  nan for a single
    document."""
    total, n = sum(targets), len(nats)
    ratio = math.fsum(nats) / total
    if n < 2:
        return ratio, math.nan
    squares = math.fsum((x - ratio * count) ** 2 for x, count in zip(nats, targets, strict=True))
    return ratio, math.sqrt(n / (n - 1) * squares) / total
