"""Checkpoint files: written completely or not at all, loaded only as plain data."""

import math
import pickle
import random
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.runs.files import replacing

VERSION = 1
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step", "metrics")


class AtomicCheckpointIO(CheckpointIO):
    """Writes a temporary file and renames it; loads nothing but plain data."""

    def __init__(self, weight_names: Collection[str] = ()) -> None:
        self.weight_names = weight_names  # of the model that loads

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with replacing(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            advice = "the one before is whole" if Path(path).exists() else "there is none before it"
            raise UserError(f"can't save {path}: {_system_error(error)}; {advice}") from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = read_checkpoint(Path(path))
        checkpoint["state_dict"] = update_weight_names(checkpoint["state_dict"], self.weight_names)
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


RENAMED_WEIGHTS = {"enter": "in_proj", "out": "out_proj"}
"""Modules by their former names."""


def update_weight_names(weights: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The weights of a checkpoint under the names of a model's; only what the model lacks is renamed."""

    def update(name: str) -> str:
        renamed = ".".join(RENAMED_WEIGHTS.get(part, part) for part in name.split("."))
        return renamed if name not in names and renamed in names and renamed not in weights else name

    return {update(name): weight for name, weight in weights.items()}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of the zoo, on the CPU; UserError for a file that is missing, damaged or foreign."""
    if not path.is_file():
        raise UserError(f"expected a checkpoint at {path}, found none")
    checkpoint = _load(path)
    header = checkpoint.get("zoo") if isinstance(checkpoint, dict) else None
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise UserError(
            f"expected a checkpoint of the zoo, version {VERSION}, at {path}, found another kind of file"
        )
    if missing := [part for part in PARTS if part not in checkpoint]:
        raise UserError(f"{path} is no complete checkpoint: {', '.join(missing)} missing")
    if not _has_weights(checkpoint["state_dict"]) or not _has_step(checkpoint):
        raise UserError(f"{path} is no complete checkpoint: expected weights by name, and steps and tokens")
    return checkpoint


def _load(path: Path) -> Any:
    """The content of a file, after its checksums were compared; no code in it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load doesn't compare checksums
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols
            content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors and plain data; it is not loaded") from error
    except Exception as error:  # a flipped bit can make zipfile and torch raise anything
        raise UserError(
            f"expected a checkpoint of the zoo at {path}, found a damaged or foreign file"
        ) from error
    if damaged:
        raise UserError(f"{path} is damaged: the checksum of {damaged} doesn't match")
    return content


def _has_weights(weights: Any) -> bool:
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()
    )


def _has_step(checkpoint: dict[str, Any]) -> bool:
    """True if the checkpoint counts steps and tokens."""
    step, metrics = checkpoint["global_step"], checkpoint["metrics"]
    tokens_seen = metrics.get("tokens_seen") if isinstance(metrics, dict) else None
    counts_tokens = isinstance(tokens_seen, (int, float)) and 0 <= tokens_seen < math.inf
    return isinstance(step, int) and step >= 0 and counts_tokens


def check_weights(model: SequenceModule, checkpoint: dict[str, Any], path: Path) -> None:
    """Raises UserError unless the checkpoint's weights are this model's, name by name and shape by shape;
    former names are updated in the checkpoint."""
    weights = update_weight_names(checkpoint["state_dict"], model.state_dict().keys())
    checkpoint["state_dict"] = weights
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
        if expected.is_floating_point() != weight.is_floating_point() or weight.layout != torch.strided:
            raise UserError(f"{path}: weight {name} expected as {expected.dtype}, found {weight.dtype}")


def random_states() -> dict[str, Any]:
    """RNG states of Python, NumPy, torch and this rank's GPU, in types that a safe checkpoint may hold."""
    kind, keys, *rest = np.random.get_state()
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else list[Tensor]()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_states(states: dict[str, Any]) -> None:
    version, inner, gauss = states["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])
