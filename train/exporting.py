"""`zoo export run=<run_dir> to=<folder>`: a trained run as two files that need nothing of the zoo to be read.

    run=          a run's folder: its config.yaml and checkpoints
    checkpoint=   last (default) or best
    to=           a new folder, for
                    model.safetensors   the weights by name; of tied ones the first
                    config.json         model, task, vocabulary, step, metrics, commit, all other settings

`zoo import from=<folder> run_dir=<run_dir>` makes a run of it again.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save
from torch import Tensor

from zoo.errors import UserError
from zoo.train.cli import one_line, stop, words_or_help
from zoo.train.evaluate import trained
from zoo.train.files import replacing, write_text
from zoo.train.lm import END, VOCABULARY
from zoo.train.loop import commit, quiet
from zoo.train.runs import read_json

FORMAT, VERSION = "zoo", 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
APART = ("model", "task")  # settings that config.json has at its top; the rest is its `run`
KEYS = ("run", "to", "checkpoint", "model._target_", "task._target_")


def main() -> None:
    """Exit code 0, or 2 for a slip of the user's."""
    found = words_or_help(__doc__)
    try:
        given = words(found, "export", KEYS, ("run", "to"))
        targets = tuple(f"{key}={value}" for key, value in given.items() if key.endswith("_target_"))
        if (checkpoint := given.get("checkpoint", "last")) not in ("last", "best"):
            raise UserError(f"export: checkpoint: expected last | best, found {checkpoint}")
        export(Path(given["run"]), Path(given["to"]), checkpoint, targets)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        stop(f"can't use {error.filename}: {error.strerror}", 2)
    print(f"{given['to']}: {WEIGHTS}, {CONFIG}")


def words(
    said: list[str],
    command: str,
    keys: tuple[str, ...],
    needed: tuple[str, ...],
    prefixes: tuple[str, ...] = (),
) -> dict[str, str]:
    """key=value words as they were said; UserError: one that is unknown, or none that is needed."""
    given = {}
    for word in said:
        key, equals, value = word.partition("=")
        if not equals or not (key in keys or key.startswith(prefixes)):
            raise UserError(
                f"{command}: unknown key {key!r}; expected one of {', '.join((*keys, *prefixes))}"
            )
        given[key] = value
    if lacking := [key for key in needed if not given.get(key)]:
        raise UserError(f"{command}: expected {', '.join(f'{key}=…' for key in lacking)}")
    return given


def export(run_dir: Path, to: Path, checkpoint: str = "last", overrides: tuple[str, ...] = ()) -> None:
    """UserError: no run, or something in `to` already."""
    quiet()
    free(to)
    cfg, model, far = trained(run_dir, checkpoint, overrides)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for group in ("data", "task"):
        if "root" in settings[group]:
            settings[group]["root"] = None  # a path of this machine
    finished = run_dir / "metrics.json"
    metrics = read_json(finished) if finished.exists() else None
    weights, tied = untied(model.state_dict())
    blob = save(weights, metadata={"format": "pt"})
    of_bytes = cfg.task.vocab_size == VOCABULARY
    config = {
        "format": FORMAT,
        "version": VERSION,
        "model": settings["model"],
        "task": settings["task"],
        "vocabulary": {
            "size": int(cfg.task.vocab_size),
            "tokens": f"bytes; {END} opens and closes a document" if of_bytes else "numbers",
        },
        "step": far["step"],
        "tokens_seen": far["tokens_seen"],
        "checkpoint": checkpoint,
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(blob).hexdigest(), "tied": tied},
        "metrics": metrics,
        "commit": metrics.get("commit", "") if isinstance(metrics, dict) else commit(),
        "run": {key: value for key, value in settings.items() if key not in APART},
    }
    with appearing(to) as folder:
        with replacing(folder / WEIGHTS) as file:
            file.write(blob)
        write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def untied(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, and which further names stand for which."""
    first: dict[tuple[Any, ...], str] = {}
    kept, tied = {}, {}
    for name, weight in weights.items():
        place = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype)
        same = first.setdefault(place, name) if weight.numel() else name
        if same == name:
            kept[name] = weight.detach().cpu().contiguous().clone()
        else:
            tied[name] = same
    return kept, tied


def free(folder: Path) -> None:
    """UserError where something lies there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"expected a new folder, found something in {folder}: nothing is overwritten")


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name if the block ends well, and is gone if it doesn't."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        beside.mkdir()
        yield beside
        free(folder)
        os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
