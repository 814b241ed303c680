"""A comparison of finished runs, before it is written in any format."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.errors import UserError
from zoo.train.comparison.comparable import check_comparable
from zoo.train.comparison.groups import SCORE_METRICS, FinishedRun, RunGroup, group_runs, read_run
from zoo.train.runs.folder import folders

DEFAULT_BASELINE = "transformer"


class Comparison(NamedTuple):
    groups: list[RunGroup]
    score: str
    """Its tag: "val/bits_per_byte", "val/exact" or "val/accuracy"."""
    baseline: RunGroup | None
    target_loss: float
    mismatches: list[str]
    """Descriptions of differences that `mix` allowed."""
    command: str

    @property
    def runs(self) -> list[FinishedRun]:
        return [run for group in self.groups for run in group.runs]

    @property
    def is_share(self) -> bool:
        """A share of samples or targets, from 0 to 1; otherwise bits per byte."""
        return self.score != "val/bits_per_byte"

    @property
    def score_names(self) -> dict[str, str]:
        """Names of the scores that all runs have, by tag: the one that they are compared by, and of samples
        with several targets also accuracy per target."""
        names = {self.score: common_name(self.runs, self.score)}
        if self.score == "val/exact":
            names["val/accuracy"] = common_name(self.runs, "val/accuracy")
        return names

    def references(self, tag: str) -> dict[str, float]:
        """Scores of predictors that learn nothing, by name, under one of the scores; {} where runs of several
        tasks or data have different ones."""
        key = "reference_exact" if tag == "val/exact" else "reference"
        references: dict[str, float] = {}
        for run in [] if self.mismatches else self.runs:
            references |= run.metrics.get(key, {})
        return references

    @property
    def unit(self) -> str:
        return self.score_names[self.score]

    @property
    def title(self) -> str:
        tasks, sizes = (
            ", ".join(sorted({str(group.runs[0].config[f"names.{kind}"]) for group in self.groups}))
            for kind in ("task", "size")
        )
        return f"{len(self.groups)} models on {tasks}, size {sizes}"


def compare(
    paths: Sequence[Path],
    *,
    baseline: str | None = None,
    loss: float | None = None,
    mix: Sequence[str] = (),
    command: str = "",
) -> Comparison:
    """The finished runs below some folders, compared.

    `baseline` is the label of a group, `loss` the held-out loss to which steps are counted, `mix` the kinds
    of settings in which runs may differ, `command` the command line for the report.
    Raises UserError if there are no runs, or if some aren't comparable.
    """
    finished, unfinished = folders(paths)
    if unfinished:
        print(f"left out, not finished: {', '.join(map(str, unfinished))}", file=sys.stderr)
    if not finished:
        raise UserError(f"compare: no finished run below {', '.join(map(str, paths))}")
    runs = [read_run(folder) for folder in finished]
    mismatches = check_comparable(runs, list(mix))
    groups = group_runs(runs)
    score = common_score(runs)
    by_label = {group.label: group for group in groups}
    if baseline is not None and baseline not in by_label:
        raise UserError(f"compare: baseline: expected one of {', '.join(by_label)}, found {baseline}")
    target_loss = default_loss(runs) if loss is None else loss
    return Comparison(
        groups, score, by_label.get(baseline or DEFAULT_BASELINE), target_loss, mismatches, command
    )


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


def default_loss(runs: list[FinishedRun]) -> float:
    """The highest final loss of all runs, rounded up, so that every run has reached it by its end."""
    return math.ceil(max(run.metrics["val/loss"] for run in runs) * 1000) / 1000
