"""Differences of a comparison's rows from its baseline."""

from functools import cached_property

from zoo.train.comparison import statistics
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.groups import RunGroup
from zoo.train.comparison.statistics import Difference, TwoWay
from zoo.train.evaluation.intervals import Estimate

LEVEL = 0.05
"""Of all marks of a table together: the probability of any where no row differs from the baseline."""


class Differences:
    """Score minus the baseline's: Welch's intervals, or those of the two-way layout model + seed where the
    runs show that seeds have an effect in common.

    Shares have no common residual (near 0 and 1 they hardly vary): for them it is always Welch's.
    """

    def __init__(self, comparison: Comparison, baseline: RunGroup) -> None:
        self.baseline = baseline
        self.scores = {
            group.label: group.by_seed(lambda run: run.metrics[comparison.score])
            for group in comparison.groups
        }
        layout = None if comparison.is_share else statistics.two_way(list(self.scores.values()))
        self.layout: TwoWay | None = layout if layout is not None and layout.applies else None

    def difference(self, group: RunGroup) -> Difference | None:
        """None for the baseline itself, and where either has a single run."""
        return None if group is self.baseline else self._against_baseline(group.label)

    def _against_baseline(self, label: str) -> Difference | None:
        x, y = (list(self.scores[row].values()) for row in (label, self.baseline.label))
        if self.layout is not None:
            return statistics.two_way_difference(x, y, self.layout)
        return statistics.welch(x, y)

    def estimate(self, group: RunGroup) -> Estimate | None:
        """The difference of the means, with its interval if there is one."""
        if group is self.baseline:
            return None
        x, y = (list(self.scores[row].values()) for row in (group.label, self.baseline.label))
        difference = self.difference(group)
        half_width = None if difference is None else difference.half_width
        return Estimate(sum(x) / len(x) - sum(y) / len(y), half_width, len(x))

    @cached_property
    def adjusted_p(self) -> dict[str, float]:
        """By row: the p value after Holm's correction for the number of rows that have one."""
        rows = [label for label in self.scores if label != self.baseline.label]
        differences = {label: self._against_baseline(label) for label in rows}
        p = {label: difference.p for label, difference in differences.items() if difference is not None}
        return dict(zip(p, statistics.holm(list(p.values())), strict=True))

    def mark(self, group: RunGroup) -> str:
        return " *" if self.adjusted_p.get(group.label, 1.0) < LEVEL else ""

    @property
    def note(self) -> str:
        name = self.baseline.label
        if self.layout is None:
            intervals = "Welch's intervals, runs of different rows being independent"
        else:
            intervals = (
                "intervals of the two-way layout model + seed, since seeds have an effect in common "
                f"(F test, p = {self.layout.seed_p:.2g})"
            )
        tests = len(self.adjusted_p)
        marks = f"; * differs from it at 5 %, after Holm's correction for {tests} rows" if tests else ""
        return f"Against {name}: {intervals}{marks}."
