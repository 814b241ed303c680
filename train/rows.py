"""Which runs stand in one row, and which don't belong into one table.

A row holds the runs of a model that differ in their seed alone.  All rows of a table have the same task and
version, the same data, the same budget and the same tokens.
"""

import itertools
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from zoo.errors import UserError
from zoo.train import build, evaluations
from zoo.train.intervals import Estimate, estimate
from zoo.train.runs import ABSENT, BESIDE, differences, flat, read_config, read_json

NEAR = 0.05  # tokens seen may differ by so much: how much of a window is padding hangs on seed and window


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
    """UserError where a file of it is damaged."""
    metrics = read_json(folder / "metrics.json")
    if not isinstance(metrics, dict) or "val/loss" not in metrics:
        raise UserError(f"{folder / 'metrics.json'} is no run's result: expected val/loss in it")
    beside = folder / evaluations.FILE
    every = evaluations.read(beside)["evaluations"] if beside.exists() else []
    entries = [entry for entry in every if entry.get("read_by") is None]  # by the run's own architecture
    return Run(folder, read_config(folder), metrics, entries)


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
    own = {key: value for key, value in run.config.items() if key.startswith("task.")}
    named = {"task": run.config["names.task"], "task version": run.metrics.get("task_version", ABSENT)}
    return named | {key: value for key, value in own.items() if key not in ("task.root", "task.corpus")}


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
            if key == ("corpus" if known else "fingerprint"):  # older runs know their corpus by name alone
                continue
            groups: dict[str, list[str]] = {}
            for one, run in zip(told, runs, strict=True):
                groups.setdefault(in_short(one.get(key, ABSENT)), []).append(run.name)
            if len(groups) > 1:
                parts = [f"{value} ({some(names)})" for value, names in groups.items()]
                said.setdefault(kind, []).append(f"{key}: {', '.join(parts)}")
                if key == "task":  # the rest follows
                    break
    seen = [run.metrics["tokens_seen"] for run in runs]
    if "tokens" not in said and max(seen) > (1 + NEAR) * min(seen):
        least, most = (
            next(run for run in runs if run.metrics["tokens_seen"] == end) for end in (min(seen), max(seen))
        )
        said["tokens"] = [f"tokens seen: {min(seen):,} ({least.name}), {max(seen):,} ({most.name})"]
    if refused := [kind for kind in said if kind not in allowed]:
        words = "; ".join(f"in {kind}: {'; '.join(said[kind])}" for kind in refused)
        mix = ",".join([*allowed, *refused])
        raise UserError(f"compare: the runs differ {words}. mix={mix} compares them all the same")
    return [line for lines in said.values() for line in lines]


def in_short(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# -- rows


def grouped(runs: list[Run]) -> list[Row]:
    """Runs that differ in nothing but their seed are one row; its label is what tells it from the others.

    A setting that one of two runs doesn't have counts as the same: the zoo didn't have it yet.
    """
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if not settings_between(group[0], run):
                group.append(run)
                break
        else:
            groups.append([run])
    rows = [Row(label(group, groups), sorted(group, key=lambda run: run.config["seed"])) for group in groups]
    for row in rows:
        for one, other in itertools.pairwise(row.runs):
            if one.config["seed"] == other.config["seed"]:
                where = f"{one.folder} and {other.folder}"
                raise UserError(
                    f"compare: {row.label} seed {one.config['seed']} is there twice, {where}: name one"
                )
    return sorted(rows, key=lambda row: row.label)


def settings_between(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    found = differences(one.config, other.config)
    return {key: pair for key, pair in found.items() if key != "seed" and ABSENT not in pair}


def label(group: list[Run], groups: list[list[Run]]) -> str:
    """The model's name, and the settings in which groups of the same name differ."""
    first = group[0]
    name = str(first.config["names.model"])
    found = [settings_between(first, other[0]) for other in groups if other[0].config["names.model"] == name]
    keys = dict.fromkeys(key for one in found for key in one)
    if not keys:
        return name
    for named in ("names.task", "names.size"):
        if named in keys:  # what follows from it goes without saying
            follow = (
                ("task.", "data.", "model.")
                if named == "names.task"
                else ("size.", "model.", "optim.", "data.")
            )
            keys = {key: None for key in keys if key == named or not key.startswith(follow)}
    free = f"model.{first.config.get('model.free')}"
    told = [f"{key.split('.')[-1]}={first.config.get(key)}" for key in keys if key != free]
    return " ".join([name, *told])


def command(row: Row) -> str:
    """What trains a row's runs today; "" where its configs aren't installed."""
    config, words = row.runs[0].config, list[str]()
    try:
        for group in ("model", "task", "size"):
            words.append(f"{group}={config[f'names.{group}']}")
        words.append(f"steps={config['steps']}")
        usual = build.compose([*words, "run_dir=."])
        usual.model = build.solved(usual)
        base = flat(OmegaConf.to_container(usual, resolve=True))
    except Exception:  # a plug-in that isn't there may raise anything
        return ""
    apart = ("seed", "run_dir", "resume", "task.corpus", f"model.{config.get('model.free')}")
    found = differences(config, base, without=(*BESIDE, *apart))
    words += [f"{key}={in_yaml(value)}" for key, (value, _) in found.items() if value != ABSENT]
    return shlex.join(
        ["zoo", "sweep", *words, f"seeds={','.join(str(run.config['seed']) for run in row.runs)}"]
    )


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
