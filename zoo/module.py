"""The base class of every architecture: a LightningModule with the interface of a model with memory, and the
training step that all of them share."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.host import is_readable, known_lengths
from zoo.interface import StatefulLM
from zoo.loss import IGNORE as IGNORE
from zoo.loss import chunked_cross_entropy, cross_entropy, is_chunked
from zoo.optim import Optim
from zoo.state import State, detach, leaves, reset_rows


class Batch(NamedTuple):
    """One window of text for every row; the next batch continues where this one stops."""

    tokens: Int[Tensor, "rows time"]
    targets: Int[Tensor, "rows time"]  # IGNORE where there is none
    fresh: Bool[Tensor, " rows"]  # rows in which a new document begins: their state is reset
    lengths: tuple[int, ...] | None = None
    """Tokens that each row has read since it was fresh, 0 if it is; None if unknown."""
    # the next two are there if they were requested (`TargetExtras` in zoo.train.data.batches)
    evidence_distances: Int[Tensor, "rows time"] | None = None
    """How far back each target's evidence lies, -1 where there is none; None unless requested."""
    bayes_nats: Float[Tensor, "rows time"] | None = None
    """The least possible nats of each target, 0 where there is none; None unless requested."""

    def to(self, device: torch.device) -> "Batch":
        """All that has a column per position on the device.  The rest stays where it is: on the CPU, where
        the model sees without waiting for the device that no row is fresh, and copies no state then."""
        return self.map_positions(lambda part: part.to(device, non_blocking=True))

    def map_positions(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with a function applied to all tensors that have a column per position."""
        distances, nats = self.evidence_distances, self.bayes_nats
        return self._replace(
            tokens=function(self.tokens),
            targets=function(self.targets),
            evidence_distances=None if distances is None else function(distances),
            bayes_nats=None if nats is None else function(nats),
        )


class SequenceModule(StatefulLM, L.LightningModule):
    """A language model that the training loop trains: its interface is StatefulLM's."""

    outside_budget: ClassVar[tuple[str, ...]] = ("embed", "positions", "head")
    """Attributes that a parameter budget leaves out: token embedding, position table, output projection."""
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Names of parameters without weight decay although they have the shape of a matrix (see
    `parameter_groups`)."""
    depthwise_kernels: ClassVar[tuple[str, ...]] = ()
    """Names of parameters, of a model or any of its modules, that have the shape of a matrix although each
    row is a filter of one channel: no matrices to Muon."""

    separates_projection: bool = False
    """True if `segment` is `logits` of `hidden_segment`, so that the loss of a large vocabulary needs no more
    than a chunk of all logits."""
    z_loss: float = 0.0
    """The weight of log(Z)^2 in the gradient of training, Z the denominator of the output's softmax."""
    optim: Optim
    train_state: State | None = None  # from one training step to the next, detached
    val_state: State | None = None  # the same in validation, never shared with training
    counts_hits: bool = False
    """True to have `hits` in train mode too (see `compute_loss`)."""
    _target_shares: Tensor | None = None  # summed since the last step; None in steps of one window

    def __init_subclass__(cls, **options: Any) -> None:
        """A class that overrides one of the methods that make logits, but not `hidden_segment`, doesn't
        separate the projection, as its logits may be others."""
        super().__init_subclass__(**options)
        defined = vars(cls).keys()
        reading = {"segment", "hidden_segment", "fold", "forward"}
        if "separates_projection" not in defined and defined & reading:
            cls.separates_projection = "hidden_segment" in defined

    def hidden_segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        """`segment` up to the output projection: the hidden states that `logits` makes logits of."""
        raise NotImplementedError(f"{type(self).__name__} doesn't separate its output projection")

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        """The output projection; each position's logits depend on its hidden state alone."""
        raise NotImplementedError(f"{type(self).__name__} doesn't separate its output projection")

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

    def costly_diagnostics(self, state: State) -> dict[str, float]:
        """As `diagnostics`, of what takes a search to measure: logged with each validation, of its state."""
        return {}

    def device_notes(self, device: torch.device) -> list[str]:
        """What a user of this device should know about the backends of the model's mixers."""
        parts: list[Any] = [part for part in self.modules() if hasattr(part, "device_note")]
        notes = (part.device_note(device) for part in parts)
        return list(dict.fromkeys(filter(None, notes)))

    def set_progress(self, step: int, steps: int) -> None:
        """Called before training step `step` of `steps`; for models with a schedule."""

    def count_parameters(self) -> int:
        """The number of parameters that the budget counts, tied ones once."""
        outside = {id(weight) for weight in self.weights_outside_budget()}
        return sum(weight.numel() for weight in self.parameters() if id(weight) not in outside)

    def weights_outside_budget(self) -> list[Tensor]:
        """The weights of the parts that `outside_budget` names; those that a model lacks have none."""
        parts = (getattr(self, name, None) for name in self.outside_budget)
        return [weight for part in parts for weight in _weights(part)]

    # -- called by the training loop

    def compute_loss(self, batch: Batch, state: State | None) -> tuple[dict[str, Tensor], State]:
        """Read one window after the state of the last one.

        Returns the loss in nats per target, `nats` (rows, time) (0 where there is no target), in eval mode or
        with `counts_hits` also `hits` (rows, time) (False where there is none), and the state after the
        window, detached.
        """
        lengths = (0,) * len(batch.tokens) if state is None else batch.lengths
        state = self._state_before(batch, state)
        targets, with_hits = batch.targets.flatten(), self.counts_hits or not self.training
        z_loss = self.z_loss if self.training else 0.0
        chunked = is_chunked(len(targets), self.vocab_size)
        if chunked and self.separates_projection and self._compiled_call_impl is None:
            with known_lengths(lengths, batch.tokens.shape[1]):
                hidden, state = self._read(self.hidden_segment, batch.tokens, state)
            hidden = hidden.flatten(0, 1)
            nats, hits = chunked_cross_entropy(
                self.logits, hidden, targets, self.vocab_size, with_hits, z_loss
            )
        else:
            with known_lengths(lengths, batch.tokens.shape[1]):
                logits, state = self(batch.tokens, state)
            nats, hits = cross_entropy(logits.flatten(0, 1), targets, with_hits, z_loss)
        num_targets = (targets != IGNORE).sum().clamp(min=1)  # no target at all: loss 0, not NaN
        outputs = {"loss": nats.sum() / num_targets, "nats": nats.detach().view_as(batch.targets)}
        if hits is not None:
            outputs["hits"] = hits.view_as(batch.targets)
        return outputs, detach(state)

    def _state_before(self, batch: Batch, state: State | None) -> State:
        """The state in which the window is read: that of fresh rows is empty.

        Where no row is fresh nothing is copied, unless an initial state is learned: it then has a gradient
        (zero) in every step and on every rank.
        """
        rows = len(batch.tokens)
        if state is None:
            return self.init_state(rows)
        if batch.lengths is not None:
            none_fresh = 0 not in batch.lengths
        else:
            none_fresh = is_readable(batch.fresh) and not batch.fresh.any()
        if none_fresh and not any(leaf.requires_grad for leaf in leaves(self.init_state(0))):
            return state
        fresh = batch.fresh.to(batch.tokens.device, non_blocking=True)
        return reset_rows(state, self.init_state(rows), fresh)

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
        return self.optim.configure(self)


def _weights(part: nn.Module | Tensor | None) -> list[Tensor]:
    if part is None:
        return []
    return [part] if isinstance(part, Tensor) else list(part.parameters())
