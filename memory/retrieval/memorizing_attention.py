"""Memorizing Transformer's attention: over the segment, and over the nearest stored keys, mixed by a gate.

Wu, Rabe, Hutchins & Szegedy 2022, arXiv:2203.08913, section 3.  In every head, with queries and keys of
length 1, R_i the rotation by position i and N_i the k keys of the memory M that are nearest to q_i:

    local_i     = softmax(s R_i q_i . R_j k_j) v_j        over j <= i of the segment
    retrieved_i = softmax(s q_i . k_j) v_j                over j in N_i; 0 while M is empty
    y_i         = g retrieved_i + (1 - g) local_i         g = sigmoid(b)
    M          <- the last `capacity` of M and the segment's (k_j, v_j)

Carried: M (memory/retrieval/bank.py), which is read first and then written.  It is constant to the gradient.
Differs from the paper: see models/memorizing.py.
"""

import math
from functools import partial
from typing import Unpack

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.memory.attention.core import Attention, AttentionOptions
from zoo.memory.retrieval.bank import Bank, KNNMemory
from zoo.reads import Read, report_read, stored_tokens

MAX_GATHERED = 2**26  # elements gathered from the bank at a time


def attend_local(
    q: Float[Tensor, "rows heads time head_dim"],
    k: Float[Tensor, "rows heads time head_dim"],
    v: Float[Tensor, "rows heads time head_dim"],
    scale: Float[Tensor, " heads"],
    bias: Float[Tensor, "heads time time"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "rows heads time head_dim"]:
    """Causal attention inside the segment; `bias` is added to the scaled scores."""
    q = q * scale.to(q.dtype)[:, None, None]
    if bias is not None:
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        bias = bias.masked_fill(later, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, bias, dropout, is_causal=bias is None, scale=1.0)


def attend_retrieved(
    knn: KNNMemory,
    bank: Bank,
    q: Float[Tensor, "rows heads time head_dim"],
    scale: Float[Tensor, " heads"],
    dropout: float = 0.0,
    gate: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "rows heads time head_dim"]:
    """Attention over the nearest keys of the bank, in batches of queries that limit the gathered keys; the
    backward pass gathers them again.  `gate` is what `blend` will be given, for those who watch."""
    slots, scaled = knn.search(q, bank), q * scale.to(q.dtype)[:, None, None]
    size = max(1, MAX_GATHERED // max(1, slots[:, :, :1].numel() * q.shape[3]))
    attend = partial(_attend_slots, knn, bank, dropout=dropout)
    if size < q.shape[2]:
        attend = partial(checkpoint, attend, use_reentrant=False)
    batches = zip(scaled.split(size, dim=2), slots.split(size, dim=2), strict=True)
    if gate is not None:
        report_read(lambda: _read(knn, bank, scaled, slots, gate))
    return torch.cat([attend(*batch) for batch in batches], dim=2)


def _read(knn: KNNMemory, bank: Bank, q: Tensor, slots: Tensor, gate: Tensor) -> Read:
    """As `_attend_slots`, of queries that are scaled already."""
    keys, _ = knn.gather(bank, slots)
    scores = (keys.to(q.dtype) @ q[..., None])[..., 0].masked_fill(slots < 0, -torch.inf)
    mass = gate.sigmoid()[:, None, None] * scores.softmax(-1).nan_to_num(0.0)  # of an empty bank
    queries = bank.length[:, None] + torch.arange(q.shape[2], device=q.device)
    return Read(knn, queries, stored_tokens(slots, bank.length, knn.capacity), mass)


def _attend_slots(
    knn: KNNMemory,
    bank: Bank,
    q: Float[Tensor, "rows heads time head_dim"],
    slots: Int[Tensor, "rows heads time neighbours"],
    dropout: float,
) -> Float[Tensor, "rows heads time head_dim"]:
    keys, values = knn.gather(bank, slots)
    assert values is not None
    keys, values = keys.detach().to(q.dtype), values.detach().to(q.dtype)
    scores = (keys @ q[..., None])[..., 0]
    mask = slots >= 0
    scores = scores.masked_fill(~mask & mask.any(-1, keepdim=True), -torch.inf)  # empty bank: values are 0
    weights = F.dropout(scores.softmax(-1).to(q.dtype), dropout)
    return (weights[..., None, :] @ values)[..., 0, :]


def blend(
    local: Float[Tensor, "rows heads time head_dim"],
    retrieved: Float[Tensor, "rows heads time head_dim"],
    gate: Float[Tensor, " heads"],
) -> Float[Tensor, "rows heads time head_dim"]:
    """g retrieved + (1 - g) local."""
    return torch.lerp(local, retrieved.to(local.dtype), gate.sigmoid().to(local.dtype)[:, None, None])


class MemorizingAttention(Attention):
    """Reads one or several segments of each row; the segments of a row are consecutive rows of x."""

    support = "rotation"

    def __init__(
        self,
        width: int,
        heads: int,
        knn: KNNMemory,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(width, heads, **options)
        self.knn = knn
        # initially the logits have the scale of those of keys and queries with unit variance
        self.sharpness = nn.Parameter(torch.full((heads,), math.log(self.head_dim) / 2))
        self.gate = nn.Parameter(torch.zeros(heads))  # b

    def init_state(self, rows: int) -> Bank:
        return self.knn.init_state(rows, self.qkv.weight)

    def forward(
        self, x: Float[Tensor, "rows_and_segments time width"], state: Bank
    ) -> tuple[Float[Tensor, "rows_and_segments time width"], Bank]:
        q, k, v = self.project(x)
        q, k = (F.normalize(part, dim=-1).to(v.dtype) for part in (q, k))
        scale, dropout = self.sharpness.exp(), self.dropout.p if self.training else 0.0
        q_rotated, k_rotated = (self.positions.rotate(part, range(x.shape[1])) for part in (q, k))
        local = attend_local(q_rotated, k_rotated, v, scale, dropout=dropout)
        retrieved = []
        segments = (part.unflatten(0, (len(state.length), -1)).unbind(1) for part in (q, k, v))
        for queries, keys, values in zip(*segments, strict=True):
            retrieved.append(attend_retrieved(self.knn, state, queries, scale, dropout, self.gate))
            state = self.knn.add(state, keys, values)
        y = blend(local, torch.stack(retrieved, dim=1).flatten(0, 1), self.gate)
        return self.out_proj(rearrange(y, "b h t k -> b t (h k)")), state
