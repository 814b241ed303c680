"""The sinks of a sliding window (Xiao et al. 2024, arXiv:2309.17453), in one kernel with its keys."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class SinkInputs(NamedTuple):
    """Each chunk's queries, rotated for the sinks, and the rotated sinks that they see."""

    q: Float[Tensor, "rows_and_chunks heads chunk head_dim"]
    keys: Float[Tensor, "rows_and_chunks kv_heads sinks head_dim"]
    values: Float[Tensor, "rows_and_chunks kv_heads sinks head_dim"]
    q_positions: Int[Tensor, "rows_and_chunks 1 chunk"]
    slots: Int[Tensor, " sinks"]
    mask: Bool[Tensor, "rows_and_chunks 1 chunk sinks"]


def beside_sinks(
    q: Float[Tensor, "rows heads queries head_dim"],
    k: Float[Tensor, "rows kv_heads keys head_dim"],
    v: Float[Tensor, "rows kv_heads keys head_dim"],
    sinks: SinkInputs,
) -> tuple[
    Float[Tensor, "rows heads queries wide"],
    Float[Tensor, "rows kv_heads sinks_and_keys wide"],
    Float[Tensor, "rows kv_heads sinks_and_keys wide"],
]:
    """Queries, keys and values of one softmax over sinks and window.

    Queries are rotated differently for the two: both lie side by side in a head twice as wide, of which a key
    fills one half with zeros.
    """
    width = q.shape[-1]
    return (
        torch.cat([sinks.q, q], dim=-1),
        torch.cat([F.pad(sinks.keys, (0, width)), F.pad(k, (width, 0))], dim=2),
        F.pad(torch.cat([sinks.values, v], dim=2), (0, width)),  # kernels want equal widths
    )
