"""A comparison of finished runs on one task, before it is written in any format."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from zoo.errors import UserError, counted
from zoo.train.comparison import measurements, reach, rules, scores
from zoo.train.comparison.comparable import check_comparable
from zoo.train.comparison.groups import SCORE_METRICS, FinishedRun, RunGroup, group_runs
from zoo.train.runs import protocol
from zoo.train.runs.protocol import Compare

DEFAULT_BASELINE = "transformer"


class Comparison(NamedTuple):
    groups: list[RunGroup]
    score: str
    """Its tag: "val/bits_per_byte", "val/exact" or "val/accuracy"; under a protocol those of
    zoo.train.comparison.scores."""
    baseline: RunGroup | None
    target_loss: float
    mismatches: list[str]
    """Descriptions of differences that `mix` allowed."""
    command: str
    protocol: int | None = None
    rules: Compare = Compare()
    reach: int | None = None
    """Targets with evidence at least so far back are those beyond the reach of attention."""
    rate_runs: Sequence[FinishedRun] = ()
    """Runs that helped to choose learning rates."""
    long_runs: Sequence[FinishedRun] = ()
    """Runs with more steps, of rows that hadn't solved their task."""
    unshared: Sequence[str] = ()
    """Descriptions of what the runs didn't read alike of their test split, which no score counts."""
    baseline_elsewhere: str = ""
    """A baseline that other tasks of the report have and this one lacks."""

    @property
    def runs(self) -> list[FinishedRun]:
        return [run for group in self.groups for run in group.runs]

    @property
    def is_share(self) -> bool:
        """A share of samples or targets, from 0 to 1; otherwise bits per byte."""
        return not self.score.endswith("bits_per_byte")

    @property
    def is_solved_or_not(self) -> bool:
        """Runs are counted as solved: they stopped by a rule that says so, and the task is learned in a
        jump."""
        return self.rules.jump and all("solved_at" in run.metrics for run in self.runs)

    @property
    def score_names(self) -> dict[str, str]:
        """Names of the scores that all runs have, by tag: the one that they are compared by, and of samples
        with several targets also accuracy per target."""
        if self.split == "test":
            return {tag: self.test_name(tag) for tag in scores.shared_tags(self.runs)}
        names = {self.score: common_name(self.runs, self.score)}
        if self.score == "val/exact":
            names["val/accuracy"] = common_name(self.runs, "val/accuracy")
        return names

    def test_name(self, tag: str) -> str:
        per_target = common_name(self.runs, "val/accuracy")
        names = {
            scores.BITS: "bits per byte",
            scores.EXACT: common_name(self.runs, "val/exact"),
            scores.ACCURACY: per_target,
            scores.BEYOND: f"{per_target} beyond {self.reach}",
            scores.GAIN: f"share of the possible gain beyond {self.reach}",
        }
        return names[tag]

    @property
    def split(self) -> str:
        """Of the scores."""
        return "test" if self.score.startswith("test/") else "validation"

    @property
    def split_name(self) -> str:
        """The split as figures and tables name it beside a score."""
        return "test" if self.split == "test" else "held-out"

    def references(self, tag: str) -> dict[str, float]:
        """Scores of predictors that learn nothing, by name, under one of the scores; without those in which
        runs differ, and {} of several tasks."""
        key = "reference_exact" if tag == "val/exact" else "reference"
        references, differing = dict[str, float](), set[str]()
        if len({run.config["names.task"] for run in self.runs}) > 1:
            return {}
        for run in self.runs:
            stored = run.metrics.get("test_references", {}) if self.split == "test" else run.metrics
            of_run = stored.get(tag if self.split == "test" else key, {})
            differing |= {name for name, value in of_run.items() if references.get(name, value) != value}
            references |= of_run
        return {name: value for name, value in references.items() if name not in differing}

    @property
    def unit(self) -> str:
        return self.score_names[self.score]

    @property
    def subject(self) -> str:
        """The task and its size."""
        tasks, sizes = (
            ", ".join(sorted({str(group.runs[0].config[f"names.{kind}"]) for group in self.groups}))
            for kind in ("task", "size")
        )
        return f"{tasks}, size {sizes}"

    @property
    def title(self) -> str:
        how = "no protocol" if self.protocol is None else f"protocol {self.protocol}, {self.split} split"
        return f"{counted(len(self.groups), 'model')} on {self.subject} ({how})"


def compare_runs(
    runs: list[FinishedRun],
    *,
    baseline: str | None = None,
    loss: float | None = None,
    mix: Sequence[str] = (),
    command: str = "",
) -> Comparison:
    """Runs without a protocol, compared; see `report`."""
    mismatches = check_comparable(runs, list(mix))
    groups = group_runs(runs)
    return Comparison(
        groups,
        common_score(runs),
        find_baseline(groups, baseline),
        target_loss(runs, loss),
        mismatches,
        command,
    )


def compare_by_protocol(
    runs: list[FinishedRun],
    *,
    rate_runs: Sequence[FinishedRun] = (),
    long_runs: Sequence[FinishedRun] = (),
    baseline: str | None = None,
    baseline_elsewhere: str = "",
    loss: float | None = None,
    mix: Sequence[str] = (),
    command: str = "",
) -> Comparison:
    """Runs of a protocol on one task: by their scores on the test split if all have been evaluated on it, on
    the same text or as many samples.  `baseline_elsewhere` is one that only other tasks have."""
    mismatches = check_comparable(runs, list(mix))
    table_reach = reach.table_reach(group_runs(runs))
    shared = measurements.shared_measurements(runs)
    evaluated = [scores.with_test_scores(run, table_reach, shared) for run in runs]
    tags = scores.shared_tags(evaluated)
    groups = group_runs(evaluated if tags else runs)
    comparison = Comparison(
        groups,
        tags[0] if tags else common_score(runs),
        None if baseline_elsewhere else find_baseline(groups, baseline),
        target_loss(runs, loss),
        mismatches,
        command,
        protocol.VERSION,
        rules.of_task(runs[0]),
        table_reach,
        rate_runs,
        long_runs,
        measurements.describe_unshared(runs, shared),
        baseline_elsewhere,
    )
    return comparison._replace(groups=ranked(comparison))


def ranked(comparison: Comparison) -> list[RunGroup]:
    """Memories by their score, the best first; then attention that ends, then what sees a whole sample."""
    kinds = ("memory", "attention", "whole sample")

    def key(group: RunGroup) -> tuple[int, float]:
        run = group.runs[0]
        score = group.estimate(lambda run: run.metrics.get(comparison.score))
        mean = math.inf if score is None else -score.mean if comparison.is_share else score.mean
        return kinds.index(reach.kind(reach.reach(run), run.config.get("task.length"))), mean

    return sorted(comparison.groups, key=key)


def find_baseline(groups: list[RunGroup], label: str | None) -> RunGroup | None:
    by_label = {group.label: group for group in groups}
    if label is not None and label not in by_label:
        raise UserError(f"compare: baseline: expected one of {', '.join(by_label)}, found {label}")
    return by_label.get(label or DEFAULT_BASELINE)


def common_score(runs: list[FinishedRun]) -> str:
    """Bits per byte if any run has them: runs on text have the accuracy of bytes too.  Otherwise exact match
    if all runs have it, or else accuracy per target."""
    with_bits = [run for run in runs if "val/bits_per_byte" in run.metrics]
    if with_bits and len(with_bits) < len(runs):
        without = next(run for run in runs if run not in with_bits)
        tag = "val/exact" if "val/exact" in without.metrics else "val/accuracy"
        raise UserError(
            f"compare: {with_bits[0].name} is scored in bits per byte, {without.name} in "
            f"{common_name([without], tag)}; pass runs of one kind only"
        )
    shared = [tag for tag in SCORE_METRICS if all(tag in run.metrics for run in runs)]
    if not shared:
        raise UserError(f"compare: expected runs with one of {', '.join(SCORE_METRICS)}, found none in all")
    return shared[0]


def common_name(runs: list[FinishedRun], tag: str) -> str:
    """The name of a score, which runs of several tasks may call differently."""
    names = {run.score_names[tag] for run in runs if tag in run.score_names}
    return names.pop() if len(names) == 1 else SCORE_METRICS[tag]


def target_loss(runs: list[FinishedRun], loss: float | None) -> float:
    """The loss that was asked for; or the one fixed for the task at this size; or else the highest final loss
    of all runs, rounded up, so that every run has reached it by its end."""
    fixed = rules.target_loss(runs) if loss is None else loss
    if fixed is not None:
        return fixed
    return math.ceil(max(run.metrics["val/loss"] for run in runs) * 1000) / 1000
