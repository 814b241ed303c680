"""Evaluation of tasks made of samples: exact match and accuracy per target, by length and depth."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.evaluation.evidence import beyond, by_distance, gather_targets, in_view
from zoo.train.evaluation.intervals import clustered_proportion, proportion
from zoo.train.evaluation.options import EvalOptions, PrintLine
from zoo.train.evaluation.results import IN_VIEW, EvalResult, speed_and_memory
from zoo.train.evaluation.streaming import SamplePredictions, StreamReader, predict_samples, progress_bar
from zoo.train.plotting.charts import Number, format_number
from zoo.train.runs.resources import PeakMemory
from zoo.train.tasks.base import Dataset, SampleTask, Subset, Task, references

DEFAULT_LENGTHS = ["1x", "4x", "16x", "64x"]
DEFAULT_DEPTHS = [0.0, 25.0, 50.0, 75.0, 100.0]  # per cent
DEFAULT_SAMPLES_PER_CELL = 50  # at least; without depths as many as fit into
POSITIONS_PER_CELL = 2**18
MAX_SAMPLES_PER_CELL = 2048
MIN_SAMPLES_PER_CELL = 16  # where `tokens` limits them


def evaluate_samples(
    reader: StreamReader, task: Task, options: EvalOptions, length: int | None, print_line: PrintLine
) -> Iterator[EvalResult]:
    """Yields a result per cell; `length` is the task's configured length: "4x" means four times it."""
    cells = list(grid(task, options, length))
    for index, point in enumerate(cells, 1):
        cell_task = task.at(**task_axes(point))
        all_samples = with_samples(cell_task, wanted_samples(options, point)).split(options.split)
        dataset = Subset(all_samples, samples_per_cell(all_samples, options, point, cell_task.name))
        tokens, samples = int(dataset.lengths.sum()), len(dataset.lengths)
        peak = PeakMemory(reader.model.device)
        with progress_bar(2 * tokens) as advance:
            watched = reader._replace(on_progress=advance)
            predictions = predict_samples(watched, dataset)
            speed_and_memory_fields = speed_and_memory(tokens, predictions.seconds, peak)
            without_memory = predict_samples(watched, dataset, reset_memory=True)
        kept = shares(dataset, predictions, reader.model)
        by_label = shares_by_label(cell_task, all_samples, predictions)
        cell = ", ".join(f"{name} {format_number(value)}" for name, value in point.items()) or cell_task.name
        print_line(
            f"[{index}/{len(cells)}] {cell}: {describe(kept, task.target_noun)}, {predictions.seconds:.1f} s"
        )
        yield {  # under the keys of evaluation.json
            "axes": point,
            "samples": samples,
            **kept,
            "reset": shares(dataset, without_memory, reader.model),
            "groups": {name: labels for name, labels in by_label.items() if name not in point},
            **mean_scores(cell_task, all_samples, predictions),
            **with_view(references(cell_task, dataset), dataset, predictions, reader.model.segment_len),
            "tokens": tokens,
            **speed_and_memory_fields,
        }


def describe(shares: EvalResult, target_noun: str) -> str:
    """The shares of a cell in one line."""
    exact, targets = shares["exact"], shares["targets"]
    line = f"{exact['hits']} of {exact['of']}"
    if targets["of"] != exact["of"]:
        line = f"exact match {line}, per {target_noun} {targets['share']:.1%}"
    if beyond_reach := shares.get("beyond"):
        line += f", beyond {beyond_reach['reach']:,} {beyond_reach['share']:.1%}"
    return line


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


def wanted_samples(options: EvalOptions, point: dict[str, Number]) -> int:
    """The most samples that a cell may read, if the task has as many; 0 for as many as it has."""
    if options.split == "train":
        return 0
    return options.prompts or (MAX_SAMPLES_PER_CELL if point and "depth" not in point else 0)


def with_samples(task: Task, count: int) -> Task:
    """The task with `count` held-out samples or more, if it can draw more without touching others."""
    draws_splits_separately = type(task).check_unseen is Task.check_unseen
    if isinstance(task, SampleTask) and draws_splits_separately and count > task.eval_samples:
        return replace(task, eval_samples=count)  # type: ignore[type-var]
    return task


def samples_per_cell(dataset: Dataset, options: EvalOptions, point: dict[str, Number], task: str) -> int:
    """How many of the dataset's samples a cell reads."""
    available = len(dataset.lengths)
    if options.prompts is not None and options.prompts > available:
        raise UserError(
            f"evaluate: prompts: expected at most the {available:,} samples of {task}'s {options.split} "
            f"split, found {options.prompts:,}"
        )
    ends = np.cumsum(dataset.lengths)
    if options.prompts or not point:
        count = options.prompts or available
    elif "depth" in point:
        count = DEFAULT_SAMPLES_PER_CELL
    else:
        cheap = int(np.searchsorted(ends, POSITIONS_PER_CELL, side="right"))
        count = min(max(DEFAULT_SAMPLES_PER_CELL, cheap), MAX_SAMPLES_PER_CELL)
    if options.tokens is not None:
        fitting = int(np.searchsorted(ends, options.tokens, side="right"))
        count = min(count, max(MIN_SAMPLES_PER_CELL, fitting))
    return min(count, available)


# -- labels and scores


def shares(dataset: Dataset, predictions: SamplePredictions, model: SequenceModule) -> EvalResult:
    """Exact match and accuracy per target; where evidence is known also sums by its distance, and accuracy
    beyond the model's reach, or beyond its segment if it has no limit."""
    num_hits, num_targets = predictions.num_hits, predictions.num_targets
    of_dataset: EvalResult = {
        "exact": proportion(int((num_hits == num_targets).sum()), len(num_hits)),
        "targets": clustered_proportion(num_hits, num_targets),
    }
    if targets := gather_targets(dataset, predictions):
        of_dataset["evidence"] = by_distance(targets)
        reach = model.reach if isinstance(model.reach, int) else model.segment_len
        if beyond_reach := beyond(targets, reach):
            of_dataset["beyond"] = beyond_reach
    return of_dataset


def with_view(
    baselines: dict[str, dict[str, float]], dataset: Dataset, predictions: SamplePredictions, segment_len: int
) -> dict[str, dict[str, float]]:
    """A task's baselines, and beside them the score of a perfect reader of a target's segment, if known."""
    if view := in_view(dataset, predictions.positions, segment_len):
        for key, score in (("reference", view.accuracy), ("reference_exact", view.exact)):
            if key in baselines:
                baselines[key][IN_VIEW] = score
    return baselines


def shares_by_label(
    task: Task, dataset: Dataset, predictions: SamplePredictions
) -> dict[str, list[dict[str, Any]]]:
    """Both shares of the samples with each label, by the label names of `Task.groups`."""
    documents: dict[str, dict[Any, list[int]]] = {}
    for document in range(len(predictions.hits)):
        for name, label in task.groups(dataset, document).items():
            documents.setdefault(name, {}).setdefault(label, []).append(document)
    is_exact = predictions.num_hits == predictions.num_targets
    return {
        name: [
            {
                "value": label,
                "exact": proportion(int(is_exact[members].sum()), len(members)),
                "targets": clustered_proportion(
                    predictions.num_hits[members], predictions.num_targets[members]
                ),
            }
            for label, members in sorted(by_label.items(), key=lambda item: natural_order(item[0]))
        ]
        for name, by_label in documents.items()
    }


def mean_scores(task: Task, dataset: Dataset, predictions: SamplePredictions) -> dict[str, dict[str, float]]:
    """Means over samples of the task's further scores, under the key "scores"; empty if it has none."""
    scores = [task.scores(dataset, document, hits) for document, hits in enumerate(predictions.hits)]
    means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return {"scores": means} if means else {}


def natural_order(value: Any) -> tuple[int, Any, str]:
    """Sort key: numbers by size, ranges by their lower bound, words alphabetically."""
    head = str(value).partition("-")[0]
    return (0, float(head), str(value)) if head.replace(".", "", 1).isdecimal() else (1, 0.0, str(value))
