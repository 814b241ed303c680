"""Evaluation of tasks made of samples: accuracy in every cell of a grid of lengths and depths."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.evaluation.intervals import share
from zoo.train.evaluation.options import EvalOptions, Log
from zoo.train.evaluation.results import EvalResult, cost
from zoo.train.evaluation.streaming import SampleHits, StreamReader, progress_bar, sample_hits
from zoo.train.plotting.charts import Number, short
from zoo.train.runs.resources import Peak
from zoo.train.tasks.base import Dataset, Subset, Task

DEFAULT_LENGTHS = ["1x", "4x", "16x", "64x"]
DEFAULT_DEPTHS = [0.0, 25.0, 50.0, 75.0, 100.0]  # per cent
DEFAULT_PROMPTS = 50  # samples per cell
MIN_PROMPTS = 16  # per cell, where `tokens` limits them


def evaluate_samples(
    model: SequenceModule, task: Task, options: EvalOptions, length: int | None, log: Log
) -> Iterator[EvalResult]:
    """Yields a result per cell; `length` is the task's configured one, of which 4x is a multiple."""
    cells = list(grid(task, options, length))
    for index, point in enumerate(cells, 1):
        cell_task = task.at(**task_axes(point))
        split = cell_task.split(options.split)
        dataset = Subset(split, sample_count(split, options, bool(point), cell_task.name))
        tokens, samples = int(dataset.lengths.sum()), len(dataset.lengths)
        peak = Peak(model.device)
        with progress_bar(tokens) as advance:
            reader = StreamReader(model, options.batch_size, options.seq_len, advance)
            hits = sample_hits(reader, dataset)
        cost_fields = cost(tokens, hits.seconds, peak)
        groups = group_shares(cell_task, split, hits)
        exact = share(int((hits.correct == hits.num_targets).sum()), samples)
        cell = ", ".join(f"{name} {short(value)}" for name, value in point.items()) or cell_task.name
        log(f"[{index}/{len(cells)}] {cell}: {exact['hits']} of {exact['of']}, {hits.seconds:.1f} s")
        yield {
            "axes": point,
            "samples": samples,
            "exact": exact,
            "targets": share(int(hits.correct.sum()), int(hits.num_targets.sum())),
            "groups": {name: members for name, members in groups.items() if name not in point},
            **mean_scores(cell_task, split, hits),
            "reference": {name: float(value) for name, value in cell_task.baselines(dataset).items()},
            "tokens": tokens,
            **cost_fields,
        }


# -- cells


def grid(task: Task, options: EvalOptions, length: int | None) -> Iterator[dict[str, Number]]:
    """The point of every cell, by axis; an axis left out has its default points if the task accepts them."""
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


def sample_count(split: Dataset, options: EvalOptions, has_axes: bool, task: str) -> int:
    """Samples per cell."""
    available = len(split.lengths)
    if options.prompts is not None and options.prompts > available:
        raise UserError(
            f"evaluate: prompts: expected at most the {available:,} samples of {task}'s {options.split} "
            f"split, found {options.prompts:,}"
        )
    count = min(options.prompts or (DEFAULT_PROMPTS if has_axes else available), available)
    if options.tokens is None:
        return count
    fitting = int(np.searchsorted(np.cumsum(split.lengths), options.tokens, side="right"))
    return min(count, max(MIN_PROMPTS, fitting))


# -- groups and scores


def group_shares(task: Task, split: Dataset, hits: SampleHits) -> dict[str, list[dict[str, Any]]]:
    """Shares of every group of samples, by the names and labels of `Task.groups`."""
    totals: dict[str, dict[Any, list[int]]] = {}
    counts = zip(hits.num_targets.tolist(), hits.correct.tolist(), strict=True)
    for document, (num_targets, correct) in enumerate(counts):
        for name, value in task.groups(split, document).items():
            total = totals.setdefault(name, {}).setdefault(value, [0, 0, 0, 0])
            for i, count in enumerate((int(correct == num_targets), 1, correct, num_targets)):
                total[i] += count
    return {
        name: [
            {"value": value, "exact": share(*total[:2]), "targets": share(*total[2:])}
            for value, total in sorted(members.items(), key=lambda item: natural_order(item[0]))
        ]
        for name, members in totals.items()
    }


def mean_scores(task: Task, split: Dataset, hits: SampleHits) -> dict[str, dict[str, float]]:
    """Means over samples of the task's further scores, under the key "scores"; empty if it has none."""
    scores = [task.scores(split, document, mask) for document, mask in enumerate(hits.masks)]
    means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return {"scores": means} if means else {}


def natural_order(value: Any) -> tuple[int, Any, str]:
    """Sort key: numbers by size, ranges by their lower bound, words alphabetically."""
    head = str(value).partition("-")[0]
    return (0, float(head), str(value)) if head.replace(".", "", 1).isdigit() else (1, 0.0, str(value))
