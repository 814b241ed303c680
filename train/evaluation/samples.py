"""Evaluation of tasks made of samples: exact match and accuracy per target, by length and depth."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.train.evaluation.intervals import proportion
from zoo.train.evaluation.options import EvalOptions, PrintLine
from zoo.train.evaluation.results import EvalResult, speed_and_memory
from zoo.train.evaluation.streaming import SamplePredictions, StreamReader, predict_samples, progress_bar
from zoo.train.plotting.charts import Number, format_number
from zoo.train.runs.resources import PeakMemory
from zoo.train.tasks.base import Dataset, Subset, Task, references

DEFAULT_LENGTHS = ["1x", "4x", "16x", "64x"]
DEFAULT_DEPTHS = [0.0, 25.0, 50.0, 75.0, 100.0]  # per cent
DEFAULT_SAMPLES_PER_CELL = 50
MIN_SAMPLES_PER_CELL = 16  # where `tokens` limits them


def evaluate_samples(
    reader: StreamReader, task: Task, options: EvalOptions, length: int | None, print_line: PrintLine
) -> Iterator[EvalResult]:
    """Yields a result per cell; `length` is the task's configured length: "4x" means four times it."""
    cells = list(grid(task, options, length))
    for index, point in enumerate(cells, 1):
        cell_task = task.at(**task_axes(point))
        all_samples = cell_task.split(options.split)
        dataset = Subset(all_samples, samples_per_cell(all_samples, options, bool(point), cell_task.name))
        tokens, samples = int(dataset.lengths.sum()), len(dataset.lengths)
        peak = PeakMemory(reader.model.device)
        with progress_bar(tokens) as advance:
            predictions = predict_samples(reader._replace(on_progress=advance), dataset)
        speed_and_memory_fields = speed_and_memory(tokens, predictions.seconds, peak)
        num_targets, num_hits = predictions.num_targets, predictions.num_hits
        exact_match = proportion(int((num_hits == num_targets).sum()), samples)
        target_accuracy = proportion(int(num_hits.sum()), int(num_targets.sum()))
        by_label = shares_by_label(cell_task, all_samples, predictions)
        cell = ", ".join(f"{name} {format_number(value)}" for name, value in point.items()) or cell_task.name
        scores = f"{exact_match['hits']} of {samples}"
        if target_accuracy["of"] != samples:
            scores = f"exact match {scores}, per {task.target_noun} {target_accuracy['share']:.1%}"
        print_line(f"[{index}/{len(cells)}] {cell}: {scores}, {predictions.seconds:.1f} s")
        yield {  # under the keys of evaluation.json
            "axes": point,
            "samples": samples,
            "exact": exact_match,
            "targets": target_accuracy,
            "groups": {name: labels for name, labels in by_label.items() if name not in point},
            **mean_scores(cell_task, all_samples, predictions),
            **references(cell_task, dataset),
            "tokens": tokens,
            **speed_and_memory_fields,
        }


# -- cells


def grid(task: Task, options: EvalOptions, length: int | None) -> Iterator[dict[str, Number]]:
    """One {axis: value} per cell; an axis not given in the options gets default values if the task accepts
    them."""
    lengths, depths = options.lengths, options.depths
    if lengths is None:
        defaults = DEFAULT_LENGTHS if length is not None else []
        lengths = [word for word in defaults if accepts(task, "length", parse_length(word, length, task))]
    if depths is None:
        depths = DEFAULT_DEPTHS if accepts(task, "depth", DEFAULT_DEPTHS[0]) else []
    points: dict[str, list[Number]] = {}  # by axis
    if lengths:
        points["length"] = list(dict.fromkeys(parse_length(word, length, task) for word in lengths))
    if depths:
        points["depth"] = list(dict.fromkeys(depths))
    for values in itertools.product(*points.values()):
        yield dict(zip(points, values, strict=True))


def parse_length(word: str, length: int | None, task: Task) -> int:
    """Tokens, from a number of tokens or a multiple of the task's configured length."""
    if not word.endswith("x"):
        return int(word)
    if length is None:
        raise UserError(f"evaluate: lengths: task {task.name} has no length for {word} to be a multiple of")
    return round(float(word[:-1]) * length)


def accepts(task: Task, axis: str, value: Number) -> bool:
    """True if the task has this axis and can take this value on it."""
    try:
        task.at(**task_axes({axis: value}))
    except UserError:
        return False
    return True


def task_axes(point: dict[str, Number]) -> dict[str, float]:
    """A point in the task's units: a depth is a share, not per cent."""
    return {axis: value / 100 if axis == "depth" else float(value) for axis, value in point.items()}


def samples_per_cell(dataset: Dataset, options: EvalOptions, has_axes: bool, task: str) -> int:
    """How many of the dataset's samples a cell reads."""
    available = len(dataset.lengths)
    if options.prompts is not None and options.prompts > available:
        raise UserError(
            f"evaluate: prompts: expected at most the {available:,} samples of {task}'s {options.split} "
            f"split, found {options.prompts:,}"
        )
    count = min(options.prompts or (DEFAULT_SAMPLES_PER_CELL if has_axes else available), available)
    if options.tokens is None:
        return count
    fitting = int(np.searchsorted(np.cumsum(dataset.lengths), options.tokens, side="right"))
    return min(count, max(MIN_SAMPLES_PER_CELL, fitting))


# -- labels and scores


def shares_by_label(
    task: Task, dataset: Dataset, predictions: SamplePredictions
) -> dict[str, list[dict[str, Any]]]:
    """Both shares of the samples with each label, by the label names of `Task.groups`."""
    totals: dict[str, dict[Any, list[int]]] = {}
    counts = zip(predictions.num_targets.tolist(), predictions.num_hits.tolist(), strict=True)
    for document, (num_targets, num_hits) in enumerate(counts):
        for name, label in task.groups(dataset, document).items():
            total = totals.setdefault(name, {}).setdefault(label, [0, 0, 0, 0])
            for i, count in enumerate((int(num_hits == num_targets), 1, num_hits, num_targets)):
                total[i] += count
    return {
        name: [
            {"value": label, "exact": proportion(*total[:2]), "targets": proportion(*total[2:])}
            for label, total in sorted(by_label.items(), key=lambda item: natural_order(item[0]))
        ]
        for name, by_label in totals.items()
    }


def mean_scores(task: Task, dataset: Dataset, predictions: SamplePredictions) -> dict[str, dict[str, float]]:
    """Means over samples of the task's further scores, under the key "scores"; empty if it has none."""
    scores = [task.scores(dataset, document, hits) for document, hits in enumerate(predictions.hits)]
    means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return {"scores": means} if means else {}


def natural_order(value: Any) -> tuple[int, Any, str]:
    """Sort key: numbers by size, ranges by their lower bound, words alphabetically."""
    head = str(value).partition("-")[0]
    return (0, float(head), str(value)) if head.replace(".", "", 1).isdigit() else (1, 0.0, str(value))
