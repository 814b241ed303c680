"""A run's folder: its settings and results, and the settings in which two runs differ."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from zoo.errors import UserError, first_line, nearest
from zoo.train.runs.stored import load_stored

# Settings that leave a run's results unchanged.  The accelerator is among them: `auto` depends on the
# machine (metrics.json has the device), and CPU and GPU differ only in the order of their sums, as different
# numbers of threads do.
RESULT_NEUTRAL_SETTINGS = (
    "data.root",
    "task.root",
    "val_every",
    "checkpoint_every",
    "trainer.log_every",
    "trainer.accelerator",
    "trainer.profiler",
    "logger",
    "base.run",
    "base.step",
    "base.commit",
)
DECIDE_WHEN_TO_STOP = ("stop_when_solved.metric", "callbacks.")
"""Beginnings of settings by which validations, or what takes their time, may end a run."""
NOT_SET = "absent"
PROGRESS_FILE = "progress.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a run's config.yaml on one level.  Raises UserError if it isn't one."""
    path = folder / "config.yaml"
    try:
        stored = load_stored(path)
    except Exception as error:  # yaml and the file system raise many kinds
        raise UserError(f"{path} is not the config of a run: {first_line(error)}") from error
    if "model" not in stored or "names" not in stored:
        raise UserError(f"{path} is not the config of a run: expected model and names in it")
    return flatten(OmegaConf.to_container(stored, resolve=False))


def no_run(folder: Path) -> UserError:
    """The error for a folder without a run: with the first run below it, or else one of a similar name."""
    name = "" if folder == Path() else str(folder)
    message = f"expected a run's folder with a config.yaml, found none in {name!r}"
    below = [path.parent for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/config.yaml")]
    if name and below:
        return UserError(f"{message}; there is one in {min(below)}")
    siblings = (path.parent.name for path in folder.parent.glob("*/config.yaml"))
    parent = os.path.join(os.path.dirname(folder), "")
    return UserError(message + nearest(folder.name, siblings, prefix=parent))


def flatten(node: Any, name: str = "") -> dict[str, Any]:
    """Nested settings on one level, by their dotted names."""
    if not isinstance(node, dict):
        return {name: node}
    settings: dict[str, Any] = {}
    for key, value in node.items():
        settings |= flatten(value, f"{name}.{key}" if name else str(key))
    return settings


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path}: {error}") from error


def folders(below: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Folders of finished and of unfinished runs below others; each once, sorted."""
    runs = {path.parent for folder in below for path in sorted(folder.rglob("config.yaml"))}
    finished = {folder for folder in runs if (folder / "metrics.json").is_file()}
    return sorted(finished), sorted(runs - finished)


def neutral_settings(*configs: dict[str, Any]) -> tuple[str, ...]:
    """RESULT_NEUTRAL_SETTINGS; without val_every where it decides when one of these runs ends."""
    if any(
        value is not None and key.startswith(DECIDE_WHEN_TO_STOP)
        for config in configs
        for key, value in config.items()
    ):
        return tuple(key for key in RESULT_NEUTRAL_SETTINGS if key != "val_every")
    return RESULT_NEUTRAL_SETTINGS


Pair = tuple[Any, Any]


def differences(
    first: dict[str, Any], second: dict[str, Any], without: tuple[str, ...] | None = None
) -> dict[str, Pair]:
    """Settings in which two runs differ, as pairs by name; NOT_SET where a run doesn't have one.

    `without` are keys that don't count, or groups of keys; by default the settings that change no results.
    """
    if without is None:
        without = neutral_settings(first, second)
    keys = dict.fromkeys([*first, *second])
    pairs = {
        key: (first.get(key, NOT_SET), second.get(key, NOT_SET))
        for key in keys
        if key not in without and key.partition(".")[0] not in without
    }
    return {key: pair for key, pair in pairs.items() if not equal(*pair)}


def equal(first: Any, second: Any) -> bool:
    """Equality of settings: yaml may read 1e-3 as text; a flag equals no number."""
    if first == second:
        return isinstance(first, bool) == isinstance(second, bool)
    try:
        return not isinstance(first, bool) and not isinstance(second, bool) and float(first) == float(second)
    except (TypeError, ValueError):
        return False


def describe_differences(pairs: dict[str, Pair], first_name: str, second_name: str, most: int = 4) -> str:
    """One line: "optim.lr 0.001 here, 0.002 there; …"."""
    parts = [f"{key} {first} {first_name}, {second} {second_name}" for key, (first, second) in pairs.items()]
    if len(parts) > most:
        parts = [*parts[:most], f"and {len(parts) - most} more"]
    return "; ".join(parts)
