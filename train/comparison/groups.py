"""Which runs stand in one row, and which don't belong into one table.

A row holds the runs of a model that differ in their seed alone.  All rows of a table have the same task and
version, the same data, the same budget and the same tokens.
"""

import functools
import importlib
import inspect
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from zoo import plugins
from zoo.errors import UserError
from zoo.train.evaluation import results
from zoo.train.evaluation.intervals import Estimate, estimate
from zoo.train.runs.folder import NEUTRAL_SETTINGS, NOT_SET, differences, flatten, read_config, read_json

MEASURED = ("val/loss", "parameters", "tokens_seen")
POINT = ("step", "tokens_seen", "val/loss")
BUILT = ("model", "task")  # by a class that the config names
SETTINGS = ("names.model", "names.task", "names.size", "seed", "steps", "val_every")


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    config: dict[str, Any]
    """Of config.yaml, one level: "optim.lr"."""
    metrics: dict[str, Any]
    entries: list[dict[str, Any]]
    """Of evaluation.json."""

    @property
    def name(self) -> str:
        return str(self.folder)


class RunGroup(NamedTuple):
    """The runs of one model that differ in their seed alone."""

    label: str
    runs: list[Run]

    def by_seed(self, value: Callable[[Run], float | None]) -> dict[int, float]:
        said = {int(run.config["seed"]): value(run) for run in self.runs}
        return {seed: float(number) for seed, number in sorted(said.items()) if number is not None}

    def estimate(self, value: Callable[[Run], float | None]) -> Estimate | None:
        return estimate(list(self.by_seed(value).values()))


def read_run(folder: Path) -> Run:
    """UserError where a file of it is damaged or lacks what a comparison needs."""
    config, metrics = read_config(folder), read_json(folder / "metrics.json")
    if lacking := [key for key in SETTINGS if key not in config]:
        raise UserError(f"{folder / 'config.yaml'} is no run's config: expected {', '.join(lacking)} in it")
    if lacking := missing_metrics(metrics):
        raise UserError(f"{folder / 'metrics.json'} is no run's result: expected {', '.join(lacking)} in it")
    beside = folder / results.FILE
    every = results.read(beside)["evaluations"] if beside.exists() else []
    entries = [entry for entry in every if entry.get("read_by") is None]  # by the run's own architecture
    return Run(folder, config, metrics, entries)


def missing_metrics(metrics: Any) -> list[str]:
    """The numbers that a comparison needs and a metrics.json lacks; a curve may be missing, not its parts."""
    said = metrics if isinstance(metrics, dict) else {}
    lacking = [key for key in MEASURED if not isinstance(said.get(key), int | float)]
    if not any(isinstance(said.get(f"val/{score}"), int | float) for score in ("bits_per_byte", "accuracy")):
        lacking.append("val/bits_per_byte or val/accuracy")
    points = said.get("curve", [])
    if not isinstance(points, list) or not all(isinstance(p, dict) and p.keys() >= {*POINT} for p in points):
        lacking.append(f"{', '.join(POINT)} of every point of its curve")
    return lacking


# -- rows
def group_runs(runs: list[Run]) -> list[RunGroup]:
    """Runs that differ in nothing but their seed are one row; its label tells it from all others.

    What a run's config doesn't say of its model or task is what their constructors take for it; of anything
    else it counts as the same, as the zoo didn't have it yet.
    """
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if not differing_settings(group[0], run):
                group.append(run)
                break
        else:
            groups.append([run])
    names = group_labels([group[0] for group in groups])
    assert len(set(names)) == len(names)
    rows = [
        RunGroup(name, sorted(group, key=lambda run: run.config["seed"]))
        for name, group in zip(names, groups, strict=True)
    ]
    for row in rows:
        for one, other in itertools.pairwise(row.runs):
            if one.config["seed"] == other.config["seed"]:
                where = f"{one.folder} and {other.folder}"
                raise UserError(
                    f"compare: {row.label} seed {one.config['seed']} is there twice, {where}: name one"
                )
    return sorted(rows, key=lambda row: row.label)


def group_labels(firsts: list[Run]) -> list[str]:
    """Of a run of each row: the model's name, and the settings in which rows of that name differ.

    What follows from the size, the task or the budget is told only where two rows had the same label.
    """
    models = [str(run.config["names.model"]) for run in firsts]
    found = list(models)
    for whole in (False, True):
        before = list(zip(models, found, strict=True))
        for at, run in enumerate(firsts):
            others = [other for other, one in zip(firsts, before, strict=True) if one == before[at]]
            found[at] = " ".join([found[at], *distinguishing_settings(run, others, whole)])
    return found


def distinguishing_settings(run: Run, others: list[Run], whole: bool) -> list[str]:
    """The run's settings in which others differ ("memory_tokens=8"); without those that follow unless
    `whole`."""
    pairs = {key: pair[0] for other in others for key, pair in differing_settings(run, other).items()}
    follow: tuple[str, ...] = ()
    if "names.task" in pairs:
        follow = ("task.", "data.", "model.")
    elif "names.size" in pairs:
        follow = ("size.", "model.", "optim.", "data.")
    free = f"model.{run.config.get('model.free')}"
    keys = [key for key in pairs if whole or not (key == free or key.startswith(follow))]
    lasts = Counter(map(short_key, keys))
    names = (short_key(key) if lasts[short_key(key)] == 1 else key for key in keys)
    return [f"{name}={to_yaml(pairs[key])}" for name, key in zip(names, keys, strict=True)]


def short_key(key: str) -> str:
    return key.rpartition(".")[2]


def differing_settings(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Settings but the seed in which two runs differ, (one's, other's) by name."""
    found = differences(
        full_settings(one), full_settings(other), without=(*NEUTRAL_SETTINGS, "seed", "model.free")
    )
    return {
        key: pair for key, pair in found.items() if NOT_SET not in pair or constructor_takes(key, one, other)
    }


def constructor_takes(key: str, *runs: Run) -> bool:
    """Whether a setting that one of the runs doesn't have may change it: what a constructor takes does."""
    group, _, rest = key.partition(".")
    if group not in BUILT:
        return False
    every = [constructor_defaults(run.config.get(f"{group}._target_")) for run in runs]
    return any(usual is None or rest.partition(".")[0] in usual for usual in every)


def full_settings(run: Run) -> dict[str, Any]:
    """A run's settings, the defaults of its model's and its task's constructors for those it lacks, and what
    stands for the code of a model that isn't the zoo's."""
    given = {".".join(key.split(".")[:2]) for key in run.config}
    found: dict[str, Any] = {}
    for group in BUILT:
        for name, value in (constructor_defaults(run.config.get(f"{group}._target_")) or {}).items():
            if f"{group}.{name}" not in given and value is not inspect.Parameter.empty:
                found |= flatten(list(value) if isinstance(value, tuple) else value, f"{group}.{name}")
    if code := run.metrics.get("model_code"):
        found["model_code"] = code
    return found | run.config


@functools.cache
def constructor_defaults(target: Any) -> dict[str, Any] | None:
    """Defaults of a class's arguments by name; None where it isn't there, or isn't trusted to be imported."""
    if not isinstance(target, str) or not plugins.trusted(target):
        return None
    try:
        module, _, name = target.rpartition(".")
        arguments = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except Exception:  # whatever a module raises that was written for another zoo
        return None
    return {"base": None} | {name: argument.default for name, argument in arguments.items()}


def to_yaml(value: Any) -> str:
    return "null" if value is None else json.dumps(value) if isinstance(value, (bool, list)) else str(value)
