"""Checkpoint files: written completely or not at all, loaded only as tensors and plain Python data."""

import math
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.runs.files import atomic_write

FORMAT_VERSION = 1
REQUIRED_KEYS = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "callbacks",
    "global_step",
    "metrics",
)


class MismatchError(Exception):
    """The difference between a part of a checkpoint and what this run would save."""


class AtomicCheckpointIO(CheckpointIO):
    """Writes a temporary file and renames it; loads nothing but tensors and plain Python data.

    `migrate` changes a loaded checkpoint, in place, from an earlier version's form to this version's.
    """

    def __init__(self, migrate: Callable[[dict[str, Any]], None]) -> None:
        self.migrate = migrate

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with atomic_write(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            previous = "the previous checkpoint is intact"
            if not Path(path).exists():
                previous = "there is no previous one"
            raise UserError(f"can't save {path}: {_system_error(error)}; {previous}") from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = read_checkpoint(Path(path))
        self.migrate(checkpoint)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _system_error(error: BaseException) -> str:
    """The operating system's message, which torch's own error hides in its context."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return str(cause.strerror)
        cause = cause.__context__
    return str(error)


RENAMED_MODULES = {"enter": "in_proj", "out": "out_proj"}
"""Current module names, by their names in older checkpoints."""


def migrate_weight_names(weights: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """A checkpoint's weights with former module names replaced by current ones; `names` are the model's.

    A name is replaced only if the model lacks it, has the new one, and the checkpoint lacks the new one.
    """

    def migrate(name: str) -> str:
        renamed = ".".join(RENAMED_MODULES.get(part, part) for part in name.split("."))
        return renamed if name not in names and renamed in names and renamed not in weights else name

    return {migrate(name): weight for name, weight in weights.items()}


def migrate_weights(weights: dict[str, Tensor], model: SequenceModule) -> dict[str, Tensor]:
    """A checkpoint's state_dict under the model's names, with the buffers that earlier versions didn't store.

    A module's `legacy_buffers()` returns those, by name, with the values that earlier versions computed with.
    """
    weights = migrate_weight_names(weights, model.state_dict().keys())
    for prefix, module in model.named_modules():
        legacy_buffers = getattr(module, "legacy_buffers", dict)
        weights = {f"{prefix}.{name}": buffer for name, buffer in legacy_buffers().items()} | weights
    return weights


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of the zoo, on the CPU.

    Raises UserError for a file that is missing, damaged or not a checkpoint of the zoo.
    """
    if not path.is_file():
        raise UserError(f"expected a checkpoint at {path}, found none")
    checkpoint = _load(path)
    metadata = checkpoint.get("zoo") if isinstance(checkpoint, dict) else None
    if not isinstance(metadata, dict) or metadata.get("version") != FORMAT_VERSION:
        raise UserError(
            f"expected a checkpoint of the zoo, version {FORMAT_VERSION}, at {path}, "
            "found another kind of file"
        )
    if missing := [key for key in REQUIRED_KEYS if key not in checkpoint]:
        raise UserError(f"{path} is not a complete checkpoint: {', '.join(missing)} missing")
    if not _has_weights(checkpoint["state_dict"]) or not _has_progress(checkpoint):
        raise UserError(
            f"{path} is not a complete checkpoint: expected state_dict as named tensors, a global_step and "
            "metrics.tokens_seen"
        )
    return checkpoint


def _load(path: Path) -> Any:
    """The file's content, after verifying its checksums; no code in it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load doesn't verify checksums
        with warnings.catch_warnings(action="ignore"):  # torch warns about pickle protocols
            content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors and plain Python data; it is not loaded") from error
    except Exception as error:  # a flipped bit can make zipfile and torch raise anything
        raise UserError(
            f"expected a checkpoint of the zoo at {path}, found a damaged or unrelated file"
        ) from error
    if damaged:
        raise UserError(f"{path} is damaged: the checksum of {damaged} doesn't match")
    return content


def _has_weights(weights: Any) -> bool:
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()
    )


def _has_progress(checkpoint: dict[str, Any]) -> bool:
    """True if the checkpoint has valid counts of steps and of tokens (loss targets) seen."""
    step, metrics = checkpoint["global_step"], checkpoint["metrics"]
    tokens_seen = metrics.get("tokens_seen") if isinstance(metrics, dict) else None
    counts_tokens = isinstance(tokens_seen, (int, float)) and 0 <= tokens_seen < math.inf
    return isinstance(step, int) and step >= 0 and counts_tokens


def check_weights(model: SequenceModule, weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A checkpoint's weights, migrated by `migrate_weights`.

    Raises UserError unless their names, shapes, layouts and kinds of dtype are the model's.
    """
    weights = migrate_weights(weights, model)
    expected_shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in sorted(expected_shapes.keys() | shapes.keys()):
        if expected_shapes.get(name) != shapes.get(name):
            raise UserError(
                f"{path} is of another model: weight {name} expected {expected_shapes.get(name, 'absent')}, "
                f"found {shapes.get(name, 'absent')}"
            )
    for name, expected in model.state_dict().items():
        weight = weights[name]
        if weight.layout != torch.strided:
            raise UserError(f"{path}: weight {name} expected as a dense tensor, found {weight.layout}")
        if expected.is_floating_point() != weight.is_floating_point():
            raise UserError(f"{path}: weight {name} expected as {expected.dtype}, found {weight.dtype}")
    return weights


def rng_states() -> dict[str, Any]:
    """RNG states of Python, NumPy, torch and this rank's GPU, in types that a safe checkpoint may hold."""
    kind, keys, *rest = np.random.get_state()
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else list[Tensor]()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_rng_states(states: dict[str, Any]) -> None:
    version, internal_state, gauss_next = states["python"]
    random.setstate((version, tuple(internal_state), gauss_next))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])
