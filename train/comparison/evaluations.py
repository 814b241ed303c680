"""Evaluations of the runs of a comparison, averaged over seeds.

Of several seeds the mean with Student's interval, since all seeds read the same samples and differ by more
than a draw of samples does; of one seed its proportion with Wilson's interval.
"""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from zoo.train.comparison import statistics
from zoo.train.comparison.groups import RunGroup
from zoo.train.evaluation import results
from zoo.train.evaluation.intervals import estimate
from zoo.train.evaluation.results import EvalEntry, EvalResult
from zoo.train.plotting.charts import Buckets, Number, Proportions

IDENTITY = ("task", "version", "settings", "split", "checkpoint", "precision")
Seeds = list[list[EvalResult]]
"""Results of each run of a group."""


def matching_entries(groups: list[RunGroup]) -> list[dict[str, list[EvalEntry]]]:
    """Entries of every evaluation, by group label; of each run only that of its latest step."""
    by_identity: dict[str, dict[str, dict[Path, EvalEntry]]] = {}
    for group in groups:
        for run in group.runs:
            for entry in sorted(run.evaluations, key=lambda entry: entry.get("step", 0)):
                identity = json.dumps({key: entry.get(key) for key in IDENTITY}, sort_keys=True)
                by_label = by_identity.setdefault(identity, {})
                by_label.setdefault(group.label, {})[run.folder] = entry
    return [
        {label: list(by_folder.values()) for label, by_folder in by_label.items()}
        for by_label in by_identity.values()
    ]


def shares_by_length(groups: dict[str, Seeds], share: str = "exact") -> tuple[dict[str, Proportions], int]:
    """One of the shares (exact, targets) by length for each label, and the number of cells left out.

    Averages over different depths aren't comparable: at each length only those cells count that were measured
    by all runs evaluated at this length.
    """
    with_length = {
        label: [[result for result in run if "length" in result["axes"]] for run in seeds]
        for label, seeds in groups.items()
    }
    runs = [run for seeds in with_length.values() for run in seeds]
    shared = shared_cells(runs)
    every = {axes_key(result) for run in runs for result in run}
    shares = {
        label: proportions_by_length([[r for r in run if axes_key(r) in shared] for run in seeds], share)
        for label, seeds in with_length.items()
    }
    return {label: proportions for label, proportions in shares.items() if proportions}, len(every - shared)


def shared_cells(runs: Seeds) -> set[str]:
    """Cells measured by all runs that have any cell of the same length."""
    runs_by_cell = Counter(axes_key(result) for run in runs for result in run)
    runs_by_length = Counter(
        length for run in runs for length in {result["axes"]["length"] for result in run}
    )
    return {
        axes_key(result)
        for run in runs
        for result in run
        if runs_by_cell[axes_key(result)] == runs_by_length[result["axes"]["length"]]
    }


def proportions_by_length(seeds: Seeds, share: str) -> Proportions:
    proportions: dict[Number, list[dict[str, Any]]] = {}
    for run in seeds:
        for length, proportion in results.pooled(run, "length", share).items():
            proportions.setdefault(length, []).append(proportion)
    return {length: mean_proportion(by_seed) for length, by_seed in sorted(proportions.items())}


def grid_over_seeds(seeds: Seeds, share: str = "exact") -> list[EvalResult]:
    """One result for each length and depth, with the mean of one of the shares."""
    by_cell: dict[str, list[EvalResult]] = {}
    for result in itertools.chain(*seeds):
        if results.has_grid(result):
            by_cell.setdefault(axes_key(result), []).append(result)
    return [
        {**cell[0], share: mean_proportion([result[share] for result in cell])} for cell in by_cell.values()
    ]


def mean_proportion(proportions: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and Student's interval, within 0 and 1, and each seed's share; a single proportion stays as it
    is."""
    shares = [proportion["share"] for proportion in proportions]
    mean = estimate(shares)
    assert mean is not None
    if len(proportions) == 1:
        return proportions[0]
    half_width = mean.half_width or 0.0
    return {
        "share": mean.mean,
        "low": max(0.0, mean.mean - half_width),
        "high": min(1.0, mean.mean + half_width),
        "seeds": shares,
    }


def middle_of_seeds(proportions: Proportions) -> Proportions:
    """The median of the seeds in place of their mean, from the worst to the best of them as the band."""
    return {
        point: {
            "share": statistics.censored_median(seeds),
            "low": min(seeds),
            "high": max(seeds),
            "seeds": seeds,
        }
        if (seeds := proportion.get("seeds"))
        else proportion
        for point, proportion in proportions.items()
    }


def losses_by_mode(entries: dict[str, list[EvalEntry]]) -> dict[tuple[str, str], Buckets]:
    """Mean loss over seeds by position, for each label and mode of reading."""
    losses: dict[tuple[str, str], dict[tuple[int, int | None], list[float]]] = {}
    for label, runs in entries.items():
        for result in (result for entry in runs for result in entry["results"]):
            buckets = losses.setdefault((label, results.memory_mode(result["axes"])), {})
            for bucket, loss in results.losses(result).items():
                buckets.setdefault(bucket, []).append(loss)
    return {
        key: {bucket: sum(values) / len(values) for bucket, values in buckets.items()}
        for key, buckets in losses.items()
    }


def axes_key(result: EvalResult) -> str:
    return json.dumps(result["axes"], sort_keys=True)
