"""Shifted sparse attention, for cheaper training on long texts: attention inside groups of tokens.

Chen et al. 2024 (LongLoRA), arXiv:2309.12307, as in its `forward_flashattn`.

    first half of the heads     causal inside [0, G), [G, 2G), ..
    second half                 causal inside [0, G/2), [G/2, 3G/2), ..      the last group ends with the text

In training only: a model is read with full attention.  Differs from the paper: its listing rolls the second
half of the heads, which shows a text's end to its first tokens; the released code for flash attention and
this don't.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from zoo.memory.attention.positions import repeat_kv


def attend_in_groups(
    q: Float[Tensor, "rows heads time head_dim"],
    k: Float[Tensor, "rows heads time head_dim"],
    v: Float[Tensor, "rows heads time head_dim"],
    size: int,
    dropout: float = 0.0,
) -> Float[Tensor, "rows heads time head_dim"]:
    """Causal attention inside consecutive groups of `size` tokens, the last of which may be shorter."""
    rows, _, time, _ = q.shape
    if not time:
        return v
    size = min(size, time)
    q, k, v = (
        rearrange(F.pad(part, (0, 0, 0, -time % size)), "b h (n g) k -> (b n) h g k", g=size)
        for part in (q, k, v)
    )
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    return rearrange(y, "(b n) h g k -> b h (n g) k", b=rows)[:, :, :time]


def shifted_attention(
    q: Float[Tensor, "rows heads time head_dim"],
    k: Float[Tensor, "rows kv_heads time head_dim"],
    v: Float[Tensor, "rows kv_heads time head_dim"],
    group: int,
    dropout: float = 0.0,
) -> Float[Tensor, "rows heads time head_dim"]:
    """Attention of rotated queries and keys in groups, which half of the heads shift by half a group."""
    heads, half = q.shape[1], group // 2
    k, v = (repeat_kv(part, heads // part.shape[1]) for part in (k, v))
    parts = [part.tensor_split([heads // 2], dim=1) for part in (q, k, v)]
    (q1, q2), (k1, k2), (v1, v2) = parts
    y = attend_in_groups(q1, k1, v1, group, dropout)
    start = attend_in_groups(q2[:, :, :half], k2[:, :, :half], v2[:, :, :half], max(half, 1), dropout)
    rest = attend_in_groups(q2[:, :, half:], k2[:, :, half:], v2[:, :, half:], group, dropout)
    return torch.cat([y, torch.cat([start, rest], dim=2)], dim=1)
