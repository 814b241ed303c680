"""The interface that every architecture implements, and the training step that all of them share.

An author writes `init_state` and `segment` and declares a few traits; the rest is inherited.  Letters used
for shapes in the whole repository: rows B, time T, segment S, width D, heads H, head_dim K, memory tokens
M, vocabulary V.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.optim import Optim
from zoo.state import State, detach, reset_rows

IGNORE = -100  # the target of positions without a loss

Parallel = Literal["none", "segments", "segments_as_batch", "any_length"]


class Batch(NamedTuple):
    """One window of text for every row; the next batch continues where this one stops."""

    tokens: Int[Tensor, "rows time"]
    targets: Int[Tensor, "rows time"]  # IGNORE where there is none
    fresh: Bool[Tensor, " rows"]  # rows in which a new document begins


class DecodeRule:
    """Base of SequenceModule and Mixer, which keeps an inherited decode cache from being used wrongly.

    A class that overrides `segment` or `forward` but not `init_decode_cache` has `decodes = False`, since the
    inherited cache belongs to the inherited code; it may set `decodes` itself.
    """

    decodes: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        defined = vars(cls).keys()
        if "decodes" not in defined and defined & {"segment", "forward", "init_decode_cache"}:
            cls.decodes = "init_decode_cache" in defined


class SequenceModule(DecodeRule, L.LightningModule, ABC):
    """A language model that reads text segment by segment and hands a state from one to the next.

    Reading a long text is the fold of `segment` over it: cutting a call at any segment boundary changes
    nothing.  Every call of `segment` ends a segment: fewer tokens are a short segment, which the next call
    doesn't continue.  All further promises are laws in zoo/contract.py.
    """

    vocab_size: int
    segment_len: int
    remembers: bool = True
    """False for a baseline without memory: every segment starts from an empty state."""
    learns_through_memory: bool | tuple[str, ...]
    """True if in train mode the gradient runs back through the state into earlier segments; or the names of
    the state's fields that it runs through."""
    cuts_anywhere: bool = False
    """True if a call may end at any token, also inside a segment, and the next call continues there."""
    mixes_rows_in_training: bool = False
    """True if in train mode a row's logits depend on the other rows of the batch."""
    parallel: Parallel = "none"
    """The longest input of one call of `segment`, so that `forward` needs few calls for a long text:
    `none`: one segment; `segments`: all full segments of a text, (rows, segments * S); `segments_as_batch`:
    the same, each segment a separate row, (rows * segments, S), a text's segments in order; `any_length`: a
    text of any length."""
    decodes: bool = False
    """True if `decode` can continue an open segment from a cache (see DecodeRule); if False, an open segment
    is read again from its beginning."""
    outside_budget: ClassVar[tuple[str, ...]] = ("embed", "positions", "head")
    """Attributes that a parameter budget leaves out: token embedding, position table, output projection."""

    optim: Optim
    train_state: State | None = None  # from one training step to the next, detached
    val_state: State | None = None  # the same in validation, never shared with training

    @abstractmethod
    def init_state(self, rows: int) -> State:
        """The state before the first token, on the weights' device: every tensor has the rows first."""

    @abstractmethod
    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """Read one segment of at most `segment_len` tokens (more where `parallel` allows it): logits, and the
        state after it."""

    def fold(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """Read a text of any length segment by segment: the definition of `forward`."""
        if state is None:
            state = self.init_state(len(tokens))
        outputs = []
        for piece in tokens.split(self.segment_len, dim=1):
            logits, state = self.segment(piece, state)
            outputs.append(logits)
        return torch.cat(outputs, dim=1), state

    def forward(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """Read a text of any length: by `fold`, or in fewer calls of `segment` as `parallel` allows.

        Logits, states and gradients equal those of `fold`.
        """
        if self.parallel == "none":
            return self.fold(tokens, state)
        if state is None:
            state = self.init_state(len(tokens))
        if self.parallel == "any_length":
            return self.segment(tokens, state)
        end = tokens.shape[1] // self.segment_len * self.segment_len
        if not end:
            return self.segment(tokens, state)
        if self.parallel == "segments_as_batch":
            logits, state = self.segment(split_segments(tokens[:, :end], self.segment_len), state)
            logits = join_segments(logits, len(tokens))
        else:
            logits, state = self.segment(tokens[:, :end], state)
        if end < tokens.shape[1]:
            rest, state = self.segment(tokens[:, end:], state)
            logits = torch.cat([logits, rest], dim=1)
        return logits, state

    def init_decode_cache(self, state: State) -> Any:
        """An empty cache for `decode` at the start of the segment after `state`.

        None if this state allows no cache: the open segment is then read again from its beginning with every
        new token, which is the definition of continuing it.
        """
        return None

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        """Continue an open segment: the logits that `segment` would give at these tokens, and the cache with
        them added.  Without gradient, in eval mode; the input cache is not changed."""
        raise NotImplementedError(f"{type(self).__name__} has no cache of an open segment")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser (see zoo.optim): matrices decay, the rest doesn't."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        return [
            {"params": [weight for weight in weights if weight.ndim >= 2]},
            {"params": [weight for weight in weights if weight.ndim < 2], "decays": False},
        ]

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
        self.set_progress(self.trainer.global_step, self.trainer.max_steps)
        outputs, self.train_state = self.compute_loss(batch, self.train_state)
        return outputs

    def on_validation_epoch_start(self) -> None:
        self.val_state = None

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        outputs, self.val_state = self.compute_loss(batch, self.val_state)
        return outputs

    def on_validation_epoch_end(self) -> None:
        self.val_state = None

    def configure_optimizers(self) -> Any:
        return self.optim.build(self.parameter_groups())


def split_segments(
    tokens: Int[Tensor, "rows time"], segment_len: int
) -> Int[Tensor, "rows_and_segments segment"]:
    """The segments of a text of whole segments as rows of one batch, row by row."""
    return tokens.reshape(-1, segment_len)


def join_segments(
    outputs: Float[Tensor, "rows_and_segments segment features"], rows: int
) -> Float[Tensor, "rows time features"]:
    """The inverse of `split_segments`, of a vector for each token."""
    segments, segment_len, width = outputs.shape
    return outputs.reshape(rows, segments // max(1, rows) * segment_len, width)


def _weights(part: nn.Module | Tensor | None) -> list[Tensor]:
    if part is None:
        return []
    return [part] if isinstance(part, Tensor) else list(part.parameters())
