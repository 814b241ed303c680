"""The Focused Transformer's memory layer: attention over the segment and the nearest of all that came before.

Tworkowski et al. 2023, arXiv:2307.03170, section 3.1; training: memory/retrieval/crossbatch.py.  In row i,
with K_i the keys of its own segment and M_i those of all before it, which stand at the segment's first token:

    y = softmax(q [K_i ; the k keys of M_i nearest to q]^T / tau) [their values]

Carried: the last segment's keys and values, and the bank of those before them (memory/retrieval/bank.py).  In
training the gradient runs through the former; the bank is constant, and training leaves it empty.
Differs from the paper: see models/focused.py.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.attention.core import Attention
from zoo.memory.retrieval.bank import Bank, KNNMemory, attend
from zoo.memory.retrieval.crossbatch import context_rows, crossbatch
from zoo.state import tree_map


class FocusedState(NamedTuple):
    previous_keys: Float[Tensor, "rows heads segment head_dim"]  # of the last segment, without positions
    previous_values: Float[Tensor, "rows heads segment head_dim"]
    filled: Int[Tensor, " rows"]  # tokens of the last segment, 0 in a fresh row
    bank: Bank  # what came before the last segment


class FocusedAttention(Attention):
    """Reads one segment of each row, or several: then the segments of a row are rows of x, in their order."""

    def __init__(
        self,
        width: int,
        heads: int,
        segment_len: int,
        knn: KNNMemory,
        schedule: Mapping[float, int],
        *,
        normalised: bool = False,
        position: Literal["rope", "none"] = "rope",
        rope_base: float = 10000.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, heads, position=position, rope_base=rope_base, dropout=dropout)
        self.segment_len, self.knn = segment_len, knn
        self.schedule, self.share = dict(schedule), 0.0  # how far training is
        self.sharpness = None
        if normalised:  # at first the logits are as large as those of keys and queries of unit variance
            self.sharpness = nn.Parameter(torch.full((heads,), math.log(self.head_dim) / 2))

    @property
    def contexts(self) -> int:
        """d, here and now."""
        return self.schedule[max(share for share in self.schedule if share <= self.share)]

    def init_state(self, rows: int) -> FocusedState:
        weight = self.qkv.weight
        keys, values = weight.new_zeros(2, rows, self.heads, self.segment_len, self.head_dim)
        filled = torch.zeros(rows, dtype=torch.long, device=weight.device)
        return FocusedState(keys, values, filled, self.knn.init_state(rows, weight))

    def forward(
        self, x: Float[Tensor, "rows_and_segments time width"], state: FocusedState
    ) -> tuple[Float[Tensor, "rows_and_segments time width"], FocusedState]:
        q, k, v = self.project(x)
        if self.sharpness is not None:
            q, k = (F.normalize(part, dim=-1).to(v.dtype) for part in (q, k))
            q = q * (self.sharpness.exp() * self.head_dim**0.5).to(v.dtype)[:, None, None]
        near = k
        if self.position == "rope":
            positions = torch.arange(x.shape[1], device=x.device)
            q, near = self.turn(q, positions), self.turn(k, positions)
        y, bank = (self.contrast if self.training else self.attend_memory)(q, near, k, v, state)
        rows, spare = len(state.filled), self.segment_len - x.shape[1]
        keys, values = (
            F.pad(part.unflatten(0, (rows, -1))[:, -1], (0, 0, 0, spare)).to(state.previous_keys.dtype)
            for part in (k, v)
        )
        after = FocusedState(keys, values, torch.full_like(state.filled, x.shape[1]), bank)
        return self.out(rearrange(y, "b h t k -> b t (h k)")), after

    def contrast(
        self,
        q: Float[Tensor, "rows_and_segments heads time head_dim"],
        near: Float[Tensor, "rows_and_segments heads time head_dim"],
        k: Float[Tensor, "rows_and_segments heads time head_dim"],
        v: Float[Tensor, "rows_and_segments heads time head_dim"],
        state: FocusedState,
    ) -> tuple[Float[Tensor, "rows_and_segments heads time head_dim"], Bank]:
        """In training: all segments at once, each among the previous segments of d rows.  `near` are the keys
        with positions, `k` those without.  UserError if the schedule asks for more contexts than rows."""
        rows, most = len(state.filled), max(self.schedule.values())
        if most > rows:
            raise UserError(f"contexts: expected at most the {rows} rows of a batch, found {most}")
        segments = len(q) // rows
        same = torch.arange(segments, device=q.device)[:, None]  # segments of one place stand together
        seen = (context_rows(rows, self.contexts, q.device)[:, None] * segments + same).flatten(0, 1)
        return crossbatch(q, near, v, *previous(k, v, state), seen=seen, dropout=self.dropout.p), state.bank

    def attend_memory(
        self,
        q: Float[Tensor, "rows_and_segments heads time head_dim"],
        near: Float[Tensor, "rows_and_segments heads time head_dim"],
        k: Float[Tensor, "rows_and_segments heads time head_dim"],
        v: Float[Tensor, "rows_and_segments heads time head_dim"],
        state: FocusedState,
    ) -> tuple[Float[Tensor, "rows_and_segments heads time head_dim"], Bank]:
        """In evaluation: segment after segment, each with its row's past, and the bank after them; `near` and
        `k` as in training."""
        bank, rows, said = state.bank, len(state.filled), []
        parts = [part.unflatten(0, (rows, -1)).unbind(1) for part in (q, near, v, *previous(k, v, state))]
        for q_here, near_here, v_here, last_k, last_v, filled in zip(*parts, strict=True):
            said.append(self.look_up(q_here, near_here, v_here, last_k, last_v, filled, bank))
            bank = self.remember(bank, last_k, last_v, filled)
        return torch.stack(said, dim=1).flatten(0, 1), bank

    def look_up(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        near: Float[Tensor, "rows heads time head_dim"],
        v: Float[Tensor, "rows heads time head_dim"],
        last_k: Float[Tensor, "rows heads segment head_dim"],
        last_v: Float[Tensor, "rows heads segment head_dim"],
        filled: Int[Tensor, " rows"],
        bank: Bank,
    ) -> Float[Tensor, "rows heads time head_dim"]:
        """One segment with the nearest keys of the last segment's first `filled` and the bank; if all are
        asked for, nothing is searched."""
        (rows, _, time, _), length, device = q.shape, last_k.shape[2], q.device
        causal = torch.ones(time, time, dtype=torch.bool, device=device).tril().expand(rows, 1, -1, -1)
        real = (torch.arange(length, device=device) < filled[:, None])[:, None, None].expand(-1, -1, time, -1)
        keys, values = torch.cat([near, last_k], dim=2), torch.cat([v, last_v], dim=2)
        if self.knn.neighbours >= self.knn.capacity + self.segment_len:
            keys, values = (
                torch.cat([seen, *(block.to(q.dtype) for block in blocks)], dim=2)
                for seen, blocks in ((keys, bank.keys), (values, bank.values))
            )
            alive = torch.arange(self.knn.capacity, device=device) < bank.length[:, None]
            alive = alive[:, None, None].expand(-1, -1, time, -1)
            return F.scaled_dot_product_attention(q, keys, values, torch.cat([causal, real, alive], dim=3))

        ids = self.knn.search(q, bank)
        found_k, found_v = self.knn.gather(bank, ids)
        assert found_v is not None
        found_k, found_v = found_k.to(q.dtype), found_v.to(q.dtype)
        with torch.no_grad():  # the nearest of both
            scores = torch.cat([q @ last_k.mT, (found_k @ q[..., None])[..., 0]], dim=-1)
            there = torch.cat([real.expand(-1, q.shape[1], -1, -1), ids >= 0], dim=-1)
            scores = scores.masked_fill(~there, -torch.inf)
            nearest = scores.topk(min(self.knn.neighbours, scores.shape[-1])).indices
            nearest = torch.zeros_like(there).scatter_(-1, nearest, True)
            real, found = (there & nearest).tensor_split([length], dim=-1)
        allowed = torch.cat([causal.expand(-1, q.shape[1], -1, -1), real], dim=3)
        return attend(q, keys, values, allowed, found_k, found_v, found, self.head_dim**-0.5)

    def remember(
        self,
        bank: Bank,
        keys: Float[Tensor, "rows heads segment head_dim"],
        values: Float[Tensor, "rows heads segment head_dim"],
        filled: Int[Tensor, " rows"],
    ) -> Bank:
        """The bank with each row's first `filled` keys; rows of other lengths are written apart."""
        for length in filled.unique().tolist():
            if length:
                written = self.knn.add(bank, keys[:, :, :length], values[:, :, :length])
                bank = tree_map(partial(_where, filled == length), written, bank)
        return bank


def previous(
    k: Float[Tensor, "rows_and_segments heads time head_dim"],
    v: Float[Tensor, "rows_and_segments heads time head_dim"],
    state: FocusedState,
) -> tuple[
    Float[Tensor, "rows_and_segments heads segment head_dim"],
    Float[Tensor, "rows_and_segments heads segment head_dim"],
    Int[Tensor, " rows_and_segments"],
]:
    """Keys and values before each segment, and how many: what is carried, then the others of this call."""
    rows, old = len(state.filled), (state.previous_keys.to(k.dtype), state.previous_values.to(v.dtype))
    segments = len(k) // rows
    if segments == 1:
        return *old, state.filled
    keys, values = (
        torch.cat([first[:, None], new.unflatten(0, (rows, -1))[:, :-1]], dim=1).flatten(0, 1)
        for first, new in zip(old, (k, v), strict=True)
    )
    return keys, values, F.pad(state.filled[:, None], (0, segments - 1), value=k.shape[2]).flatten()


def _where(rows: Bool[Tensor, " rows"], new: Tensor, old: Tensor) -> Tensor:
    """Only the rows marked, without a copy of what is shared anyway."""
    if new is old or bool(rows.all()):
        return new
    return torch.where(rows.view(-1, *[1] * (old.ndim - 1)), new, old)
