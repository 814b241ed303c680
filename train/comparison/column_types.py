"""Kinds of columns: what a cell shows, what rows are sorted by, and what the CSV has of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zoo.train.comparison import solved, statistics
from zoo.train.comparison.groups import FinishedRun, RunGroup
from zoo.train.comparison.statistics import ShareDifference
from zoo.train.evaluation.intervals import Estimate, wilson

EMPTY_CELL = "-"
Format = Callable[[float], str]
Better = Literal["higher", "lower"] | None
"""None of a quantity that is neither good nor bad."""


@dataclass(frozen=True)
class Column(ABC):
    key: str
    title: str
    better: Better = field(default=None, kw_only=True)

    @abstractmethod
    def text(self, group: RunGroup) -> str:
        """The cell of a row."""

    @abstractmethod
    def value(self, group: RunGroup) -> float | str | None:
        """What rows are sorted by; None is last."""

    @abstractmethod
    def fields(self, group: RunGroup) -> dict[str, Any]:
        """Plain values by the names of the CSV's columns; None is an empty cell."""

    def best(self, groups: Sequence[RunGroup]) -> set[str]:
        """Labels of the rows with the best value; none where all values are the same."""
        values = {
            group.label: value for group in groups if isinstance(value := self.value(group), int | float)
        }
        if self.better is None or len(set(values.values())) < 2:
            return set()
        best = (max if self.better == "higher" else min)(values.values())
        return {label for label, value in values.items() if value == best}


@dataclass(frozen=True)
class NumberColumn(Column):
    """One quantity of each row: mean ± half the width of its interval over seeds."""

    estimate: Callable[[RunGroup], Estimate | None]
    format: Format
    has_interval: bool = False
    mark: Callable[[RunGroup], str] = lambda group: ""
    """What follows the number in a cell."""

    def text(self, group: RunGroup) -> str:
        """With a count of the runs where not all have a value."""
        estimate = self.estimate(group)
        if estimate is None:
            return EMPTY_CELL
        cell = self.format(estimate.mean)
        if self.has_interval and estimate.half_width is not None:
            cell += f" ± {self.format(estimate.half_width).lstrip('+')}"
        if estimate.runs < len(group.runs):
            cell += f" ({estimate.runs} of {len(group.runs)})"
        return cell + self.mark(group)

    def value(self, group: RunGroup) -> float | None:
        estimate = self.estimate(group)
        return None if estimate is None else estimate.mean

    def fields(self, group: RunGroup) -> dict[str, Any]:
        values = self.estimate(group) or (None, None, 0)
        return dict(zip((self.key, f"{self.key}_half_width", f"{self.key}_runs"), values, strict=True))


@dataclass(frozen=True)
class MedianColumn(Column):
    """The median over seeds and no interval, where runs fall into two kinds and a mean is a number that none
    had; the CSV has every run."""

    metric: Callable[[FinishedRun], float | None]
    format: Format

    def text(self, group: RunGroup) -> str:
        median = self.value(group)
        return EMPTY_CELL if median is None else self.format(median)

    def value(self, group: RunGroup) -> float | None:
        return statistics.censored_median([*group.by_seed(self.metric).values()])

    def fields(self, group: RunGroup) -> dict[str, Any]:
        values = group.by_seed(self.metric).values()
        return {self.key: self.value(group), f"{self.key}_by_seed": " ".join(map(str, values))}


@dataclass(frozen=True)
class ShareDifferenceColumn(Column):
    """A difference of two proportions, whose interval isn't symmetric."""

    difference: Callable[[RunGroup], ShareDifference | None]
    format: Format
    mark: Callable[[RunGroup], str]

    def text(self, group: RunGroup) -> str:
        difference = self.difference(group)
        if difference is None:
            return EMPTY_CELL
        mean, low, high = map(self.format, (difference.mean, *difference.bounds))
        return f"{mean} ({low} to {high}){self.mark(group)}"

    def value(self, group: RunGroup) -> float | None:
        difference = self.difference(group)
        return None if difference is None else difference.mean

    def fields(self, group: RunGroup) -> dict[str, Any]:
        mean, low, high, _ = self.difference(group) or (None, None, None, None)
        return {self.key: mean, f"{self.key}_low": low, f"{self.key}_high": high}


@dataclass(frozen=True)
class SolvedColumn(Column):
    """How many runs solved their task, with Wilson's interval of the share."""

    def text(self, group: RunGroup) -> str:
        return solved.describe_count(group)

    def value(self, group: RunGroup) -> float:
        hits, runs = solved.count(group)
        return hits / runs

    def fields(self, group: RunGroup) -> dict[str, Any]:
        hits, runs = solved.count(group)
        low, high = wilson(hits, runs)
        return {
            self.key: hits,
            f"{self.key}_of": runs,
            f"{self.key}_low": low,
            f"{self.key}_high": high,
            "collapsed": solved.collapsed(group),
        }


@dataclass(frozen=True)
class StepsColumn(Column):
    """The median of the steps that runs needed; those that never got there count as later than any.

    It is "> 400" where half of the runs that were measured never got there, and where one that didn't had
    ended before the median of all: after 400 steps at the earliest.
    """

    steps: Callable[[FinishedRun], float | None]
    is_measured: Callable[[FinishedRun], bool] = lambda run: True

    def text(self, group: RunGroup) -> str:
        if not self.measured(group):
            return EMPTY_CELL
        median = self.value(group)
        return f"> {self.first_end(group):,}" if median is None else f"{median:,.0f}"

    def measured(self, group: RunGroup) -> list[FinishedRun]:
        return [run for run in group.runs if self.is_measured(run)]

    def first_end(self, group: RunGroup) -> int | None:
        """When the first run ended that never got there; None where all did."""
        return min((solved.end(run) for run in self.measured(group) if self.steps(run) is None), default=None)

    def value(self, group: RunGroup) -> float | None:
        median = statistics.censored_median([self.steps(run) for run in self.measured(group)])
        first_end = self.first_end(group)
        is_known = median is not None and (first_end is None or median <= first_end)
        return median if is_known else None

    def fields(self, group: RunGroup) -> dict[str, Any]:
        reached = [self.steps(run) is not None for run in self.measured(group)]
        return {
            self.key: self.value(group),
            f"{self.key}_above": self.first_end(group) if self.value(group) is None else None,
            f"{self.key}_runs": sum(reached),
        }


@dataclass(frozen=True)
class TextColumn(Column):
    describe: Callable[[RunGroup], str]

    def text(self, group: RunGroup) -> str:
        return self.describe(group) or EMPTY_CELL

    def value(self, group: RunGroup) -> str | None:
        return self.describe(group) or None

    def fields(self, group: RunGroup) -> dict[str, Any]:
        return {self.key: self.describe(group)}
