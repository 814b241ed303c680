"""Unlimiformer's attention: over the segment, and over the nearest of all inputs that the layer has read.

Bertsch et al. 2023, arXiv:2305.01625, section 2.3.  A layer stores its inputs h_j themselves; R_i rotates by
position i; in each head, over j <= i of the segment (local) and j in N_i of the stored inputs (retrieved):

    z_i = q_i W_k              the query in model space: one index of h serves all heads
    N_i = the k largest z_i h_j = q_i (W_k h_j + b_k) - q_i b_k
    local_ij = R_i q_i . R_j k_j        retrieved_ij = z_i h_j + q_i b_k
    p_i = softmax([local_i ; retrieved_i] / sqrt(K))
    y_i = W_o [sum_local p_ij v_j + W_v sum_retrieved p_ij h_j + b_v sum_retrieved p_ij]

Carried: the last `capacity` inputs (memory/retrieval/bank.py), which have no positions.  In train mode the
bank is neither read nor written; with `retrieval_training` it is, and the gradient runs into what was stored
in the same window, but not through the choice of N_i.
Differs from the paper: see models/unlimiformer.py.
"""

import itertools
from typing import Unpack

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zoo.memory.attention.core import Attention, AttentionOptions
from zoo.memory.attention.positions import repeat_kv
from zoo.memory.retrieval.bank import Bank, KNNMemory

MAX_GATHERED = 2**26  # elements gathered from the bank at a time


class UnlimiformerAttention(Attention):
    """Reads one or several segments of each row; the segments of a row are consecutive rows of x."""

    def __init__(
        self,
        width: int,
        heads: int,
        knn: KNNMemory,
        *,
        retrieval_training: bool = False,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(width, heads, **options)
        self.knn, self.retrieval_training = knn, retrieval_training

    def init_state(self, rows: int) -> Bank:
        return self.knn.init_state(rows, self.qkv.weight)

    def forward(
        self, x: Float[Tensor, "rows_and_segments time width"], state: Bank
    ) -> tuple[Float[Tensor, "rows_and_segments time width"], Bank]:
        if self.training and not self.retrieval_training:
            return super().forward(x, state)
        q, k, v = self.project(x)
        parts = (q, self.local_scores(q, k), v, x)
        q, local, v, hidden = (part.unflatten(0, (len(state.length), -1)) for part in parts)
        outputs = []
        for segment in range(q.shape[1]):
            outputs.append(self.attend_memory(q[:, segment], local[:, segment], v[:, segment], state))
            state = self.knn.add(state, hidden[:, segment, None], detach=not self.training)
        y = torch.stack(outputs, dim=1).flatten(0, 1)
        return self.out_proj(rearrange(y, "b h t k -> b t (h k)")), state

    def local_scores(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads time head_dim"],
    ) -> Float[Tensor, "rows heads time time"]:
        """local / sqrt(K), and -inf for later tokens."""
        positions = torch.arange(q.shape[2], device=q.device)
        q, k = self.positions.rotate(q, positions), self.positions.rotate(k, positions)
        scores = self.head_dim**-0.5 * q @ repeat_kv(k, self.groups).mT
        bias = self.positions.bias(q, positions, positions)
        scores = scores if bias is None else scores + bias
        return scores.masked_fill(~self.segment_mask(q.shape[2], q.device), -torch.inf)

    def kv_projections(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each head's W_k and W_v (heads, head_dim, width), b_k and b_v (heads, head_dim)."""
        bias = self.qkv.weight.new_zeros(len(self.qkv.weight)) if self.qkv.bias is None else self.qkv.bias
        w_kv, b_kv = (
            rearrange(part, "(h k) ... -> h k ...", k=self.head_dim)[self.heads :]
            for part in (self.qkv.weight, bias)
        )
        w_k, w_v, b_k, b_v = (
            repeat_kv(part, self.groups, dim=0)
            for w_or_b in (w_kv, b_kv)
            for part in w_or_b.split(self.kv_heads)
        )
        return w_k, w_v, b_k, b_v

    def attend_memory(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        local: Float[Tensor, "rows heads time segment"],
        v: Float[Tensor, "rows kv_heads segment head_dim"],
        bank: Bank,
    ) -> Float[Tensor, "rows heads time head_dim"]:
        """y before W_o, of one segment: retrieved keys and values are never computed, only their sums."""
        w_k, w_v, b_k, b_v = self.kv_projections()
        z = einsum(q, w_k, "b h t k, h k d -> b h t d")
        offset = einsum(q, b_k, "b h t k, h k -> b h t")
        flat = [rearrange(part, "b h t ... -> b (h t) ...") for part in (z, local, offset)]
        slots = self.knn.search(flat[0][:, None], bank)[:, 0]
        size = max(1, MAX_GATHERED // max(1, len(slots) * slots.shape[2] * z.shape[3]))
        outputs = [
            checkpoint(self.joint_softmax, bank, *batch, use_reentrant=False)  # gathered again in backward
            for batch in zip(*(part.split(size, dim=1) for part in (*flat, slots)), strict=True)
        ]
        weights, context, mass = (
            rearrange(torch.cat(part, dim=1), "b (h t) ... -> b h t ...", h=self.heads)
            for part in zip(*outputs, strict=True)
        )
        return (
            weights @ repeat_kv(v, self.groups)
            + einsum(context, w_v, "b h t d, h k d -> b h t k")
            + einsum(mass, b_v, "b h t, h k -> b h t k")
        )

    def joint_softmax(
        self,
        bank: Bank,
        z: Float[Tensor, "rows queries width"],
        local: Float[Tensor, "rows queries segment"],
        offset: Float[Tensor, "rows queries"],
        slots: Int[Tensor, "rows queries neighbours"],
    ) -> tuple[
        Float[Tensor, "rows queries segment"],
        Float[Tensor, "rows queries width"],
        Float[Tensor, "rows queries"],
    ]:
        """p over the segment; sum p_ij h_j and sum p_ij over the retrieved inputs."""
        hidden = self.knn.gather(bank, slots[:, None])[0][:, 0].to(z.dtype)
        retrieved = einsum(z, hidden, "b n d, b n k d -> b n k") + offset[..., None]
        retrieved = (self.head_dim**-0.5 * retrieved).masked_fill(slots < 0, -torch.inf)
        scores = torch.cat([local, retrieved], dim=-1)
        p = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(z.dtype)
        p_local, p_retrieved = self.dropout(p).tensor_split([local.shape[-1]], dim=-1)
        return p_local, einsum(p_retrieved, hidden, "b n k, b n k d -> b n d"), p_retrieved.sum(-1)

    def attend_memory_loop(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        local: Float[Tensor, "rows heads time segment"],
        v: Float[Tensor, "rows kv_heads segment head_dim"],
        bank: Bank,
    ) -> Float[Tensor, "rows heads time head_dim"]:
        """The definition of `attend_memory`, query by query, with recomputed keys and values; no dropout."""
        w_k, w_v, b_k, b_v = self.kv_projections()
        y = torch.empty_like(q)
        for row, head, time in itertools.product(*map(range, q.shape[:3])):
            count = min(int(bank.length[row]), self.knn.capacity)
            stored = torch.cat(bank.keys, dim=2)[row, 0, :count].to(q.dtype)
            scores = stored @ (q[row, head, time] @ w_k[head])
            nearest = stored[scores.topk(min(self.knn.neighbours, count)).indices]
            keys = nearest @ w_k[head].T + b_k[head]
            retrieved = self.head_dim**-0.5 * keys @ q[row, head, time]
            values = torch.cat([repeat_kv(v, self.groups)[row, head], nearest @ w_v[head].T + b_v[head]])
            y[row, head, time] = torch.cat([local[row, head, time], retrieved]).softmax(0) @ values
        return y
