"""Attention inside chunks of the text, the open chunk carried: Megalodon's attention.

Ma et al. 2024, arXiv:2404.08801, section 3.4; rotary positions: Su et al. 2021, arXiv:2104.09864.

    token i attends to the tokens j <= i with floor(j / chunk) = floor(i / chunk), at positions i mod chunk

Chunks are counted from the start of each row's text, whatever calls it is read in.  Carried: the rotated keys
and the values of the chunk that is still open, per row.
Differs from the paper: nothing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from zoo.memory.attention.core import rotary


class ChunkState(NamedTuple):
    keys: Float[Tensor, "rows heads cache head_dim"]  # up to chunk - 1, the chunk's first first, 0 behind
    values: Float[Tensor, "rows heads cache value_width"]
    filled: Int[Tensor, " rows"]  # how many of them are there


def attend_in_chunks(
    q: Float[Tensor, "rows heads time head_dim"],
    k: Float[Tensor, "rows heads time head_dim"],
    v: Float[Tensor, "rows heads time value_width"],
    state: ChunkState,
    chunk: int,
    rope_base: float,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "rows heads time value_width"], ChunkState]:
    """What each token reads, and the chunk that is open behind the last one; scores are not scaled.

    Tokens have slots counted from the start of their row's open chunk: slot // chunk is a token's chunk and
    slot % chunk its place there, wherever the row stands.
    """
    rows, _, time, _ = q.shape
    slots = state.filled[:, None] + torch.arange(time, device=q.device)  # (rows, time)
    end = int(state.filled.max()) + time
    q, k = (_turned(part, (slots % chunk)[:, None], rope_base).to(v.dtype) for part in (q, k))

    if time < end <= chunk:  # nobody leaves the open chunk: queries as they are, few behind many keys
        places = torch.arange(end, device=q.device).expand(rows, -1)
        keys, values = (
            gather_slots(new, kept, state.filled, places)
            for new, kept in ((k, state.keys), (v, state.values))
        )
        seen = (places[:, None] <= slots[..., None])[:, None]
        y = F.scaled_dot_product_attention(q, keys, values, seen, dropout, scale=1.0)
    else:
        size = min(chunk, end)
        places = torch.arange(-(-end // size) * size, device=q.device).expand(rows, -1)
        q, keys, values = (
            rearrange(gather_slots(new, kept, state.filled, places), "b h (n c) k -> (b n) h c k", c=size)
            for new, kept in ((q, torch.zeros_like(state.keys)), (k, state.keys), (v, state.values))
        )
        y = F.scaled_dot_product_attention(q, keys, values, None, dropout, is_causal=True, scale=1.0)
        y = rearrange(y, "(b n) h c k -> b h (n c) k", b=rows)
        y = y[:, :, :time] if end == time else y.take_along_dim(slots[:, None, :, None], 2)

    begin = (state.filled + time) // chunk * chunk  # the slot where the chunk now open begins
    places = begin[:, None] + torch.arange(chunk - 1, device=q.device)
    none = (places >= state.filled[:, None] + time)[:, None, :, None]
    kept_keys, kept_values = (
        gather_slots(new, kept, state.filled, places).masked_fill(none, 0).to(kept.dtype)
        for new, kept in ((k, state.keys), (v, state.values))
    )
    return y, ChunkState(kept_keys, kept_values, (state.filled + time) % chunk)


def gather_slots(
    new: Float[Tensor, "rows heads time width"],
    cached: Float[Tensor, "rows heads cache width"],
    cut: Int[Tensor, " rows"],
    slots: Int[Tensor, "rows slots"],
) -> Float[Tensor, "rows heads slots width"]:
    """What stands in these slots of each row: the cache before the cut, the new from there on, and behind the
    last one whatever."""
    cache, time = cached.shape[2], new.shape[2]
    index = torch.where(slots < cut[:, None], slots, (slots - cut[:, None]).clamp(max=time - 1) + cache)
    return torch.cat([cached.to(new.dtype), new], dim=2).take_along_dim(index[:, None, :, None], 2)


def _turned(x: Float[Tensor, "*rows time head_dim"], places: Tensor, base: float) -> Tensor:
    """Rotary positions on the pairs (2i, 2i + 1)."""
    halves = rotary(rearrange(x, "... (k two) -> ... (two k)", two=2), places, base)
    return rearrange(halves, "... (two k) -> ... (k two)", two=2)
