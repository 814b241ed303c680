"""Which runs stand in one row, and which don't belong into one table.

A row holds the runs of a model that differ in their seed alone.  All rows of a table have the same task and
version, the same data, the same budget and the same tokens.
"""

import functools
import importlib
import inspect
import itertools
import json
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from zoo import plugins
from zoo.errors import UserError
from zoo.train import build, evaluations
from zoo.train.intervals import Estimate, estimate
from zoo.train.runs import ABSENT, BESIDE, differences, flat, read_config, read_json

NEAR = 0.05  # tokens seen may differ by so much: how much of a window is padding hangs on seed and window
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


class Row(NamedTuple):
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
    if lacking := unmeasured(metrics):
        raise UserError(f"{folder / 'metrics.json'} is no run's result: expected {', '.join(lacking)} in it")
    beside = folder / evaluations.FILE
    every = evaluations.read(beside)["evaluations"] if beside.exists() else []
    entries = [entry for entry in every if entry.get("read_by") is None]  # by the run's own architecture
    return Run(folder, config, metrics, entries)


def unmeasured(metrics: Any) -> list[str]:
    """The numbers that a comparison needs and a metrics.json lacks; a curve may be missing, not its parts."""
    said = metrics if isinstance(metrics, dict) else {}
    lacking = [key for key in MEASURED if not isinstance(said.get(key), int | float)]
    if not any(isinstance(said.get(f"val/{score}"), int | float) for score in ("bits_per_byte", "accuracy")):
        lacking.append("val/bits_per_byte or val/accuracy")
    points = said.get("curve", [])
    if not isinstance(points, list) or not all(isinstance(p, dict) and p.keys() >= {*POINT} for p in points):
        lacking.append(f"{', '.join(POINT)} of every point of its curve")
    return lacking


# -- what may not differ


def positions(run: Run) -> int:
    """Positions that training read."""
    config, product = run.config, 1
    for key in (
        "steps",
        "data.rows",
        "data.window",
        "trainer.accumulate",
        "trainer.devices",
        "trainer.num_nodes",
    ):
        product *= int(config.get(key, 1))
    return product


def task_facts(run: Run) -> dict[str, Any]:
    named = {
        "task": run.config["names.task"],
        "task version": run.metrics.get("task_version", ABSENT),
        "task code": run.metrics.get("task_code", ""),
    }
    without = ("task.root", "task.corpus")
    own = {key: value for key, value in full(run).items() if key.startswith("task.") and key not in without}
    return named | own


def data_facts(run: Run) -> dict[str, Any]:
    return {
        "bytes held out": run.metrics.get("val_bytes", ABSENT),
        "corpus": run.config.get("data.corpus", ABSENT),
        "fingerprint": run.metrics.get("data_fingerprint", ABSENT),
    }


KINDS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "task": task_facts,
    "data": data_facts,
    "budget": lambda run: {"size": run.config["names.size"], "budget": run.config.get("size.budget", ABSENT)},
    "tokens": lambda run: {"positions read": positions(run)},
}


def unlike(runs: list[Run], allowed: list[str]) -> list[str]:
    """In what the runs differ of what was allowed, in words; UserError: of anything else."""
    said: dict[str, list[str]] = {}
    known = all("data_fingerprint" in run.metrics for run in runs)
    for kind, facts in KINDS.items():
        told = [facts(run) for run in runs]
        for key in dict.fromkeys(key for one in told for key in one):
            if key == "corpus" and known:  # older runs know their corpus by name alone
                continue
            groups: dict[str, list[str]] = {}
            for one, run in zip(told, runs, strict=True):
                value = one.get(key, ABSENT)
                if key != "fingerprint" or value != ABSENT:
                    groups.setdefault(in_short(value), []).append(run.name)
            if len(groups) > 1:
                parts = [f"{value} ({some(names)})" for value, names in groups.items()]
                said.setdefault(kind, []).append(f"{key}: {', '.join(parts)}")
                if key == "task":  # the rest follows
                    break
    budgeted = runs[0].config.get("size.budget") is not None
    if "budget" not in said and budgeted and (apart := ends(runs, "parameters", build.BUDGET_TOLERANCE)):
        said["budget"] = [apart]
    if "tokens" not in said and (apart := ends(runs, "tokens_seen", NEAR)):
        said["tokens"] = [apart]
    if refused := [kind for kind in said if kind not in allowed]:
        words = "; ".join(f"in {kind}: {'; '.join(said[kind])}" for kind in refused)
        mix = ",".join([*allowed, *refused])
        raise UserError(f"compare: the runs differ {words}. mix={mix} compares them all the same")
    return [line for lines in said.values() for line in lines]


def ends(runs: list[Run], key: str, near: float) -> str:
    """The least and the most of a metric, and whose they are; "" where they lie within a share `near`."""
    least, most = (end(runs, key=lambda run: run.metrics[key]) for end in (min, max))
    if most.metrics[key] <= (1 + near) * least.metrics[key]:
        return ""
    said = [f"{in_short(run.metrics[key])} ({run.name})" for run in (least, most)]
    return f"{key.replace('_', ' ')}: {', '.join(said)}"


def in_short(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# -- rows


def grouped(runs: list[Run]) -> list[Row]:
    """Runs that differ in nothing but their seed are one row; its label tells it from all others.

    What a run's config doesn't say of its model or task is what their constructors take for it; of anything
    else it counts as the same, as the zoo didn't have it yet.
    """
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if not settings_between(group[0], run):
                group.append(run)
                break
        else:
            groups.append([run])
    names = labels([group[0] for group in groups])
    assert len(set(names)) == len(names)
    rows = [
        Row(name, sorted(group, key=lambda run: run.config["seed"]))
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


def labels(firsts: list[Run]) -> list[str]:
    """Of a run of each row: the model's name, and the settings in which rows of that name differ.

    What follows from the size, the task or the budget is told only where two rows had the same label.
    """
    models = [str(run.config["names.model"]) for run in firsts]
    found = list(models)
    for whole in (False, True):
        before = list(zip(models, found, strict=True))
        for at, run in enumerate(firsts):
            others = [other for other, one in zip(firsts, before, strict=True) if one == before[at]]
            found[at] = " ".join([found[at], *told_apart(run, others, whole)])
    return found


def told_apart(run: Run, others: list[Run], whole: bool) -> list[str]:
    """The run's settings in which others differ, "slots=8"; without those that follow unless `whole`."""
    pairs = {key: pair[0] for other in others for key, pair in settings_between(run, other).items()}
    follow: tuple[str, ...] = ()
    if "names.task" in pairs:
        follow = ("task.", "data.", "model.")
    elif "names.size" in pairs:
        follow = ("size.", "model.", "optim.", "data.")
    free = f"model.{run.config.get('model.free')}"
    keys = [key for key in pairs if whole or not (key == free or key.startswith(follow))]
    lasts = Counter(map(last_part, keys))
    names = (last_part(key) if lasts[last_part(key)] == 1 else key for key in keys)
    return [f"{name}={in_yaml(pairs[key])}" for name, key in zip(names, keys, strict=True)]


def last_part(key: str) -> str:
    return key.rpartition(".")[2]


def settings_between(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Settings but the seed in which two runs differ, (one's, other's) by name."""
    found = differences(full(one), full(other), without=(*BESIDE, "seed", "model.free"))
    return {key: pair for key, pair in found.items() if ABSENT not in pair or matters(key, one, other)}


def matters(key: str, *runs: Run) -> bool:
    """Whether a setting that one of the runs doesn't have may change it: what a constructor takes does."""
    group, _, rest = key.partition(".")
    if group not in BUILT:
        return False
    every = [defaults(run.config.get(f"{group}._target_")) for run in runs]
    return any(usual is None or rest.partition(".")[0] in usual for usual in every)


def full(run: Run) -> dict[str, Any]:
    """A run's settings, the defaults of its model's and its task's constructors for those it lacks, and what
    stands for the code of a model that isn't the zoo's."""
    given = {".".join(key.split(".")[:2]) for key in run.config}
    found: dict[str, Any] = {}
    for group in BUILT:
        for name, value in (defaults(run.config.get(f"{group}._target_")) or {}).items():
            if f"{group}.{name}" not in given and value is not inspect.Parameter.empty:
                found |= flat(list(value) if isinstance(value, tuple) else value, f"{group}.{name}")
    if code := run.metrics.get("model_code"):
        found["model_code"] = code
    return found | run.config


@functools.cache
def defaults(target: Any) -> dict[str, Any] | None:
    """Defaults of a class's arguments by name; None where it isn't there, or isn't trusted to be imported."""
    if not isinstance(target, str) or not plugins.trusted(target):
        return None
    try:
        module, _, name = target.rpartition(".")
        arguments = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except Exception:  # whatever a module raises that was written for another zoo
        return None
    return {"base": None} | {name: argument.default for name, argument in arguments.items()}


def command(row: Row) -> str:
    """What trains a row's runs today; "" where its configs aren't installed."""
    config = row.runs[0].config
    words = [f"{group}={config[f'names.{group}']}" for group in ("model", "task", "size")]
    words.append(f"steps={config['steps']}")
    try:
        usual = flat(OmegaConf.to_container(build.compose([*words, "run_dir=."]), resolve=True))
        found = differences(config, usual, (*BESIDE, "seed", "run_dir", "resume", "task.corpus"))
        if is_solved(row.runs[0]):
            found.pop(f"model.{config['model.free']}", None)
    except Exception:  # a plug-in that isn't there may raise anything
        return ""
    words += [f"{key}={in_yaml(value)}" for key, (value, _) in found.items() if value != ABSENT]
    return shlex.join(
        ["zoo", "sweep", *words, f"seeds={','.join(str(run.config['seed']) for run in row.runs)}"]
    )


def is_solved(run: Run) -> bool:
    """Whether the budget gives a run its free width, and nobody's hand did."""
    free, target = run.config.get("model.free"), run.config["model._target_"]
    if free is None or run.config.get("size.budget") is None or not plugins.trusted(target):
        return False
    stored = OmegaConf.load(run.folder / "config.yaml")
    assert isinstance(stored, DictConfig)
    stored.model[free] = None
    return bool(build.solved(stored)[free] == run.config[f"model.{free}"])


def in_yaml(value: Any) -> str:
    return "null" if value is None else json.dumps(value) if isinstance(value, (bool, list)) else str(value)


RUN_HEAD = ["model", "seed", "score", "commit", "date", "device", "folder"]


def run_facts(rows: list[Row]) -> list[list[str]]:
    """Where every number comes from; the settings are in the folder's config.yaml."""
    return [
        [
            row.label,
            str(run.config["seed"]),
            f"{run.metrics.get('val/bits_per_byte', run.metrics.get('val/accuracy')):.4f}",
            (found := str(run.metrics.get("commit", "")))[:9] + "+" * found.endswith("+"),
            str(run.metrics.get("date", ""))[:10],
            str(run.metrics.get("device", "")),
            str(run.folder.relative_to(Path.cwd()) if run.folder.is_relative_to(Path.cwd()) else run.folder),
        ]
        for row in rows
        for run in row.runs
    ]
