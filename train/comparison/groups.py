"""Finished runs, grouped so that the runs of a group differ only in their seed; each group is a row of a
comparison."""

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
from zoo.errors import UserError, printable
from zoo.train.evaluation import results
from zoo.train.evaluation.intervals import Estimate, estimate
from zoo.train.evaluation.results import EvalEntry
from zoo.train.runs import protocol
from zoo.train.runs.construct import parameters
from zoo.train.runs.folder import (
    NOT_SET,
    differences,
    flatten,
    neutral_settings,
    read_config,
    read_json,
)
from zoo.train.tasks.base import Task, score_names

REQUIRED_METRICS = ("val/loss", "parameters", "tokens_seen")
SCORE_METRICS = {
    "val/bits_per_byte": "bits per byte",
    "val/exact": "exact match",
    "val/accuracy": "accuracy per target",
}
"""Metrics that are scores, of which a run needs at least one, with names that suit any task."""
CURVE_KEYS = ("step", "tokens_seen", "val/loss")
CONSTRUCTED_SECTIONS = ("model", "task")
"""Sections of a config whose keys are arguments of the class that `_target_` names."""
OF_ITS_BASE = ("model.base", "base.run", "base.weights", "base.commit")
"""Settings of a run that started from another one, in which its seeds may differ."""
FOLLOWS = ("model.position.trained",)
"""Settings that no label needs: the trained length is that of the base."""
ABSENT_COUNTS = ("callbacks.", "optim.")
"""Beginnings of settings whose absence counts as a difference: a run without them didn't use them."""
REQUIRED_SETTINGS = ("names.model", "names.task", "names.size", "seed", "steps", "val_every")


class FinishedRun(NamedTuple):
    """What a comparison reads of a finished run; zoo.train.api.runs.Run, with a model, is the public one."""

    folder: Path
    config: dict[str, Any]
    """config.yaml, flattened: {"optim.lr": 0.001, …}."""
    metrics: dict[str, Any]
    """metrics.json."""
    evaluations: list[EvalEntry]
    """Entries of evaluation.json by the run's own model."""
    protocol: dict[str, Any]
    """protocol.json of a run of `zoo sweep protocol=1`, {} of any other."""
    readings: list[EvalEntry]
    """The other entries: of the weights read as another architecture or with other settings."""

    @property
    def name(self) -> str:
        return str(self.folder)

    @property
    def score_names(self) -> dict[str, str]:
        """Names of its scores by metric, the task's main metric first.

        Earlier versions stored none; then they are those of the task's class, and none if that can't be
        imported.
        """
        stored: dict[str, str] | None = self.metrics.get("score_names")
        if stored is not None:
            return stored
        task = task_class(self.config)
        return {} if task is None else score_names(task)


class RunGroup(NamedTuple):
    """Runs that differ only in their seed, in the order of their seeds."""

    label: str
    runs: list[FinishedRun]

    def by_seed(self, metric: Callable[[FinishedRun], float | None]) -> dict[int, float]:
        values = {int(run.config["seed"]): metric(run) for run in self.runs}
        return {seed: float(value) for seed, value in sorted(values.items()) if value is not None}

    def estimate(self, metric: Callable[[FinishedRun], float | None]) -> Estimate | None:
        return estimate(list(self.by_seed(metric).values()))

    @property
    def seeds(self) -> str:
        return ", ".join(str(run.config["seed"]) for run in self.runs)


# -- reading


def read_run(folder: Path) -> FinishedRun:
    """Raises UserError if a file of the run is damaged or lacks what a comparison needs."""
    config, metrics = read_config(folder), read_json(folder / "metrics.json")
    if missing := [key for key in REQUIRED_SETTINGS if key not in config]:
        raise UserError(
            f"{folder / 'config.yaml'} is not the config of a run: expected {', '.join(missing)} in it"
        )
    if missing := missing_metrics(metrics):
        raise UserError(
            f"{folder / 'metrics.json'} is not the result of a run: expected {', '.join(missing)} in it"
        )
    file = folder / results.FILE
    entries = results.read(file)["evaluations"] if file.exists() else []
    if task := task_class(config):
        for entry in entries:
            if entry.get("task") == config["names.task"]:
                entry.setdefault("target", task.target_noun)  # which earlier versions didn't store
    evaluations = [entry for entry in entries if entry.get("read_by") is None]
    readings = [entry for entry in entries if entry.get("read_by") is not None]
    return FinishedRun(folder, config, metrics, evaluations, protocol.read(folder), readings)


def read_diverged(folder: Path) -> FinishedRun:
    """A run that helped to choose a rate and diverged; it has no metrics."""
    return FinishedRun(folder, read_config(folder), {}, [], protocol.read(folder), [])


def missing_metrics(metrics: Any) -> list[str]:
    """Metrics that a comparison needs and metrics.json lacks; a curve may be missing, but not incomplete."""
    if not isinstance(metrics, dict):
        metrics = {}
    missing = [key for key in REQUIRED_METRICS if not isinstance(metrics.get(key), int | float)]
    if not any(isinstance(metrics.get(score), int | float) for score in SCORE_METRICS):
        missing.append(" or ".join(SCORE_METRICS))
    curve = metrics.get("curve", [])
    if not isinstance(curve, list) or not all(
        isinstance(point, dict) and point.keys() >= {*CURVE_KEYS} for point in curve
    ):
        missing.append(f"{', '.join(CURVE_KEYS)} of every point of its curve")
    return missing


# -- groups


def group_runs(runs: list[FinishedRun]) -> list[RunGroup]:
    """Groups with distinct labels, sorted by them.  Raises UserError if a seed occurs twice in a group.

    A setting of model or task that a config lacks has its constructor's default; any other that it lacks is
    newer than the run and counts as equal.  Runs of several seeds may have started from several bases.
    """
    members: list[list[FinishedRun]] = []
    for run in runs:
        for group in members:
            if not any(differing_settings(member, run) for member in group):
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
                    f"compare: {label} seed {a.config['seed']} occurs twice, in {a.folder} and {b.folder}: "
                    "pass only one of them"
                )
    return sorted(groups, key=lambda group: group.label)


def group_labels(runs: list[FinishedRun]) -> list[str]:
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
            settings = distinguishing_settings(run, peers, include_derived)
            labels[i] = printable(" ".join([labels[i], *settings]))  # fonts have no other characters
    return labels


def distinguishing_settings(run: FinishedRun, peers: list[FinishedRun], include_derived: bool) -> list[str]:
    """The run's settings that differ among its peers, as "memory_tokens=8", without missing ones and null."""
    values = {key: pair[0] for peer in peers for key, pair in differing_settings(run, peer).items()}
    values = {
        key: value for key, value in values.items() if value not in (NOT_SET, None) and key not in FOLLOWS
    }
    derived: tuple[str, ...] = ()
    if "names.task" in values:
        derived = ("task.", "task_", "data.", "model.")
    elif "names.size" in values:
        derived = ("size.", "model.", "optim.", "data.")
    # the setting that model.free names is solved from the parameter budget (runs/budget.py)
    free_width = f"model.{run.config.get('model.free')}"
    keys = [key for key in values if include_derived or not (key == free_width or key.startswith(derived))]
    counts = Counter(map(short_key, keys))
    names = [short_key(key) if counts[short_key(key)] == 1 else key for key in keys]
    return [f"{name}={to_yaml(values[key])}" for name, key in zip(names, keys, strict=True)]


def short_key(key: str) -> str:
    return key.rpartition(".")[2]


# -- settings


def differing_settings(run: FinishedRun, peer: FinishedRun) -> dict[str, tuple[Any, Any]]:
    """Settings, other than the seed, in which two runs differ, as {key: (run's value, peer's value)}."""
    ignored: tuple[str, ...] = (*neutral_settings(run.config, peer.config), "seed", "model.free")
    have_base = all(member.config.get("model.base") is not None for member in (run, peer))
    if have_base and run.config["seed"] != peer.config["seed"]:
        ignored = (*ignored, *OF_ITS_BASE)
    pairs = differences(settings_with_defaults(run), settings_with_defaults(peer), without=ignored)
    return {
        key: pair
        for key, pair in pairs.items()
        if NOT_SET not in pair or key.startswith(ABSENT_COUNTS) or is_constructor_argument(key, run, peer)
    }


def is_constructor_argument(key: str, *runs: FinishedRun) -> bool:
    """True if the setting is an argument of a run's constructor, or if a constructor can't be imported."""
    section, _, rest = key.partition(".")
    if section not in CONSTRUCTED_SECTIONS:
        return False
    signatures = [constructor_defaults(run.config.get(f"{section}._target_")) for run in runs]
    return any(defaults is None or rest.partition(".")[0] in defaults for defaults in signatures)


def settings_with_defaults(run: FinishedRun) -> dict[str, Any]:
    """A run's settings, with constructors' defaults for those it lacks, the task's version and, for code
    outside the zoo, the fingerprints of model and task."""
    configured = {".".join(key.split(".")[:2]) for key in run.config}
    settings: dict[str, Any] = {}
    for section in CONSTRUCTED_SECTIONS:
        for name, value in (constructor_defaults(run.config.get(f"{section}._target_")) or {}).items():
            if f"{section}.{name}" not in configured and value is not inspect.Parameter.empty:
                settings |= flatten(list(value) if isinstance(value, tuple) else value, f"{section}.{name}")
    for fact in ("task_version", "task_code", "model_code"):
        if value := run.metrics.get(fact):
            settings[fact] = value
    settings |= run.config
    if isinstance(kind := settings.get("model.position"), str):  # a name stands for its kind
        del settings["model.position"]
        settings["model.position.kind"] = kind
    return settings


def task_class(config: dict[str, Any]) -> type[Task] | None:
    """The class of a run's task; None where it is missing or not trusted to be imported."""
    task = trusted_class(config.get("task._target_"))
    return task if isinstance(task, type) and issubclass(task, Task) else None


@functools.cache
def trusted_class(target: Any) -> Any:
    """What a dotted path names; None where it is missing or not trusted to be imported."""
    if not isinstance(target, str) or not trust.is_trusted(target):
        return None
    try:
        module, _, name = target.rpartition(".")
        return getattr(importlib.import_module(module), name)
    except Exception:  # a module written for another version may raise anything
        return None


@functools.cache
def constructor_defaults(target: Any) -> dict[str, Any] | None:
    """Defaults of a class's arguments by name; None where it is missing or not trusted to be imported."""
    try:
        arguments = parameters(trusted_class(target))
    except Exception:  # None, and what can't be called
        return None
    # model.base=<run_dir>, a trained run to start from, is a setting of every model and no argument
    return {"base": None} | {name: argument.default for name, argument in arguments.items()}


def to_yaml(value: Any) -> str:
    if value is None:
        return "null"
    return json.dumps(value) if isinstance(value, (bool, list)) else str(value)
