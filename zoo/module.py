"""The one interface every architecture implements, and the one training step they all share.

An author writes `init_state` and `segment` and declares a few traits; the rest is inherited.  Letters used
for shapes all over the house: rows B, time T, segment S, width D, heads H, head width K, memory slots M,
vocabulary V.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.optim import Optim
from zoo.state import State, detach, reset_rows

IGNORE = -100  # the target of a position that asks nothing


class Batch(NamedTuple):
    """One window of text for every row; the next batch goes on where this one stops."""

    tokens: Int[Tensor, "rows time"]
    targets: Int[Tensor, "rows time"]  # IGNORE where nothing is asked
    fresh: Bool[Tensor, " rows"]  # rows in which a new document begins


class SequenceModule(L.LightningModule, ABC):
    """A language model that reads text segment by segment and hands a state from one to the next.

    Reading a long text is the fold of `segment` over it: cutting a call at any segment boundary changes
    nothing. A call of `segment` closes its segment, a short one is a short segment.  What every model
    promises beyond the types is written as laws in zoo/contract.py.
    """

    vocab_size: int
    segment_len: int
    remembers: bool = True
    """False: every segment starts empty, the forgetting baseline; its state may have no tensors."""
    learns_through_memory: bool | tuple[str, ...]
    """Does the gradient run back through the state into earlier segments (in train mode)?  True, False, or
    the names of the state's fields that it runs through."""
    cuts_anywhere: bool = False
    """A call may end at any token and the next one goes on there."""
    mixes_rows_in_training: bool = False
    """Rows see one another in train mode."""
    outside_budget: ClassVar[tuple[str, ...]] = ("embed", "positions", "head")
    """Parts that a budget of parameters doesn't count: token embedding, position table, output projection."""

    optim: Optim
    train_state: State | None = None  # carried from one training step to the next, detached
    val_state: State | None = None  # the same in validation, never shared with training

    @abstractmethod
    def init_state(self, rows: int) -> State:
        """The state before the first token, on the weights' device: every tensor has the rows first."""

    @abstractmethod
    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """Read one segment of at most `segment_len` tokens: logits, and the state after it."""

    def fold(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """Read a text of any length segment after segment: what `forward` means."""
        if state is None:
            state = self.init_state(len(tokens))
        logits = []
        for piece in tokens.split(self.segment_len, dim=1):
            said, state = self.segment(piece, state)
            logits.append(said)
        return torch.cat(logits, dim=1), state

    def forward(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """The fold, or a parallel form that equals it, gradients included."""
        return self.fold(tokens, state)

    def init_decode_cache(self, state: State) -> Any:
        """An empty cache of the segment after `state`, for `decode`; None: this model has none, and an open
        segment is read again from its beginning at every piece, which is what going on in it means."""
        return None

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        """Read on inside an open segment: the logits that `segment` would give at these tokens, and the cache
        with them.  Without gradient, in eval mode; the cache given in is not changed."""
        raise NotImplementedError(f"{type(self).__name__} has no cache of an open segment")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser (see zoo.optim): matrices decay, the rest doesn't."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        return [
            {"params": [weight for weight in weights if weight.ndim >= 2]},
            {"params": [weight for weight in weights if weight.ndim < 2], "decays": False},
        ]

    def diagnostics(self, state: State) -> dict[str, float]:
        """What is worth watching in the carried state, logged under memory/."""
        return {}

    def set_progress(self, step: int, steps: int) -> None:
        """Told before each training step how far training is: for schedules, and for nothing else."""

    def count_parameters(self) -> int:
        """Parameters that the budget counts, tied ones once."""
        outside = {id(w) for part in self.outside_budget for w in _weights(getattr(self, part, None))}
        return sum(weight.numel() for weight in self.parameters() if id(weight) not in outside)

    # -- the loop's side

    def compute_loss(self, batch: Batch, carried: State | None) -> tuple[dict[str, Tensor], State]:
        """Read one window: loss in nats per asked target, `nats` (rows, time) (0 where nothing is asked) and
        `hits` (rows, time), and the state to carry on, detached."""
        # Also where no row is fresh: the weights of an initial state have their gradient, 0, on every rank.
        empty = self.init_state(len(batch.tokens))
        carried = empty if carried is None else reset_rows(carried, empty, batch.fresh)
        logits, state = self(batch.tokens, carried)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(logits.mT, batch.targets, ignore_index=IGNORE, reduction="none")
        asked = (batch.targets != IGNORE).sum().clamp(min=1)  # a window that asks nothing has loss 0, not NaN
        hits = logits.argmax(-1) == batch.targets
        return {"loss": nats.sum() / asked, "nats": nats.detach(), "hits": hits}, detach(state)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        self.set_progress(self.trainer.global_step, self.trainer.max_steps)
        said, self.train_state = self.compute_loss(batch, self.train_state)
        return said

    def on_validation_epoch_start(self) -> None:
        self.val_state = None

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        said, self.val_state = self.compute_loss(batch, self.val_state)
        return said

    def on_validation_epoch_end(self) -> None:
        self.val_state = None

    def configure_optimizers(self) -> Any:
        return self.optim.build(self.parameter_groups())


def written_for(part: nn.Module, method: str, *others: str) -> bool:
    """Whether an object's `method` knows of its `others`: no subclass has overridden one of them since."""

    def definer(name: str) -> type:
        return next((kind for kind in type(part).__mro__ if name in vars(kind)), object)

    return all(issubclass(definer(method), definer(name)) for name in others)


def _weights(part: nn.Module | Tensor | None) -> list[Tensor]:
    if part is None:
        return []
    return [part] if isinstance(part, Tensor) else list(part.parameters())
