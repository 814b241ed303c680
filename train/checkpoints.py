"""Checkpoints from which a killed run goes on bit for bit; the last whole one is never lost."""

import math
import pickle
import random
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.loops.fit_loop import _FitLoop
from torch import Tensor

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.state import each, from_leaves, leaves
from zoo.train.files import replacing
from zoo.train.metrics import Metrics

VERSION = 1
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step", "metrics")


class WholeFiles(CheckpointIO):
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


class Checkpoints(L.Callback):
    """last.ckpt every so many steps, before each validation and at the end; best.ckpt by held-out loss.

    A run that was killed in its validation resumes right before it.
    """

    def __init__(self, folder: Path, every: int, metrics: Metrics) -> None:
        self.folder, self.every, self.metrics = folder, every, metrics
        self.best = float("inf")
        self.saved_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            for left in self.folder.glob(".*.ckpt.*"):  # by a run that was killed while it saved
                left.unlink(missing_ok=True)
        if self.metrics.validation_is_due(trainer):
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False  # or it would skip as much as an earlier validation has read
            trainer.validating = True
            loop.run()
            trainer.training = True

    def save_last(self, trainer: L.Trainer) -> None:
        """Unless this step is saved already; all ranks together.

        UserError where a weight is not finite: an update may overflow although its gradient is finite.
        """
        if self.saved_step != trainer.global_step:
            for name, weight in trainer.lightning_module.named_parameters():
                if not weight.isfinite().all():
                    raise UserError(f"step {trainer.global_step}: {name} is not finite; it is not saved")
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every == 0 or step % self.metrics.val_every == 0 or step == trainer.max_steps:
            self.save_last(trainer)
        # Lightning counts batches, of which an optimiser step may be several, and at the end of a pass fewer
        trainer.val_check_batch = 1 if self.metrics.validation_is_due(trainer) else sys.maxsize

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = self.metrics.latest["val/loss"]
        if loss < self.best:
            self.best = loss
            trainer.save_checkpoint(self.folder / "best.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class Begins(_FitLoop):
    """A fit loop that begins also where no step is left: what is due at its start is the last validation, of
    a run that was killed in it."""

    @property
    def skip(self) -> bool:
        return False


class ExactResume(L.Callback):
    """Keeps what Lightning doesn't: the carried state and the random generators of every rank."""

    def __init__(self, seed: int, rows: int) -> None:
        self.seed, self.rows = seed, rows
        self.kept: list[dict[str, Any]] | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, SequenceModule)
        carried = pl_module.carried
        own = {
            "carried": None if carried is None else [leaf.cpu().clone() for leaf in leaves(carried)],
            "random": random_states(),
        }
        ranks: list[Any] = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, own)
        checkpoint["zoo"] = {"version": VERSION, "ranks": ranks}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.kept = checkpoint["zoo"]["ranks"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        if self.kept is None:  # ranks start from the same weights, but drop out differently
            L.seed_everything((self.seed + 7919 * trainer.global_rank) % 2**32, verbose=False)
            return
        if len(self.kept) != trainer.world_size:
            raise UserError(
                f"expected {len(self.kept)} ranks as in the checkpoint, found {trainer.world_size}"
            )
        own, self.kept = self.kept[trainer.global_rank], None
        if own["carried"] is not None:
            born = pl_module.init_state(self.rows)
            carried = from_leaves(born, own["carried"])
            pl_module.carried = each(lambda leaf, like: leaf.to(like.device), carried, born)
        set_random_states(own["random"])


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
