"""Differences of a comparison's rows from its baseline."""

from functools import cached_property

from zoo.errors import counted
from zoo.train.comparison import scores, solved, statistics
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.groups import RunGroup
from zoo.train.comparison.statistics import Difference, ShareDifference, TwoWay
from zoo.train.evaluation.intervals import Estimate

LEVEL = 0.05
"""Of all marks of a table together: the probability of any where no row differs from the baseline."""
CANT_TELL = "can't tell"


class Differences:
    """Score minus the baseline's: Welch's intervals, or those of the two-way layout model + seed where the
    runs show that seeds have an effect in common; with the error of the documents, of text read document by
    document.

    Shares have no common residual (near 0 and 1 they hardly vary): for them it is always Welch's.  Of a task
    that is solved or not it is the difference of the shares of runs that solved it, with Newcombe's interval.
    """

    def __init__(self, comparison: Comparison, baseline: RunGroup) -> None:
        self.comparison, self.baseline = comparison, baseline
        self.scores = {
            group.label: group.by_seed(lambda run: run.metrics[comparison.score])
            for group in comparison.groups
        }
        layout = None if comparison.is_share else statistics.two_way(list(self.scores.values()))
        self.layout: TwoWay | None = layout if layout is not None and layout.applies else None

    def difference(self, group: RunGroup) -> Difference | ShareDifference | None:
        """None for the baseline itself, and where either has a single run."""
        if group is self.baseline:
            return None
        if self.comparison.is_solved_or_not:
            counts = solved.count(group), solved.count(self.baseline)
            return statistics.share_difference(*counts) if min(n for _, n in counts) > 1 else None
        x, y = (list(self.scores[row].values()) for row in (group.label, self.baseline.label))
        if self.layout is not None:
            difference: Difference | None = statistics.two_way_difference(x, y, self.layout)
        else:
            difference = statistics.welch(x, y)
        documents = self.document_error(group)
        if difference is None or documents is None:
            return difference
        return statistics.with_document_error(difference, *documents)

    def document_error(self, group: RunGroup) -> tuple[float, int] | None:
        """The standard error that the documents give the difference in bits per byte, and their number; None
        where the runs don't have the same documents."""
        if self.comparison.score != scores.BITS:
            return None
        means = [scores.mean_bits(row) for row in (group, self.baseline)]
        if means[0] is None or means[1] is None or means[0].sizes != means[1].sizes or len(means[0].bits) < 2:
            return None
        gaps = [x - y for x, y in zip(means[0].bits, means[1].bits, strict=True)]
        return statistics.document_error(gaps, means[0].sizes)[1], len(gaps)

    def estimate(self, group: RunGroup) -> Estimate | None:
        """The difference of the means, with its interval if there is one."""
        if group is self.baseline:
            return None
        difference = self.difference(group)
        x, y = (list(self.scores[row].values()) for row in (group.label, self.baseline.label))
        if isinstance(difference, ShareDifference):
            return Estimate(difference.mean, None, len(x))
        half_width = None if difference is None else difference.half_width
        return Estimate(sum(x) / len(x) - sum(y) / len(y), half_width, len(x))

    @cached_property
    def adjusted_p(self) -> dict[str, float]:
        """By row: the p value after Holm's correction for the number of rows that have one."""
        differences = {group.label: self.difference(group) for group in self.comparison.groups}
        p = {
            label: difference.p
            for label, difference in differences.items()
            if difference is not None and difference.p is not None
        }
        return dict(zip(p, statistics.holm(list(p.values())), strict=True))

    def mark(self, group: RunGroup) -> str:
        return " *" if self.adjusted_p.get(group.label, 1.0) < LEVEL else ""

    def verdict(self, group: RunGroup) -> str:
        """CANT_TELL where the interval has 0 in it and a difference that counts as well; "" otherwise.

        A single run has no interval, nor have rows of equal runs, and they say nothing.
        """
        if group is self.baseline:
            return ""
        difference = self.difference(group)
        if difference is None or difference.bounds is None:
            return CANT_TELL
        low, high = difference.bounds
        counts = self.comparison.rules.effect or 0.0
        return CANT_TELL if low < 0 < high and max(-low, high) > counts else ""

    @property
    def note(self) -> str:
        name = self.baseline.label
        if self.comparison.is_solved_or_not:
            intervals = "differences of the shares of runs that solved it, with Newcombe's intervals"
            test = ", Fisher's exact tests"
        elif self.layout is None:
            intervals, test = "Welch's intervals, runs of different rows being independent", ""
        else:
            intervals, test = (
                "intervals of the two-way layout model + seed, since seeds have an effect in common "
                f"(F test, p = {self.layout.seed_p:.2g})",
                "",
            )
        others = [group for group in self.comparison.groups if group is not self.baseline]
        documents = [error for group in others if (error := self.document_error(group)) is not None]
        if documents:
            intervals += f", and with the error of {documents[0][1]:,} documents, which all runs read"
        tests = len(self.adjusted_p)
        holm = f"; * differs from it at 5 %, after Holm's correction for {counted(tests, 'row')}{test}"
        marks = holm if tests else ""
        return f"Against {name}: {intervals}{marks}."
