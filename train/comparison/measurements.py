"""What runs read of their task's test split, and which of it all runs of a comparison have read alike: the
same drawn text, or at a length as many samples of the same cells.
"""

import json
import math
from collections.abc import Collection
from typing import NamedTuple

from zoo.train.comparison.comparable import describe_values
from zoo.train.comparison.groups import FinishedRun
from zoo.train.evaluation.results import EvalEntry, EvalResult
from zoo.train.runs.folder import flatten
from zoo.train.runs.precision import full_name

Length = int | float | None


class Measurement(NamedTuple):
    """A reading of the test split."""

    length: Length
    """Of samples; None of text, and of samples that have none."""
    cells: str
    """The axes without memory, and of samples how many each cell has, as JSON."""
    amount: float
    """Samples, or bytes drawn of a text: infinite where all of it was read."""

    def __str__(self) -> str:
        return "all" if math.isinf(self.amount) else f"{self.amount:,.0f}"


def test_entry(run: FinishedRun) -> EvalEntry | None:
    """The evaluation of the run at its end on the test split of the task that it was trained on: in the
    precision of its training, of the same version of the task, and of the same texts."""
    settings = {key: value for key, value in run.config.items() if key.startswith("task.")}
    end = run.metrics.get("steps_done", run.config["steps"])
    precision = full_name(str(run.config.get("trainer.precision", "32-true")))
    version = run.metrics.get("task_version", 1)
    entries = [
        entry
        for entry in run.evaluations
        if entry.get("task") == run.config["names.task"]
        and entry.get("split") == "test"
        and entry.get("checkpoint", "last") == "last"
        and entry.get("step", end) == end  # not of a run that was resumed since
        and entry.get("precision", precision) == precision
        and entry.get("version", version) == version
        and not entry.get("changed_data")
        and all(
            settings.get(key, value) == value for key, value in flatten(entry["settings"], "task").items()
        )
    ]
    return entries[0] if entries else None


def measurements(run: FinishedRun) -> dict[Measurement, list[EvalResult]]:
    """The results of every reading of the test split; of samples with depths beside none those with none."""
    entry = test_entry(run)
    if entry is None:
        return {}
    if entry.get("unit") == "bits per byte":
        return text_measurements(entry["results"])
    by_length: dict[Length, list[EvalResult]] = {}
    for result in entry["results"]:
        by_length.setdefault(result["axes"].get("length"), []).append(result)
    measured = {}
    for length, results in by_length.items():
        least = min(len(result["axes"]) for result in results)
        cells = [result for result in results if len(result["axes"]) == least]
        counts = [int(result["samples"]) for result in cells]
        axes = [[result["axes"], count] for result, count in zip(cells, counts, strict=True)]
        measured[Measurement(length, json.dumps(axes, sort_keys=True), sum(counts))] = cells
    return measured


def text_measurements(results: list[EvalResult]) -> dict[Measurement, list[EvalResult]]:
    """By the text that was drawn: it read with the memory kept, and with the memory reset."""
    by_text: dict[Measurement, list[EvalResult]] = {}
    for result in results:
        if result["axes"].get("memory") in ("kept", "reset"):
            drawn = {key: value for key, value in result["axes"].items() if key != "memory"}
            measurement = Measurement(
                None, json.dumps(drawn, sort_keys=True), min(drawn.values(), default=math.inf)
            )
            by_text.setdefault(measurement, []).append(result)
    return {
        text: of_text
        for text, of_text in by_text.items()
        if any(result["axes"]["memory"] == "kept" for result in of_text)
    }


def shared_measurements(runs: list[FinishedRun]) -> set[Measurement]:
    """Those that all runs have, of text the largest alone."""
    shared = set.intersection(*(set(measurements(run)) for run in runs))
    if any(is_text(run) for run in runs):
        return {max(shared, key=lambda text: text.amount)} if shared else set()
    return shared


def is_text(run: FinishedRun) -> bool:
    return (test_entry(run) or {}).get("unit") == "bits per byte"


def describe_unshared(runs: list[FinishedRun], shared: Collection[Measurement]) -> list[str]:
    """A line for the text, or for every length of samples, that runs didn't read alike; [] where a run has no
    evaluation."""
    by_run = [measurements(run) for run in runs]
    if not all(by_run) or (shared and is_text(runs[0])):
        return []
    lines = []
    for length in sorted({m.length for of_run in by_run for m in of_run}, key=lambda n: n or 0):
        at_length = [[m for m in of_run if m.length == length] for of_run in by_run]
        if not any(m.length == length for m in shared):
            name = f"test samples at length {length:,}" if length is not None else "test samples"
            name = "bytes of test text" if is_text(runs[0]) else name
            values = [" and ".join(map(str, of_run)) or "none" for of_run in at_length]
            lines.append(describe_values(name, runs, values) or f"{name}: in different cells")
    return lines
