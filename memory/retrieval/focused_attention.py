"""The Focused Transformer's memory layer: attention over the segment and the nearest of all earlier keys.

Tworkowski et al. 2023, arXiv:2307.03170, section 3.1; training: memory/retrieval/crossbatch.py.  In row i,
with K_i the keys of its segment and M_i those of all earlier ones, at the position of the segment's first
token:

    y = softmax(q [K_i ; the k keys of M_i nearest to q]^T / tau) [their values]

Carried: the last segment's keys and values, and the bank of the tokens before it (memory/retrieval/bank.py).
In training the gradient runs through the former; the bank is constant, and training leaves it empty.
Differs from the paper: see models/focused.py.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, Unpack

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.attention.core import Attention, AttentionOptions
from zoo.memory.retrieval.bank import Bank, KNNMemory, attend
from zoo.memory.retrieval.crossbatch import Contexts, Segments, context_rows, crossbatch
from zoo.reads import Read, report_read, stored_tokens


class FocusedState(NamedTuple):
    previous_keys: Float[Tensor, "rows heads segment head_dim"]  # of the last segment, at position 0
    previous_values: Float[Tensor, "rows heads segment head_dim"]
    filled: Int[Tensor, " rows"]  # tokens of the last segment, 0 in a fresh row
    bank: Bank  # the tokens before the last segment


class FocusedAttention(Attention):
    """Reads one or several segments of each row; the segments of a row are consecutive rows of x."""

    support = "rotation"

    def __init__(
        self,
        width: int,
        heads: int,
        segment_len: int,
        knn: KNNMemory,
        schedule: Mapping[float, int],
        *,
        normalised: bool = False,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(width, heads, **options)
        self.segment_len, self.knn = segment_len, knn
        self.schedule, self.progress = dict(schedule), 0.0  # fraction of the training steps done
        self.sharpness = None
        if normalised:  # initially the logits have the scale of those of keys and queries with unit variance
            self.sharpness = nn.Parameter(torch.full((heads,), math.log(self.head_dim) / 2))

    @property
    def num_contexts(self) -> int:
        """d at the current progress."""
        return self.schedule[max(share for share in self.schedule if share <= self.progress)]

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
        positions, bank = range(x.shape[1]), state.bank
        segments = Segments(self.positions.rotate(q, positions), self.positions.rotate(k, positions), v)
        k = self.positions.at_start(k)  # where the memory has them
        if self.training:
            contexts, seen_rows = self.training_contexts(k, v, state)
            y = crossbatch(segments, contexts, seen_rows, self.dropout.p)
        else:
            y, bank = self.attend_memory(segments, previous_segments(k, v, state), bank)
        rows, padding = len(state.filled), self.segment_len - x.shape[1]
        keys, values = (
            F.pad(part.unflatten(0, (rows, -1))[:, -1], (0, 0, 0, padding)).to(state.previous_keys.dtype)
            for part in (k, v)
        )
        after = FocusedState(keys, values, torch.full_like(state.filled, x.shape[1]), bank)
        return self.out_proj(rearrange(y, "b h t k -> b t (h k)")), after

    def training_contexts(
        self,
        k: Float[Tensor, "rows_and_segments heads time head_dim"],
        v: Float[Tensor, "rows_and_segments heads time head_dim"],
        state: FocusedState,
    ) -> tuple[Contexts, Int[Tensor, "rows_and_segments d"]]:
        """The contexts of training, and the rows of them that each row sees: the previous segments of d rows.

        Raises UserError if the schedule ever has more contexts than there are rows.
        """
        rows, max_contexts = len(state.filled), max(self.schedule.values())
        if max_contexts > rows:
            raise UserError(f"contexts: expected at most the {rows} rows of a batch, found {max_contexts}")
        segments = len(k) // rows
        segment = torch.arange(segments, device=k.device)[:, None]  # a segment sees those of its index
        seen_rows = context_rows(rows, self.num_contexts, k.device)[:, None] * segments + segment
        return previous_segments(k, v, state), seen_rows.flatten(0, 1)

    def attend_memory(
        self, segments: Segments, previous: Contexts, bank: Bank
    ) -> tuple[Float[Tensor, "rows_and_segments heads time head_dim"], Bank]:
        """Evaluation: the segments in order, each attending to the bank; y and the final bank."""
        rows, outputs = len(bank.length), []
        parts = [part.unflatten(0, (rows, -1)).unbind(1) for part in (*segments, *previous)]
        for q, k, v, *context in zip(*parts, strict=True):
            last = Contexts(*context)
            outputs.append(self.attend_segment(Segments(q, k, v), last, bank))
            bank = self.write_bank(bank, last)
        return torch.stack(outputs, dim=1).flatten(0, 1), bank

    def attend_segment(
        self, segment: Segments, previous: Contexts, bank: Bank
    ) -> Float[Tensor, "rows heads time head_dim"]:
        """One segment of each row attends to itself and to the nearest keys of the previous segment and the
        bank; without a search if `neighbours` covers all of them."""
        q, device = segment.queries, segment.queries.device
        (rows, _, time, _), length = q.shape, previous.keys.shape[2]
        causal = torch.ones(time, time, dtype=torch.bool, device=device).tril().expand(rows, 1, -1, -1)
        valid = torch.arange(length, device=device) < previous.length[:, None]
        valid = valid[:, None, None].expand(-1, -1, time, -1)
        keys = torch.cat([segment.keys, previous.keys], dim=2)
        values = torch.cat([segment.values, previous.values], dim=2)
        if self.knn.neighbours >= self.knn.capacity + self.segment_len:
            keys, values = (
                torch.cat([part, *(block.to(q.dtype) for block in blocks)], dim=2)
                for part, blocks in ((keys, bank.keys), (values, bank.values))
            )
            stored = torch.arange(self.knn.capacity, device=device) < bank.length[:, None]
            stored = stored[:, None, None].expand(-1, -1, time, -1)
            mask = torch.cat([causal, valid, stored], dim=3)
            report_read(lambda: self.read(q, keys, mask, previous, bank))
            return F.scaled_dot_product_attention(q, keys, values, mask)

        slots = self.knn.search(q, bank)
        bank_keys, bank_values = self.knn.gather(bank, slots)
        assert bank_values is not None
        bank_keys, bank_values = bank_keys.to(q.dtype), bank_values.to(q.dtype)
        with torch.no_grad():  # the nearest of the previous segment's keys and the bank's
            scores = torch.cat([q @ previous.keys.mT, (bank_keys @ q[..., None])[..., 0]], dim=-1)
            valid = torch.cat([valid.expand(-1, q.shape[1], -1, -1), slots >= 0], dim=-1)
            scores = scores.masked_fill(~valid, -torch.inf)
            nearest = scores.topk(min(self.knn.neighbours, scores.shape[-1])).indices
            nearest = torch.zeros_like(valid).scatter_(-1, nearest, True)
            previous_mask, bank_mask = (valid & nearest).tensor_split([length], dim=-1)
        mask = torch.cat([causal.expand(-1, q.shape[1], -1, -1), previous_mask], dim=3)
        report_read(lambda: self.read(q, keys, mask, previous, bank, (slots, bank_keys, bank_mask)))
        return attend(q, keys, values, mask, bank_keys, bank_values, bank_mask, self.head_dim**-0.5)

    def read(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        keys: Float[Tensor, "rows heads keys head_dim"],
        mask: Bool[Tensor, "rows heads_or_one time keys"],
        previous: Contexts,
        bank: Bank,
        retrieved: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Read:
        """The attention to the previous segment and the bank of `attend_segment`, from its `keys` and `mask`
        of the segment, the previous one and, without the slots, keys and mask of `retrieved`, the bank."""
        length, before = bank.length, bank.length + previous.length
        ages = torch.arange(previous.keys.shape[2], device=q.device).expand(len(q), -1)
        last = torch.where(ages < previous.length[:, None], length[:, None] + ages, -1)
        tokens = last[:, None, None].expand(*q.shape[:3], -1)
        scores = (q @ keys.mT).masked_fill(~mask, -torch.inf)
        if retrieved is None:
            slots = torch.arange(self.knn.capacity, device=q.device).expand(len(q), -1)
            slots = torch.where(slots < length[:, None], slots, -1)[:, None, None].expand(*q.shape[:3], -1)
        else:
            slots, bank_keys, bank_mask = retrieved
            retrieved_scores = (bank_keys @ q[..., None])[..., 0].masked_fill(~bank_mask, -torch.inf)
            scores = torch.cat([scores, retrieved_scores], dim=-1)
        tokens = torch.cat([tokens, stored_tokens(slots, length, self.knn.capacity)], dim=-1)
        mass = (scores * self.head_dim**-0.5).softmax(-1)[..., -tokens.shape[-1] :]
        queries = before[:, None] + torch.arange(q.shape[2], device=q.device)
        return Read(self, queries, tokens, mass)

    def write_bank(self, bank: Bank, previous: Contexts) -> Bank:
        """The bank with each row's previous segment added."""
        return self.knn.add(bank, previous.keys, previous.values, counts=previous.length)


def previous_segments(
    k: Float[Tensor, "rows_and_segments heads time head_dim"],
    v: Float[Tensor, "rows_and_segments heads time head_dim"],
    state: FocusedState,
) -> Contexts:
    """The segment before each segment: the carried one before a row's first, then those of this call."""
    rows, before = len(state.filled), (state.previous_keys.to(k.dtype), state.previous_values.to(v.dtype))
    segments = len(k) // rows
    if segments == 1:
        return Contexts(*before, state.filled)
    keys, values = (
        torch.cat([first[:, None], new.unflatten(0, (rows, -1))[:, :-1]], dim=1).flatten(0, 1)
        for first, new in zip(before, (k, v), strict=True)
    )
    length = F.pad(state.filled[:, None], (0, segments - 1), value=k.shape[2]).flatten()
    return Contexts(keys, values, length)
