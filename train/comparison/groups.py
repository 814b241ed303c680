"""Finished runs, in groups that differ in their seed alone: the rows of a comparison."""

import functools
import importlib
import inspect
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from zoo import trust
from zoo.errors import UserError
from zoo.train.evaluation import results
from zoo.train.evaluation.intervals import Estimate, estimate
from zoo.train.evaluation.results import EvalEntry
from zoo.train.runs.construct import parameters
from zoo.train.runs.folder import NEUTRAL_SETTINGS, NOT_SET, differences, flatten, read_config, read_json

METRICS = ("val/loss", "parameters", "tokens_seen")
SCORES = ("val/bits_per_byte", "val/accuracy")
CURVE_KEYS = ("step", "tokens_seen", "val/loss")
BUILT_GROUPS = ("model", "task")
"""Parts of a config that are built by a class that it names."""
SETTINGS = ("names.model", "names.task", "names.size", "seed", "steps", "val_every")


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    config: dict[str, Any]
    """Of config.yaml, on one level: "optim.lr"."""
    metrics: dict[str, Any]
    entries: list[EvalEntry]
    """Of evaluation.json, by the run's architecture."""

    @property
    def name(self) -> str:
        return str(self.folder)


class RunGroup(NamedTuple):
    """Runs that differ in their seed alone, in the order of their seeds."""

    label: str
    runs: list[Run]

    def by_seed(self, metric: Callable[[Run], float | None]) -> dict[int, float]:
        values = {int(run.config["seed"]): metric(run) for run in self.runs}
        return {seed: float(value) for seed, value in sorted(values.items()) if value is not None}

    def estimate(self, metric: Callable[[Run], float | None]) -> Estimate | None:
        return estimate(list(self.by_seed(metric).values()))

    @property
    def seeds(self) -> str:
        return ", ".join(str(run.config["seed"]) for run in self.runs)


# -- reading


def read_run(folder: Path) -> Run:
    """Raises UserError where a file of the run is damaged or lacks what a comparison needs."""
    config, metrics = read_config(folder), read_json(folder / "metrics.json")
    if missing := [key for key in SETTINGS if key not in config]:
        raise UserError(f"{folder / 'config.yaml'} is no run's config: expected {', '.join(missing)} in it")
    if missing := missing_metrics(metrics):
        raise UserError(f"{folder / 'metrics.json'} is no run's result: expected {', '.join(missing)} in it")
    file = folder / results.FILE
    entries = results.read(file)["evaluations"] if file.exists() else []
    return Run(folder, config, metrics, [entry for entry in entries if entry.get("read_by") is None])


def missing_metrics(metrics: Any) -> list[str]:
    """Metrics that a comparison needs and metrics.json lacks; it may lack the curve, but no part of it."""
    if not isinstance(metrics, dict):
        metrics = {}
    missing = [key for key in METRICS if not isinstance(metrics.get(key), int | float)]
    if not any(isinstance(metrics.get(score), int | float) for score in SCORES):
        missing.append(" or ".join(SCORES))
    curve = metrics.get("curve", [])
    if not isinstance(curve, list) or not all(
        isinstance(point, dict) and point.keys() >= {*CURVE_KEYS} for point in curve
    ):
        missing.append(f"{', '.join(CURVE_KEYS)} of every point of its curve")
    return missing


# -- groups


def group_runs(runs: list[Run]) -> list[RunGroup]:
    """Groups with distinct labels, sorted by them; UserError where a seed occurs twice in a group.

    A setting of model or task that a config lacks has its constructor's default; any other that it lacks is
    newer than the run and counts as equal.
    """
    members: list[list[Run]] = []
    for run in runs:
        for group in members:
            if not differing_settings(group[0], run):
                group.append(run)
                break
        else:
            members.append([run])
    labels = group_labels([group[0] for group in members])
    assert len(set(labels)) == len(labels)
    groups = [
        RunGroup(label, sorted(group, key=lambda run: run.config["seed"]))
        for label, group in zip(labels, members, strict=True)
    ]
    for label, group_members in groups:
        for a, b in itertools.pairwise(group_members):
            if a.config["seed"] == b.config["seed"]:
                raise UserError(
                    f"compare: {label} seed {a.config['seed']} is there twice, "
                    f"{a.folder} and {b.folder}: name one"
                )
    return sorted(groups, key=lambda group: group.label)


def group_labels(runs: list[Run]) -> list[str]:
    """Labels of the groups that these runs stand for: the model's name and its distinguishing settings.

    Settings that follow from the size, the task or the budget are included only where two labels would
    otherwise be the same.
    """
    models = [str(run.config["names.model"]) for run in runs]
    labels = list(models)
    for include_derived in (False, True):
        keys = list(zip(models, labels, strict=True))
        for i, run in enumerate(runs):
            peers = [peer for peer, key in zip(runs, keys, strict=True) if key == keys[i]]
            labels[i] = " ".join([labels[i], *distinguishing_settings(run, peers, include_derived)])
    return labels


def distinguishing_settings(run: Run, peers: list[Run], include_derived: bool) -> list[str]:
    """The run's settings in which its peers differ, as "memory_tokens=8"."""
    values = {key: pair[0] for peer in peers for key, pair in differing_settings(run, peer).items()}
    derived: tuple[str, ...] = ()
    if "names.task" in values:
        derived = ("task.", "data.", "model.")
    elif "names.size" in values:
        derived = ("size.", "model.", "optim.", "data.")
    free_width = f"model.{run.config.get('model.free')}"
    keys = [key for key in values if include_derived or not (key == free_width or key.startswith(derived))]
    counts = Counter(map(short_key, keys))
    names = [short_key(key) if counts[short_key(key)] == 1 else key for key in keys]
    return [f"{name}={to_yaml(values[key])}" for name, key in zip(names, keys, strict=True)]


def short_key(key: str) -> str:
    return key.rpartition(".")[2]


# -- settings


def differing_settings(run: Run, peer: Run) -> dict[str, tuple[Any, Any]]:
    """Settings but the seed in which two runs differ, (run's, peer's) by key."""
    ignored = (*NEUTRAL_SETTINGS, "seed", "model.free")
    pairs = differences(full_settings(run), full_settings(peer), without=ignored)
    return {key: pair for key, pair in pairs.items() if NOT_SET not in pair or may_matter(key, run, peer)}


def may_matter(key: str, *runs: Run) -> bool:
    """True if a setting that a run lacks is an argument of the constructors, or one of these is unknown."""
    group, _, rest = key.partition(".")
    if group not in BUILT_GROUPS:
        return False
    signatures = [constructor_defaults(run.config.get(f"{group}._target_")) for run in runs]
    return any(defaults is None or rest.partition(".")[0] in defaults for defaults in signatures)


def full_settings(run: Run) -> dict[str, Any]:
    """A run's settings, with constructors' defaults for those it lacks and, for code outside the zoo, the
    model's fingerprint."""
    configured = {".".join(key.split(".")[:2]) for key in run.config}
    settings: dict[str, Any] = {}
    for group in BUILT_GROUPS:
        for name, value in (constructor_defaults(run.config.get(f"{group}._target_")) or {}).items():
            if f"{group}.{name}" not in configured and value is not inspect.Parameter.empty:
                settings |= flatten(list(value) if isinstance(value, tuple) else value, f"{group}.{name}")
    if code := run.metrics.get("model_code"):
        settings["model_code"] = code
    return settings | run.config


@functools.cache
def constructor_defaults(target: Any) -> dict[str, Any] | None:
    """Defaults of a class's arguments by name; None where it is missing or not trusted to be imported."""
    if not isinstance(target, str) or not trust.is_trusted(target):
        return None
    try:
        module, _, name = target.rpartition(".")
        arguments = parameters(getattr(importlib.import_module(module), name))
    except Exception:  # a module written for another version may raise anything
        return None
    return {"base": None} | {name: argument.default for name, argument in arguments.items()}


def to_yaml(value: Any) -> str:
    if value is None:
        return "null"
    return json.dumps(value) if isinstance(value, (bool, list)) else str(value)
