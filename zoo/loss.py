"""The loss of every target: from all logits, or from hidden states with the logits of a chunk at a time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE = -100  # the target of positions without a loss

LARGE_VOCABULARY = 4096
"""From this size on, the loss of a window with more than CHUNK_LOGITS logits is computed in chunks."""
CHUNK_LOGITS = 2**25  # of one chunk: 128 MiB in float32


def cross_entropy(
    logits: Float[Tensor, "tokens vocab"],
    targets: Int[Tensor, " tokens"],
    with_hits: bool,
    z_loss: float = 0.0,
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"] | None]:
    """Nats of every target, in float32 or wider, and whether it is the argmax (None without `with_hits`).

    Where there is no target, nats are 0 and there is no hit.  With `z_loss` the gradient is that of nats +
    z_loss log(Z)^2, Z the softmax's denominator (Chowdhery et al. 2022, arXiv:2204.02311, section 5); the
    value stays that of the nats.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nats = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    if z_loss:
        penalty = z_loss * logits.logsumexp(-1).square().masked_fill(targets == IGNORE, 0)
        nats = nats + (penalty - penalty.detach())
    return nats, logits.detach().argmax(-1) == targets if with_hits else None


def is_chunked(tokens: int, vocab_size: int) -> bool:
    """True if logits of this many tokens are computed in chunks (LARGE_VOCABULARY, CHUNK_LOGITS)."""
    return vocab_size >= LARGE_VOCABULARY and tokens * vocab_size > CHUNK_LOGITS


def chunked_cross_entropy(
    project: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "tokens width"],
    targets: Int[Tensor, " tokens"],
    vocab_size: int,
    with_hits: bool,
    z_loss: float = 0.0,
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"] | None]:
    """`cross_entropy` of the logits `project(hidden)`, of which no more than CHUNK_LOGITS exist at a time:
    the backward pass computes them again.

    Own code because `F.linear_cross_entropy` is missing before torch 2.13, knows no logits behind a cap, and
    computes its gradients in the forward pass, also where none is wanted.
    """

    def losses(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        kind = hidden.device.type
        # Each chunk casts the weights anew, so that autocast's one cast doesn't sum all chunks' gradients
        # in 16 bits.
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False):
                logits = project(hidden)
        else:
            logits = project(hidden)
        return cross_entropy(logits, targets, with_hits, z_loss)

    chunk = max(1, CHUNK_LOGITS // vocab_size)
    outputs = [
        checkpoint(losses, *part, use_reentrant=False, preserve_rng_state=False)  # nothing random in it
        for part in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    nats, hits = zip(*outputs, strict=True)
    return torch.cat(nats), torch.cat(hits) if with_hits else None
