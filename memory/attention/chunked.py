"""Attention inside chunks of the text, the open chunk carried: Megalodon's attention.

Ma et al. 2024, arXiv:2404.08801, section 3.4.

    token i attends to the tokens j <= i with floor(j / chunk) = floor(i / chunk), at positions i mod chunk

Chunks are counted from the start of each row's text, however it is cut into calls.  Carried: the rotated
keys and the values of each row's open chunk.
Differs from the paper: nothing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from zoo.host import is_readable, row_lengths
from zoo.memory.attention.positions import Positions


class ChunkState(NamedTuple):
    keys: Float[Tensor, "rows heads cache head_dim"]  # at most chunk - 1, in order, then zeros
    values: Float[Tensor, "rows heads cache value_width"]
    filled: Int[Tensor, " rows"]  # the number of keys in the cache


def attend_in_chunks(
    q: Float[Tensor, "rows heads time head_dim"],
    k: Float[Tensor, "rows heads time head_dim"],
    v: Float[Tensor, "rows heads time value_width"],
    state: ChunkState,
    chunk: int,
    positions: Positions,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "rows heads time value_width"], ChunkState]:
    """Each token's output, and the chunk that is open after the last one; scores are not scaled.

    Tokens have slots counted from the start of their row's open chunk: slot // chunk is a token's chunk and
    slot % chunk its position there.
    """
    rows, _, time, _ = q.shape
    token_slots = state.filled[:, None] + torch.arange(time, device=q.device)  # (rows, time)
    end = _max_filled(state, time, chunk) + time
    q, k = (positions.rotate(part, (token_slots % chunk)[:, None]).to(v.dtype) for part in (q, k))

    def fill(new: Tensor, cached: Tensor, slots: Tensor) -> Tensor:
        return gather_slots(new, cached, state.filled, slots)

    if time < end <= chunk:  # every row stays in its open chunk: few queries, many keys
        slots = torch.arange(end, device=q.device).expand(rows, -1)
        keys, values = fill(k, state.keys, slots), fill(v, state.values, slots)
        mask = (slots[:, None] <= token_slots[..., None])[:, None]
        y = F.scaled_dot_product_attention(q, keys, values, mask, dropout, scale=1.0)
    else:
        size = min(chunk, end)
        slots = torch.arange(-(-end // size) * size, device=q.device).expand(rows, -1)
        q, keys, values = (
            rearrange(fill(new, cached, slots), "b h (n c) k -> (b n) h c k", c=size)
            for new, cached in ((q, torch.zeros_like(state.keys)), (k, state.keys), (v, state.values))
        )
        y = F.scaled_dot_product_attention(q, keys, values, None, dropout, is_causal=True, scale=1.0)
        y = rearrange(y, "(b n) h c k -> b h (n c) k", b=rows)
        y = y[:, :, :time] if end == time else y.take_along_dim(token_slots[:, None, :, None], 2)

    length = state.filled + time
    first = length // chunk * chunk  # the first slot of the chunk that is open now
    slots = first[:, None] + torch.arange(chunk - 1, device=q.device)
    empty = (slots >= length[:, None])[:, None, :, None]
    keys, values = (
        fill(new, cached, slots).masked_fill(empty, 0).to(cached.dtype)
        for new, cached in ((k, state.keys), (v, state.values))
    )
    return y, ChunkState(keys, values, length % chunk)


def _max_filled(state: ChunkState, time: int, chunk: int) -> int:
    """The most keys that a row's open chunk may hold before a call of `time` tokens, as the host knows."""
    lengths = row_lengths(len(state.filled))
    if lengths is not None and lengths.time == time:  # the call is the entire window
        return max((before % chunk for before in lengths.before), default=0)
    return int(state.filled.max()) if is_readable(state.filled) and len(state.filled) else chunk - 1


def gather_slots(
    new: Float[Tensor, "rows heads time width"],
    cached: Float[Tensor, "rows heads cache width"],
    cut: Int[Tensor, " rows"],
    slots: Int[Tensor, "rows slots"],
) -> Float[Tensor, "rows heads slots width"]:
    """The entries in these slots of each row: cached ones before the cut, new ones from it on.

    Entries past the end are undefined.
    """
    cache, time = cached.shape[2], new.shape[2]
    index = torch.where(slots < cut[:, None], slots, (slots - cut[:, None]).clamp(max=time - 1) + cache)
    return torch.cat([cached.to(new.dtype), new], dim=2).take_along_dim(index[:, None, :, None], 2)
