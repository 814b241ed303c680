"""Unlimiformer's attention: over the segment, and over the nearest of all inputs that the layer has read.

Bertsch et al. 2023, arXiv:2305.01625, section 2.3.  A layer stores its inputs h_j themselves; R_i rotates by
position i, and multiplies by the factor of yarn and longrope; in each head, over j <= i of the segment
(local) and j in N_i of the stored inputs (retrieved):

    z_i = q_i W_k              the query in model space: one index of h serves all heads
    N_i = the k largest z_i h_j = q_i (W_k h_j + b_k) - q_i b_k
    local_ij = R_i q_i . R_j k_j        retrieved_ij = R_i q_i . R_m k_j = (R_(i-m) q_i) W_k h_j + (...) b_k
    p_i = softmax([local_i ; retrieved_i] / sqrt(K))
    y_i = W_o [sum_local p_ij v_j + W_v sum_retrieved p_ij h_j + b_v sum_retrieved p_ij]

The position m of a retrieved key counts from the segment's first token, S is `segment_len`:

    none     m = i             the paper's equation, without positions: to RoPE and ALiBi the distance 0
    start    m = 0             the segment's first token
    before   m = -S            one segment before it
    spread   m = floor(r w / n) - w     the text that is stored, scaled to at most the S positions before the
                               segment: r = 0 .. n - 1 is j's rank among the n stored tokens, w = min(n, S)

N_i doesn't depend on it.

Carried: the last `capacity` inputs (memory/retrieval/bank.py), without positions.  In train mode the
bank is neither read nor written; with `retrieval_training` it is, and the gradient runs into what was stored
in the same window, but not through the choice of N_i.
Differs from the paper: see models/unlimiformer.py.
"""

from typing import Literal, Unpack

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zoo.memory.attention.core import Attention, AttentionOptions
from zoo.memory.attention.positions import repeat_kv
from zoo.memory.retrieval.bank import Bank, KNNMemory
from zoo.reads import Read, report_read, stored_tokens

RetrievedPositions = Literal["before", "start", "spread", "none"]
MAX_GATHERED = 2**26  # elements gathered from the bank at a time


class UnlimiformerAttention(Attention):
    """Reads one or several segments of each row; the segments of a row are consecutive rows of x."""

    support = "retrieval"

    def __init__(
        self,
        width: int,
        heads: int,
        knn: KNNMemory,
        *,
        segment_len: int | None = None,
        retrieved_positions: RetrievedPositions = "none",
        retrieval_training: bool = False,
        **options: Unpack[AttentionOptions],
    ) -> None:
        if options.get("qk_norm"):
            raise ValueError("qk_norm: retrieved keys are never computed, and can't be normed")
        super().__init__(width, heads, **options)
        if segment_len is None and retrieved_positions in ("before", "spread"):
            raise ValueError(f"retrieved_positions {retrieved_positions} needs segment_len")
        self.knn, self.retrieval_training = knn, retrieval_training
        self.segment_len, self.retrieved_positions = segment_len or 0, retrieved_positions

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
            state = self.knn.add(state, hidden[:, segment, None], detach=not self.retrieval_training)
        y = torch.stack(outputs, dim=1).flatten(0, 1)
        return self.out_proj(rearrange(y, "b h t k -> b t (h k)")), state

    def local_scores(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads time head_dim"],
    ) -> Float[Tensor, "rows heads time time"]:
        """local / sqrt(K), and -inf for later tokens."""
        positions = torch.arange(q.shape[2], device=q.device)
        q, k = (self.positions.rotate(part, range(len(positions))) for part in (q, k))
        scores = self.head_dim**-0.5 * q @ repeat_kv(k, self.groups).mT
        bias = self.positions.bias(q, positions, positions)
        scores = scores if bias is None else scores + bias
        return scores.masked_fill(positions > positions[:, None], -torch.inf)

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
        """y before W_o, of one segment: retrieved values are never computed, only their sums."""
        w_k, w_v, _, b_v = self.kv_projections()
        z = einsum(q, w_k, "b h t k, h k d -> b h t d")
        slots = self.knn.search(rearrange(z, "b h t d -> b 1 (h t) d"), bank)
        slots = rearrange(slots, "b 1 (h t) n -> b h t n", h=self.heads)
        positions = torch.arange(q.shape[2], device=q.device)
        size = max(1, MAX_GATHERED // max(1, slots[:, :, 0].numel() * z.shape[3]))
        outputs = [
            checkpoint(self.joint_softmax, bank, *batch, use_reentrant=False)  # gathered again in backward
            for batch in zip(
                positions.split(size), *(part.split(size, dim=2) for part in (q, local, slots)), strict=True
            )
        ]
        weights, context, mass = (torch.cat(part, dim=2) for part in zip(*outputs, strict=True))
        return (
            weights @ repeat_kv(v, self.groups)
            + einsum(context, w_v, "b h t d, h k d -> b h t k")
            + einsum(mass, b_v, "b h t, h k -> b h t k")
        )

    def joint_softmax(
        self,
        bank: Bank,
        positions: Int[Tensor, " time"],
        q: Float[Tensor, "rows heads time head_dim"],
        local: Float[Tensor, "rows heads time segment"],
        slots: Int[Tensor, "rows heads time neighbours"],
    ) -> tuple[
        Float[Tensor, "rows heads time segment"],
        Float[Tensor, "rows heads time width"],
        Float[Tensor, "rows heads time"],
    ]:
        """p over the segment; sum p_ij h_j and sum p_ij over the retrieved inputs."""
        hidden = self.knn.gather(bank, rearrange(slots, "b h t n -> b 1 (h t) n"))[0]
        hidden = rearrange(hidden, "b 1 (h t) n d -> b h t n d", h=self.heads).to(q.dtype)
        retrieved = self.retrieved_scores(q, positions, hidden, self.key_positions(positions, slots, bank))
        scores = torch.cat([local, retrieved.masked_fill(slots < 0, -torch.inf)], dim=-1)
        p = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)
        report_read(
            lambda: Read(
                self,
                bank.length[:, None] + positions,
                stored_tokens(slots, bank.length, self.knn.capacity),
                p[..., local.shape[-1] :],
            )
        )
        p_local, p_retrieved = self.dropout(p).tensor_split([local.shape[-1]], dim=-1)
        return p_local, einsum(p_retrieved, hidden, "b h t n, b h t n d -> b h t d"), p_retrieved.sum(-1)

    def key_positions(
        self, positions: Int[Tensor, " time"], slots: Int[Tensor, "rows heads time neighbours"], bank: Bank
    ) -> Int[Tensor, "rows heads time neighbours"]:
        """m of the inputs in these slots, for queries at `positions`; undefined where a slot is -1."""
        if self.retrieved_positions == "none":
            return positions[:, None].expand_as(slots)
        if self.retrieved_positions == "start":
            return torch.zeros_like(slots)
        if self.retrieved_positions == "before":
            return torch.full_like(slots, -self.segment_len)
        length = bank.length[:, None, None, None]
        n = length.clamp(max=self.knn.capacity)
        r = (slots - (length - n)) % self.knn.capacity  # token t is in slot t % capacity
        w = n.clamp(max=self.segment_len)
        return r * w // n.clamp(min=1) - w

    def retrieved_scores(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        positions: Int[Tensor, " time"],
        hidden: Float[Tensor, "rows heads time neighbours width"],
        key_positions: Int[Tensor, "rows heads time neighbours"],
    ) -> Float[Tensor, "rows heads time neighbours"]:
        """retrieved / sqrt(K)."""
        w_k, _, b_k, _ = self.kv_projections()
        if self.retrieved_positions == "spread":
            keys = einsum(hidden, w_k, "b h t n d, h k d -> b h t n k") + b_k[:, None, None]
            q, keys = self.positions.rotate(q, positions), self.positions.rotate(keys, key_positions)
            scores = einsum(q, keys, "b h t k, b h t n k -> b h t n")
        else:  # all of a query's keys have one distance, by which it is rotated: keys are never computed
            # the keys' factor too is taken by the query
            q = self.positions.at_start(self.positions.rotate(q, positions - key_positions[..., 0]))
            z = einsum(q, w_k, "b h t k, h k d -> b h t d")
            offset = einsum(q, b_k, "b h t k, h k -> b h t")
            scores = einsum(z, hidden, "b h t d, b h t n d -> b h t n") + offset[..., None]
        scores = self.head_dim**-0.5 * scores
        bias = self.positions.bias(  # a query's keys have positions of their own: each query is a row
            rearrange(q, "b h t k -> (b t) h 1 k"),
            positions.repeat(len(q))[:, None, None],
            rearrange(key_positions, "b h t n -> (b t) h n"),
        )
        return scores if bias is None else scores + rearrange(bias, "(b t) h 1 n -> b h t n", b=len(q))
