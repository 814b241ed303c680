"""The base class of every architecture: a LightningModule with the interface of a model with memory, and the
training step that all of them share."""

from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from zoo.interface import StatefulLM
from zoo.optim import Optim
from zoo.state import State, detach, reset_rows

IGNORE = -100  # the target of positions without a loss


class Batch(NamedTuple):
    """One window of text for every row; the next batch continues where this one stops."""

    tokens: Int[Tensor, "rows time"]
    targets: Int[Tensor, "rows time"]  # IGNORE where there is none
    fresh: Bool[Tensor, " rows"]  # rows in which a new document begins: their state is reset


class SequenceModule(StatefulLM, L.LightningModule):
    """A language model that the training loop trains: its interface is StatefulLM's."""

    outside_budget: ClassVar[tuple[str, ...]] = ("embed", "positions", "head")
    """Attributes that a parameter budget leaves out: token embedding, position table, output projection."""
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Names of parameters without weight decay although they have the shape of a matrix (see
    `parameter_groups`)."""

    optim: Optim
    train_state: State | None = None  # from one training step to the next, detached
    val_state: State | None = None  # the same in validation, never shared with training
    _target_shares: Tensor | None = None  # summed since the last step; None in steps of one window

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser (see zoo.optim): weight decay for embeddings and other matrices only.

        It spares vectors, and what any module of the model names in `no_weight_decay`: parameters that have
        the shape of a matrix and map nothing, such as biases per head and memory tokens.
        """
        spared = {
            id(getattr(part, name))
            for part in self.modules()
            for name in getattr(part, "no_weight_decay", ())
        }
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        decaying = [weight for weight in weights if weight.ndim >= 2 and id(weight) not in spared]
        identities = {id(weight) for weight in decaying}
        rest = [weight for weight in weights if id(weight) not in identities]
        return [{"params": decaying}, {"params": rest, "decays": False}]

    def diagnostics(self, state: State) -> dict[str, float]:
        """Scalars that describe the carried state, logged under memory/."""
        return {}

    def set_progress(self, step: int, steps: int) -> None:
        """Called before training step `step` of `steps`; for models with a schedule."""

    def count_parameters(self) -> int:
        """The number of parameters that the budget counts, tied ones once."""
        outside = {id(w) for part in self.outside_budget for w in _weights(getattr(self, part, None))}
        return sum(weight.numel() for weight in self.parameters() if id(weight) not in outside)

    # -- called by the training loop

    def compute_loss(self, batch: Batch, state: State | None) -> tuple[dict[str, Tensor], State]:
        """Read one window after the state of the last one.

        Returns the loss in nats per target, `nats` and `hits` (rows, time) (0 and False where there is no
        target), and the state after the window, detached.
        """
        # Computed even if no row is fresh: so a learned initial state has a gradient (zero) on every rank.
        empty = self.init_state(len(batch.tokens))
        state = empty if state is None else reset_rows(state, empty, batch.fresh)
        logits, state = self(batch.tokens, state)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(logits.mT, batch.targets, ignore_index=IGNORE, reduction="none")
        num_targets = (batch.targets != IGNORE).sum().clamp(min=1)  # no target at all: loss 0, not NaN
        hits = logits.argmax(-1) == batch.targets
        return {"loss": nats.sum() / num_targets, "nats": nats.detach(), "hits": hits}, detach(state)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`compute_loss` of the next window; its loss is weighted where an optimiser step has several."""
        self.set_progress(self.trainer.global_step, self.trainer.max_steps)
        outputs, self.train_state = self.compute_loss(batch, self.train_state)
        if self._windows_per_step() > 1:
            share = (batch.targets != IGNORE).to(outputs["loss"].dtype).mean()
            outputs["loss"] = outputs["loss"] * share
            self._target_shares = share if self._target_shares is None else self._target_shares + share
        return outputs

    def average_gradients(self) -> None:
        """Make a step's gradient that of the mean loss over the targets of all its windows together.

        Called once per optimiser step, before clipping.  Windows are of equal size, but not their numbers of
        targets.  Lightning takes the mean of the windows' gradients, and of the ranks'; so `training_step`
        weights a window by the share of its positions that are targets, and here the gradient is divided by
        the mean of these shares.  A step of one window is left as it is.
        """
        if self._target_shares is None:
            return
        shares = self.trainer.strategy.reduce(self._target_shares, reduce_op="sum")
        factor = self._windows_per_step() / torch.where(shares > 0, shares, 1)  # no target: gradients of 0
        for weight in self.parameters():
            if weight.grad is not None:
                weight.grad.mul_(factor)
        self._target_shares = None

    def _windows_per_step(self) -> int:
        """Batches that Lightning averages into one optimiser step: accumulated ones, of all ranks."""
        return self.trainer.accumulate_grad_batches * self.trainer.world_size

    def on_validation_epoch_start(self) -> None:
        self.val_state = None

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        outputs, self.val_state = self.compute_loss(batch, self.val_state)
        return outputs

    def on_validation_epoch_end(self) -> None:
        self.val_state = None

    def configure_optimizers(self) -> Any:
        return self.optim.build(self.parameter_groups())


def _weights(part: nn.Module | Tensor | None) -> list[Tensor]:
    if part is None:
        return []
    return [part] if isinstance(part, Tensor) else list(part.parameters())
