"""Checkpoints from which a killed run resumes bit for bit; the last complete one is never lost."""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from omegaconf import OmegaConf

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.state import from_leaves, leaves, tree_map
from zoo.train.loop.gradients import GradientGuard
from zoo.train.loop.metrics import Metrics
from zoo.train.runs import protocol
from zoo.train.runs.checkpoint import FORMAT_VERSION, rng_states, set_rng_states
from zoo.train.runs.files import write_text
from zoo.train.runs.optimizer_weights import KEY, weight_names


class Checkpoints(L.Callback):
    """Saves last.ckpt every `every` steps, before each validation and at the end; best.ckpt by held-out loss.

    It also decides when Lightning validates, so that a run that was killed in its validation resumes right
    before it.
    """

    def __init__(self, folder: Path, every: int, metrics: Metrics, guard: GradientGuard) -> None:
        self.folder, self.every, self.metrics, self.guard = folder, every, metrics, guard
        self.best = float("inf")
        self.saved_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            for unfinished in self.folder.glob(".*.ckpt.*"):  # of a run that was killed while it saved
                unfinished.unlink(missing_ok=True)
        stops = trainer.should_stop and trainer.global_step != self.metrics.last_val_step
        if stops or self.metrics.validation_is_due(trainer):
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False  # otherwise it skips the batches that an earlier validation read
            trainer.validating = True
            loop.run()
            trainer.training = True

    def save_last(self, trainer: L.Trainer) -> None:
        """Save last.ckpt unless it is of this step already; all ranks together.

        Raises UserError if a gradient was not finite, or a weight is not: an update may overflow although
        its gradient is finite.
        """
        if self.saved_step != trainer.global_step:
            model = trainer.lightning_module
            assert isinstance(model, SequenceModule)
            self.guard.check(model)
            names, weights = zip(*model.named_parameters(), strict=True)
            is_finite = torch.stack([weight.isfinite().all() for weight in weights]).tolist()
            if False in is_finite:
                name = names[is_finite.index(False)]
                raise UserError(f"step {trainer.global_step}: {name} is not finite; it is not saved")
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        is_last = step == trainer.max_steps or trainer.should_stop
        if is_last or step % self.every == 0 or step % self.metrics.val_every == 0:
            self.save_last(trainer)
        # Lightning counts batches, several to an optimiser step, and fewer at the end of a pass
        trainer.val_check_batch = 1 if self.metrics.validation_is_due(trainer) else sys.maxsize

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = self.metrics.latest["val/loss"]
        if loss < self.best:
            self.best = loss
            trainer.save_checkpoint(self.folder / "best.ckpt")

    @property
    def state_key(self) -> str:
        return "Checkpoints"  # in checkpoints, also those of earlier versions

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class NonSkippingFitLoop(_FitLoop):
    """A trainer's fit loop that also starts when no step is left, and that asks no other rank for signals.

    A run that was killed in its last validation has done all its steps; Checkpoints.on_train_start then
    repeats that validation.
    """

    def __init__(self, loop: _FitLoop) -> None:
        super().__init__(loop.trainer, min_epochs=loop.min_epochs, max_epochs=loop.max_epochs)
        self.epoch_loop = loop.epoch_loop
        # every rank would wait for the device at every step, for a signal that SignalHandler handles
        self.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    @property
    def skip(self) -> bool:
        return False


class ExactResume(L.Callback):
    """Saves and restores what Lightning doesn't: each rank's carried state and random generators.

    The identity of the data is saved with them.
    """

    def __init__(self, seed: int, batch_size: int, data: dict[str, str]) -> None:
        self.seed, self.batch_size, self.data = seed, batch_size, data
        self.saved_ranks: list[dict[str, Any]] | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, SequenceModule)
        state = pl_module.train_state
        this_rank = {
            "carried": None if state is None else [leaf.cpu().clone() for leaf in leaves(state)],
            "random": rng_states(),
        }
        ranks: list[Any] = [this_rank] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, this_rank)
        names = weight_names(pl_module, trainer.optimizers[0])
        checkpoint["zoo"] = {"version": FORMAT_VERSION, "ranks": ranks, KEY: names, "data": self.data}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.saved_ranks = checkpoint["zoo"]["ranks"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SequenceModule)
        if self.saved_ranks is None:  # ranks start from the same weights, but with different dropout
            L.seed_everything((self.seed + 7919 * trainer.global_rank) % 2**32, verbose=False)
            return
        if len(self.saved_ranks) != trainer.world_size:
            raise UserError(
                f"expected {len(self.saved_ranks)} ranks as in the checkpoint, found {trainer.world_size}"
            )
        saved, self.saved_ranks = self.saved_ranks[trainer.global_rank], None
        if saved["carried"] is not None:
            initial_state = pl_module.init_state(self.batch_size)
            state = from_leaves(initial_state, saved["carried"])
            pl_module.train_state = tree_map(lambda leaf, like: leaf.to(like.device), state, initial_state)
        set_rng_states(saved["random"])


class WriteResumedConfig(L.Callback):
    """Replaces a resumed run's config.yaml once its checkpoint is restored, when nothing can refuse it."""

    def __init__(self, run_dir: Path, config: str) -> None:
        self.run_dir, self.config = run_dir, config

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            # metrics.json of a shorter run would make this longer one look finished
            (self.run_dir / "metrics.json").unlink(missing_ok=True)
            stored = (path := self.run_dir / "config.yaml").read_text()
            before, after = (OmegaConf.select(OmegaConf.create(c), "steps") for c in (stored, self.config))
            if before != after:
                (self.run_dir / protocol.FILE).unlink(missing_ok=True)  # no longer a run of that sweep
            if stored != self.config:
                write_text(path, self.config)
