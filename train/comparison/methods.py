"""Runs whose weights were read at other contexts and by other position methods, as `zoo evaluate contexts=…
methods=…` stores them: of every run and method the scores by context.

A method is the difference between the settings that read and those that were trained with, without the
context; a run's own settings are "plain".  Samples count where the context holds them.
"""

import json
from typing import Any, NamedTuple

from zoo.train.comparison.evaluations import IDENTITY, Seeds, axes_key, shares_by_length
from zoo.train.comparison.groups import FinishedRun, RunGroup, settings_with_defaults, to_yaml
from zoo.train.evaluation import results
from zoo.train.evaluation.contexts import reads_at_context
from zoo.train.evaluation.intervals import estimate
from zoo.train.evaluation.results import EvalEntry, EvalResult
from zoo.train.plotting.charts import Buckets, Number, Proportions
from zoo.train.runs.folder import NOT_SET

PLAIN = "plain"
NAMED_BY_VALUE = ("scaling", "far")
"""Settings of model.position whose values have names of their own: yarn is scaling=yarn."""
DERIVED = ("kind", "trained")
"""Settings of model.position that a change of another one adds to a plain name."""
OF_TRAINING = ("draw", "longest")
"""Settings of model.position that act in training alone: no reading has them."""


class MethodScores(NamedTuple):
    """One evaluation by several methods."""

    entry: EvalEntry
    """Any of its entries, for the task, the split and the unit."""
    results: dict[str, Seeds]
    """By method, of several groups with the group's label: of every run a result for each context."""

    @property
    def is_text(self) -> bool:
        return str(self.entry["unit"]) == "bits per byte"

    @property
    def subject(self) -> str:
        return f"{self.entry['task']}, {self.entry['split']} split"


def method_scores(groups: list[RunGroup]) -> list[MethodScores]:
    """Every evaluation by methods, in the order of the first group that has it."""
    evaluations: dict[str, MethodScores] = {}
    for group in groups:
        prefix = f"{group.label}, " if len(groups) > 1 else ""
        for run in group.runs:
            for identity, entries in by_identity(run).items():
                scores = evaluations.setdefault(identity, MethodScores(entries[0], {}))
                for name, by_context in by_method(run, entries).items():
                    scores.results.setdefault(prefix + name, []).append(at_least_context(by_context))
    return [
        MethodScores(scores.entry, same_targets(scores.results) if scores.is_text else scores.results)
        for scores in evaluations.values()
        if scores.results
    ]


def same_targets(by_method: dict[str, Seeds]) -> dict[str, Seeds]:
    """Of a text read with several strides the results at each context in which the same last tokens count:
    those of the largest stride that all methods were read with there, or else of the smallest of any."""
    strides: dict[int, list[set[int]]] = {}
    for seeds in by_method.values():
        for context in {r["axes"]["context"] for run in seeds for r in run}:
            of_runs = [{r["axes"]["stride"] for r in run if r["axes"]["context"] == context} for run in seeds]
            strides.setdefault(context, []).extend(filter(None, of_runs))
    chosen = {}
    for context, of_runs in strides.items():
        shared = set.intersection(*of_runs)
        chosen[context] = max(shared) if shared else min(set.union(*of_runs))
    return {
        name: [[r for r in run if r["axes"]["stride"] == chosen[r["axes"]["context"]]] for run in seeds]
        for name, seeds in by_method.items()
    }


def by_identity(run: FinishedRun) -> dict[str, list[EvalEntry]]:
    """The run's entries of evaluations that other settings took part in, those of later steps last."""
    entries: dict[str, list[EvalEntry]] = {}
    for entry in sorted([*run.evaluations, *run.readings], key=lambda entry: entry.get("step", 0)):
        identity = json.dumps({key: entry.get(key) for key in IDENTITY}, sort_keys=True)
        entries.setdefault(identity, []).append(entry)
    return {key: of_key for key, of_key in entries.items() if any(entry.get("read_by") for entry in of_key)}


def by_method(run: FinishedRun, entries: list[EvalEntry]) -> dict[str, dict[int, list[EvalResult]]]:
    """The results of every method and context that were read at this context, those of the latest step."""
    trained = trained_context(run)
    methods: dict[str, dict[int, list[EvalResult]]] = {}
    if trained is None:
        return methods
    for entry in entries:
        context = int((entry.get("reading") or {}).get(context_key(run), trained))
        at_context = [r for r in entry["results"] if reads_at_context(r["axes"], context)]
        if at_context:
            methods.setdefault(method(entry, run), {})[context] = at_context
    return methods


def at_least_context(by_context: dict[int, list[EvalResult]]) -> list[EvalResult]:
    """A result at each point of the axes, read at the shortest of the contexts that it was read at."""
    by_axes: dict[str, EvalResult] = {}
    for _, of_context in sorted(by_context.items()):
        for result in of_context:
            by_axes.setdefault(axes_key(result), result)
    return list(by_axes.values())


def context_key(run: FinishedRun) -> str:
    return "window" if run.config.get("model.window") is not None else "segment_len"


def trained_context(run: FinishedRun) -> int | None:
    value = run.config.get(f"model.{context_key(run)}")
    return value if isinstance(value, int) else None


# -- names


def method(entry: EvalEntry, run: FinishedRun) -> str:
    """The settings that differ from the run's, without the context: "yarn", "grouped near=8"."""
    reading: dict[str, Any] = entry.get("reading") or {}
    read_by = entry.get("read_by")
    parts = [] if read_by in (None, run.config["names.model"]) else [str(read_by)]
    trained = settings_with_defaults(run)  # an option may be newer than the run
    if "position" in reading:
        parts += position_changes(as_mapping(reading["position"]), run)
    others = {
        key: value
        for key, value in reading.items()
        if key not in ("position", context_key(run)) and value != trained.get(f"model.{key}", NOT_SET)
    }
    return " ".join([*parts, *(f"{key}={to_yaml(value)}" for key, value in others.items())]) or PLAIN


def position_changes(position: dict[str, Any], run: FinishedRun) -> list[str]:
    prefix = "model.position"
    trained = as_mapping(run.config.get(prefix, {}))
    trained |= {
        key.removeprefix(f"{prefix}."): v for key, v in run.config.items() if key.startswith(f"{prefix}.")
    }
    trained = {key: v for key, v in trained.items() if key not in OF_TRAINING}
    position = {key: v for key, v in position.items() if key not in OF_TRAINING}
    changes = {key: v for key, v in position.items() if trained.get(key) != v and key not in DERIVED}
    if "factor" not in trained and "factor" in changes and changes["factor"] == trained_factor(trained, run):
        del changes["factor"]  # the one that the run was tuned with, now written down
    missing = [f"without {key}" for key in trained if key not in position and key not in DERIVED]
    return [named_setting(key, value) for key, value in changes.items()] + missing


def trained_factor(trained: dict[str, Any], run: FinishedRun) -> float | None:
    context = trained_context(run)
    return max(1.0, context / trained["trained"]) if context and trained.get("trained") else None


def as_mapping(position: Any) -> dict[str, Any]:
    return {"kind": position} if isinstance(position, str) else dict(position)


def named_setting(key: str, value: Any) -> str:
    if key in NAMED_BY_VALUE and value not in ("none", "exact"):
        return str(value)
    return key if value is True else f"{key}={to_yaml(value)}"


# -- numbers


def shares(scores: MethodScores, share: str) -> dict[str, Proportions]:
    """One of the shares by length for every method, over the depths that all have in common."""
    with_share = {
        name: [[result for result in run if share in result] for run in seeds]
        for name, seeds in scores.results.items()
    }
    return shares_by_length(with_share, share)[0]


def losses(scores: MethodScores) -> dict[str, Proportions]:
    """Nats per token by context for every method: the mean over seeds as "share", with its interval."""
    by_name: dict[str, dict[Number, list[float]]] = {}
    for name, seeds in scores.results.items():
        for result in (result for run in seeds for result in run):
            by_context = by_name.setdefault(name, {})
            by_context.setdefault(result["axes"]["context"], []).append(float(result["loss"]))
    return {
        name: {context: mean_loss(values) for context, values in sorted(by_context.items())}
        for name, by_context in by_name.items()
    }


def mean_loss(values: list[float]) -> dict[str, Any]:
    mean = estimate(values)
    assert mean is not None
    half = mean.half_width or 0.0
    return {"share": mean.mean, "low": mean.mean - half, "high": mean.mean + half}


def losses_by_position(scores: MethodScores) -> tuple[int, dict[str, Buckets]]:
    """The longest context that all methods were read at, and there the mean loss by position."""
    contexts = [{r["axes"]["context"] for run in seeds for r in run} for seeds in scores.results.values()]
    shared = set[int].intersection(*contexts)
    if not shared:
        return 0, {}
    buckets: dict[str, dict[tuple[int, int | None], list[float]]] = {}
    for name, seeds in scores.results.items():
        for result in (r for run in seeds for r in run if r["axes"]["context"] == max(shared)):
            for positions, loss in results.losses(result).items():
                buckets.setdefault(name, {}).setdefault(positions, []).append(loss)
    return max(shared), {
        name: {positions: sum(values) / len(values) for positions, values in of_method.items()}
        for name, of_method in buckets.items()
    }
