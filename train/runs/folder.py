"""Runs as files: which lie in a folder, what they say, and in which settings two of them differ."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from zoo.errors import UserError, first_line, nearest
from zoo.train.runs.stored import load_stored

# Settings that leave a run's final numbers as they are.  The accelerator is one: `auto` is another device on
# another machine, so it doesn't say where a run was made (metrics.json does), and CPU and GPU differ in the
# order of their sums, as numbers of threads do: what either makes of a seed is a result of that seed.
NEUTRAL_SETTINGS = (
    "data.root",
    "task.root",
    "val_every",
    "checkpoint_every",
    "trainer.log_every",
    "trainer.accelerator",
)
NOT_SET = "absent"
PROGRESS_FILE = "progress.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a run's config.yaml on one level; UserError where it isn't one."""
    path = folder / "config.yaml"
    try:
        stored = load_stored(path)
    except Exception as error:  # whatever yaml and the file system raise
        raise UserError(f"{path} is no run's config: {first_line(error)}") from error
    if "model" not in stored or "names" not in stored:
        raise UserError(f"{path} is no run's config: expected model and names in it")
    return flatten(OmegaConf.to_container(stored, resolve=False))


def no_run(folder: Path) -> UserError:
    """That a folder holds no run, and which are near it: the first below it, or else those called alike."""
    named = "" if folder == Path() else str(folder)
    found = f"expected a run's folder with a config.yaml, found none in {named!r}"
    below = [path.parent for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/config.yaml")]
    if named and below:
        return UserError(f"{found}; there is one in {min(below)}")
    siblings = (path.parent.name for path in folder.parent.glob("*/config.yaml"))
    return UserError(found + nearest(folder.name, siblings, prefix=os.path.join(os.path.dirname(folder), "")))


def flatten(node: Any, name: str = "") -> dict[str, Any]:
    """Nested settings on one level."""
    if not isinstance(node, dict):
        return {name: node}
    pairs: dict[str, Any] = {}
    for key, value in node.items():
        pairs |= flatten(value, f"{name}.{key}" if name else str(key))
    return pairs


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path}: {error}") from error


def folders(below: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Folders of finished runs, and of begun ones, below others; each once, sorted."""
    found = {path.parent for folder in below for path in sorted(folder.rglob("config.yaml"))}
    finished = {folder for folder in found if (folder / "metrics.json").is_file()}
    return sorted(finished), sorted(found - finished)


def differences(
    ours: dict[str, Any], theirs: dict[str, Any], without: tuple[str, ...] = NEUTRAL_SETTINGS
) -> dict[str, tuple[Any, Any]]:
    """Settings that two runs don't share, (ours, theirs) by name, but for those that change no number."""
    keys = dict.fromkeys([*ours, *theirs])
    pairs = {key: (ours.get(key, NOT_SET), theirs.get(key, NOT_SET)) for key in keys if key not in without}
    return {key: pair for key, pair in pairs.items() if not same(*pair)}


def same(one: Any, other: Any) -> bool:
    """1e-3 written in yaml may come back as text."""
    if one == other:
        return isinstance(one, bool) == isinstance(other, bool)
    try:
        return not isinstance(one, bool) and not isinstance(other, bool) and float(one) == float(other)
    except (TypeError, ValueError):
        return False


def describe_differences(found: dict[str, tuple[Any, Any]], ours: str, theirs: str, most: int = 4) -> str:
    """One line: "optim.lr 0.001 here, 0.002 there; …"."""
    said = [f"{key} {one} {ours}, {other} {theirs}" for key, (one, other) in found.items()]
    return "; ".join(said[:most]) + (f"; and {len(said) - most} more" if len(said) > most else "")
