"""`backend: flex`: sliding-window attention by torch's flex_attention, whose kernel skips the blocks of keys
that no query of a block sees.

Dong et al. 2024, arXiv:2412.05496.  Keys are in one tensor: the sinks, padded to whole blocks, then the
`window - 1` keys before the call and the call's own, of which query i sees the keys i .. i + window - 1.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # queries, and keys, of a block


def flex_window(
    q: Float[Tensor, "rows heads time head_dim"],
    k: Float[Tensor, "rows kv_heads sinks_and_keys head_dim"],
    v: Float[Tensor, "rows kv_heads sinks_and_keys head_dim"],
    length: Int[Tensor, " rows"],
    *,
    window: int,
    sinks: int,
    scale: float,
) -> Float[Tensor, "rows heads time head_dim"]:
    """Attention of rotated queries and keys.  `length` is the number of each row's tokens before the call;
    keys before a row's first token are masked, as are sinks later than a query."""
    time, front = q.shape[2], -(-sinks // BLOCK) * BLOCK
    q, k = q.to(v.dtype), k.to(v.dtype)  # autocast leaves normalised ones in float32
    k, v = (
        torch.cat([F.pad(part[:, :, :sinks], (0, 0, 0, front - sinks)), part[:, :, sinks:]], dim=2)
        if sinks
        else part
        for part in (k, v)
    )

    mask = BlockMask.from_kv_blocks(
        *_blocks(time, window, front, q.device),
        BLOCK_SIZE=BLOCK,
        # key `column - front` of the window, if the text has it and it isn't read as a sink; or a sink.  A
        # lambda, since flex_attention traces it and can't trace the decorator that checks shapes in tests
        mask_mod=lambda row, head, query, column: (
            (
                (column - front >= query)
                & (column - front < query + window)
                & (column - front - (window - 1) + length[row] >= sinks)
            )
            | ((column < sinks) & (column <= query + length[row]))
        ),
        seq_lengths=(time, k.shape[2]),
    )
    attend = flex_attention if torch.compiler.is_compiling() or not q.is_cuda else _compiled()
    y: Tensor = attend(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return y


def _blocks(
    time: int, window: int, front: int, device: torch.device
) -> tuple[Int[Tensor, "1 1 q_blocks"], Int[Tensor, "1 1 q_blocks kv_blocks"]]:
    """For each block of queries, the number of blocks of keys that it may see and the indices of these, the
    sinks' first; indices after that number are unused."""
    q_blocks, kv_blocks = -(-time // BLOCK), -(-(front + window - 1 + time) // BLOCK)
    sink_blocks = front // BLOCK
    query_block = torch.arange(q_blocks, device=device)[:, None]
    kv_block = torch.arange(kv_blocks, device=device)
    indices = torch.where(kv_block < sink_blocks, kv_block, kv_block + query_block)
    seen = 1 + (BLOCK + window - 2) // BLOCK  # blocks that a block of queries sees of the window's keys
    counts = (kv_blocks - query_block[:, 0]).clamp(max=sink_blocks + seen)
    return counts.int()[None, None], indices.clamp(max=kv_blocks - 1).int()[None, None]


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
