"""Memory tokens: a few positions before and after a segment's, through which a transformer carries text on.

Bulatov et al. 2022, arXiv:2207.06881, section 3.

    [M_s ; x_1 .. x_S ; M_s]  ->  transformer  ->  [ _ ; y_1 .. y_S ; M_{s+1} ]

The first copy is read by the segment's tokens, the second one reads them and becomes the next memory.
"""

from typing import Literal, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.memory.attention.core import Attention, AttentionOptions

MemoryAttention = Literal["causal", "block"]


def surround_with_memory(
    memory: Float[Tensor, "rows memory width"], x: Float[Tensor, "rows time width"]
) -> Float[Tensor, "rows augmented width"]:
    """The segment with the memory before and after it."""
    memory = memory.to(x.dtype)
    return torch.cat([memory, x, memory], dim=1)


def block_mask(time: int, memory_tokens: int, device: torch.device) -> Bool[Tensor, "time time"]:
    """The paper's mask: causal, but the read memory's positions attend to one another, and so do the write
    memory's."""
    mask = torch.ones(time, time, dtype=torch.bool, device=device).tril()
    mask[:memory_tokens, :memory_tokens] = True
    mask[time - memory_tokens :, time - memory_tokens :] = True
    return mask


class BlockMemoryAttention(Attention):
    """Attention over a segment surrounded by `memory_tokens` memory tokens, with the paper's mask."""

    decodes = False
    support = "both_ways"

    def __init__(
        self, width: int, heads: int, memory_tokens: int, **options: Unpack[AttentionOptions]
    ) -> None:
        super().__init__(width, heads, **options)
        self.memory_tokens = memory_tokens

    def segment_mask(self, time: int, device: torch.device) -> Bool[Tensor, "time time"]:
        return block_mask(time, self.memory_tokens, device)
