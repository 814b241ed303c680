"""Checkpoint files: written whole or not at all, read only as plain data."""

import math
import pickle
import random
import warnings
import zipfile
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
    """Written beside their place and renamed into it; read only where they hold nothing but plain data."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with replacing(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            kept = "the one before is whole" if Path(path).exists() else "there is none before it"
            causes: list[BaseException] = [error]  # torch's own words hide what the system said
            while (before := causes[-1].__context__) is not None:
                causes.append(before)
            said = next((cause.strerror for cause in causes if isinstance(cause, OSError)), error)
            raise UserError(f"can't save {path}: {said}; {kept}") from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of the zoo, on the CPU; UserError for a file that is missing, damaged or foreign."""
    if not path.is_file():
        raise UserError(f"expected a checkpoint at {path}, found none")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load doesn't compare checksums
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols
            checkpoint: Any = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors and plain data; it is not loaded") from error
    except Exception as error:  # a flipped bit can make zipfile and torch raise anything
        raise UserError(
            f"expected a checkpoint of the zoo at {path}, found a damaged or foreign file"
        ) from error
    if damaged:
        raise UserError(f"{path} is damaged: the checksum of {damaged} doesn't match")
    found = checkpoint.get("zoo") if isinstance(checkpoint, dict) else None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise UserError(
            f"expected a checkpoint of the zoo, version {VERSION}, at {path}, found another kind of file"
        )
    if lacking := [part for part in PARTS if part not in checkpoint]:
        raise UserError(f"{path} is no whole checkpoint: {', '.join(lacking)} missing")
    weights, step, counted = (checkpoint[part] for part in ("state_dict", "global_step", "metrics"))
    if (
        not isinstance(weights, dict)
        or not all(isinstance(name, str) and isinstance(kept, Tensor) for name, kept in weights.items())
        or not isinstance(step, int)
        or step < 0
        or not isinstance(counted, dict)
        or not isinstance(seen := counted.get("tokens_seen"), (int, float))
        or not 0 <= seen < math.inf
    ):
        raise UserError(f"{path} is no whole checkpoint: expected weights by name, and how far they came")
    return checkpoint


def check_weights(model: SequenceModule, checkpoint: dict[str, Any], path: Path) -> None:
    """Raises UserError unless the checkpoint's weights are this model's, name by name and shape by shape."""
    ours = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    theirs = {name: tuple(weight.shape) for name, weight in checkpoint["state_dict"].items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{path} is of another model: weight {name} expected {ours.get(name, 'absent')}, "
                f"found {theirs.get(name, 'absent')}"
            )
    for name, weight in model.state_dict().items():
        found = checkpoint["state_dict"][name]
        if weight.is_floating_point() != found.is_floating_point() or found.layout != torch.strided:
            raise UserError(f"{path}: weight {name} expected as {weight.dtype}, found {found.dtype}")


def random_states() -> dict[str, Any]:
    """Of Python, NumPy, torch and this rank's GPU, in types that a safe checkpoint may hold."""
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
