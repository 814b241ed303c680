"""What the comparisons of several tasks say together: an aggregate of every model over all tasks.

Scores are normalised, so that 0 is the best predictor that learns nothing and 1 a perfect score; bits per
byte, of which nobody knows the perfect score, so that 0 is the order-0 model and 1 the best run of the table.
Then Agarwal et al. 2021, arXiv:2108.13264: the interquartile mean over all runs of all tasks, with the
interval of a bootstrap over runs, and the probability that a run is better than the baseline's on a random
task.
"""

from typing import NamedTuple

import numpy as np

from zoo.train.comparison import scores, statistics
from zoo.train.comparison.comparison import DEFAULT_BASELINE, Comparison
from zoo.train.comparison.groups import RunGroup
from zoo.train.comparison.statistics import Scores

YARDSTICK = "order-0"


class OverTasks(NamedTuple):
    """The aggregates of one model."""

    model: str
    seeds: list[int]
    """Those that it has on every task."""
    iqm: float
    low: float
    """Of the 95 % interval."""
    high: float
    optimality_gap: float
    improvement: float | None
    """The probability to improve on the baseline; None of the baseline itself, and without one."""


def over_tasks(comparisons: list[Comparison]) -> list[OverTasks]:
    """A row for every model with runs on all tasks, the best interquartile mean first."""
    tables = [normalised(comparison) for comparison in comparisons]
    models = [model for model in tables[0] if all(model in table for table in tables)]
    matrices: dict[str, tuple[list[int], Scores]] = {}
    for model in models:
        by_task = [table[model] for table in tables]
        seeds = [seed for seed in by_task[0] if all(seed in of_task for of_task in by_task)]
        if seeds:
            matrices[model] = seeds, np.array([[of_task[seed] for of_task in by_task] for seed in seeds])
    labels = [comparison.baseline.label for comparison in comparisons if comparison.baseline is not None]
    baseline = labels[0] if labels else DEFAULT_BASELINE
    rows = []
    for model, (seeds, matrix) in matrices.items():
        improvement = None
        if model != baseline and baseline in matrices:
            improvement = statistics.probability_of_improvement(matrix, matrices[baseline][1])
        iqm, gap = statistics.interquartile_mean(matrix), statistics.optimality_gap(matrix)
        rows.append(OverTasks(model, seeds, iqm, *statistics.iqm_interval(matrix), gap, improvement))
    return sorted(rows, key=lambda row: -row.iqm)


def normalised(comparison: Comparison) -> dict[str, dict[int, float]]:
    """Scores by row and seed, so that 0 is what is reached without learning and 1 is perfect."""
    trivial, perfect = 0.0, 1.0
    if not comparison.is_share:
        trivial = comparison.references(comparison.score).get(YARDSTICK, 8.0)
        perfect = min(run.metrics[comparison.score] for run in comparison.runs)
    elif comparison.score != scores.GAIN:
        references = comparison.references(comparison.score)
        trivial = max(
            (value for name, value in references.items() if name not in scores.KNOWING), default=0.0
        )
    return {
        group.label: {
            seed: (score - trivial) / (perfect - trivial)
            for seed, score in by_score(group, comparison.score).items()
        }
        for group in comparison.groups
    }


def by_score(group: RunGroup, score: str) -> dict[int, float]:
    return group.by_seed(lambda run: run.metrics.get(score))
