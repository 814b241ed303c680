"""Landmark attention: a landmark token closes every block of tokens and is the gate to it.

Mohtashami & Jaggi 2023, arXiv:2305.16300, equations 2-4 and section 3.2.

    p = softmax(q k_j / sqrt(K))   over the tokens of the query's block and the landmarks of earlier blocks
    a_j = p_j                                               j a token of the query's block
    a_j = softmax over the block (q k_j / sqrt(K)) p_l      j a token of an earlier block with landmark l
    a_j = 0                                                 j a landmark

In train mode each segment is read alone.  In eval mode a query also reads the `topk` blocks of the bank whose
landmarks score highest, ties to the newest.  Positions are stingy: the newest `topk` blocks of the bank have
the positions just before the open block, all older blocks share those before them; retrieved blocks keep
their order.

Carried, in eval mode alone: the last `num_blocks` closed blocks and the open one, keys without positions,
without gradient (memory/retrieval/landmark_bank.py).  `head` selects for all queries of a segment together,
so that an earlier query depends on later ones: it is the paper's option, and it breaks causality by
definition.
Differs from the paper: with `topk` blocks in the bank or fewer, where its code fails or gives two blocks the
same positions, blocks keep their positions and missing blocks are masked.
"""

import math
from typing import Literal, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.memory.attention.chunked import gather_slots
from zoo.memory.attention.core import Attention, AttentionOptions
from zoo.memory.attention.position_kinds import build_positions
from zoo.memory.mixer import no_autocast
from zoo.memory.retrieval.landmark_bank import (
    BankState,
    LocalContext,
    append,
    gather_blocks,
    local_context,
    oldest_first,
)
from zoo.reads import Read, report_read
from zoo.state import State

Selection = Literal["token_and_head", "token", "head"]
MAX_GATHERED = 2**26  # elements of retrieved keys in memory at once: queries are processed in batches


class DecodeCache(NamedTuple):
    """The state before an open segment, and the segment's keys, without positions, and values."""

    state: BankState
    keys: Float[Tensor, "rows heads open head_dim"]
    values: Float[Tensor, "rows heads open head_dim"]


def masked_softmax(
    scores: Float[Tensor, "*rows keys"], mask: Bool[Tensor, "*rows_or_one keys"]
) -> Float[Tensor, "*rows keys"]:
    """Softmax over the keys in the mask, all zeros where it is empty; at least in float32."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


def grouped_softmax_loop(
    scores: Float[Tensor, "*rows time keys"], landmarks: Bool[Tensor, "*rows_or_one keys"]
) -> tuple[Float[Tensor, "*rows time keys"], Float[Tensor, "*rows time keys"]]:
    """a and p above, for landmarks at any positions; the queries are at the last of the keys' positions."""
    time, keys = scores.shape[-2:]
    mask = torch.ones(time, keys, dtype=torch.bool, device=scores.device).tril(keys - time)
    landmarks = landmarks[..., None, :]
    block = landmarks.long().cumsum(-1) - landmarks.long()  # a landmark belongs to the block that it closes
    query_block = block.masked_fill(~mask, -1).amax(-1, keepdim=True)
    p = masked_softmax(scores, mask & torch.where(landmarks, block < query_block, block == query_block))
    weights = p * ~landmarks
    for index in range(int(landmarks.sum(-1).max())):
        inside = masked_softmax(scores, mask & (block == index) & ~landmarks)
        gate = (p * (landmarks & (block == index))).sum(-1, keepdim=True)  # 0 for the query's block
        weights = weights + inside * gate
    return weights, p


def grouped_softmax(
    scores: Float[Tensor, "rows heads time blocks block"],
    mask: Bool[Tensor, "*rows_or_one time blocks block"],
    query_block: Int[Tensor, "*rows_or_none time"],
) -> Float[Tensor, "rows heads time blocks block"]:
    """a for keys in whole blocks, the landmark last in each; `query_block` is the index of each query's."""
    blocks = torch.arange(scores.shape[-2], device=scores.device)
    index = query_block.expand(scores.shape[:3])[..., None, None]
    tokens, token_mask = scores[..., :-1], mask[..., :-1]
    gates, gate_mask = scores[..., -1], mask[..., -1] & (blocks < query_block[..., None])
    current, current_mask = (
        part.take_along_dim(index, -2).squeeze(-2) for part in (tokens, token_mask.expand(tokens.shape))
    )
    p_mask = torch.cat([gate_mask.expand(gates.shape), current_mask], dim=-1)
    p = masked_softmax(torch.cat([gates, current], dim=-1), p_mask)
    p_gates, p_current = p.tensor_split([len(blocks)], dim=-1)
    earlier = masked_softmax(tokens, token_mask) * p_gates[..., None]
    is_current = (blocks == query_block[..., None])[..., None]
    return F.pad(earlier + p_current[..., None, :] * is_current, (0, 1))


class LandmarkAttention(Attention):
    """Attention over a stream of tokens with a landmark after every `block_len - 1` of them.

    `segment_len` and `block_len` include landmarks.  With `num_blocks` 0 there is no bank: the layer reads
    its segment and the open block.  Rotary positions rotate the features (i, i + K/2), or `interleaved`
    (2i, 2i + 1).
    """

    support = "rotation"

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        segment_len: int,
        block_len: int,
        num_blocks: int,
        topk: int,
        selection: Selection = "token_and_head",
        interleaved: bool = False,
        **options: Unpack[AttentionOptions],
    ) -> None:
        options["context"] = segment_len
        super().__init__(width, heads, **options)
        self.segment_len, self.block_len, self.num_blocks = segment_len, block_len, num_blocks
        self.topk, self.selection = min(topk, num_blocks), selection
        if interleaved:
            self.positions = build_positions(
                options.get("position", "rope"),
                heads,
                self.head_dim,
                context=segment_len,
                support="rotation",
                interleaved=True,
            )

    def init_state(self, rows: int) -> BankState:
        """Zeros that take no memory until the first write."""
        zero, heads = self.qkv.weight.new_zeros(()), (rows, self.heads)
        blocks_per_segment = max(1, self.segment_len // self.block_len)
        size = math.gcd(self.num_blocks, blocks_per_segment)  # a segment fills entire ring blocks
        ring_block = zero.expand(*heads, size, self.block_len, self.head_dim)
        open_block = zero.expand(*heads, self.block_len - 1, self.head_dim)
        length = torch.zeros(rows, dtype=torch.long, device=zero.device)
        ring = (ring_block,) * (self.num_blocks // size)
        return BankState(ring, ring, open_block, open_block, length)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        """Read a segment of any length, or many whole ones; in train mode the state is neither read nor
        written."""
        if self.training:
            segment_len = min(self.segment_len, x.shape[1])
            y = self.attend_alone(rearrange(x, "b (n s) d -> (b n) s d", s=segment_len))
            return rearrange(y, "(b n) s d -> b (n s) d", n=x.shape[1] // segment_len), state
        outputs = []
        for q, k, v in zip(*(part.split(self.segment_len, dim=2) for part in self.project(x)), strict=True):
            y, local = self._attend_bank(q, k, v, state)
            state = append(state, local, q.shape[2])
            outputs.append(y)
        return self._merge_heads(torch.cat(outputs, dim=2)), state

    def attend_alone(
        self, x: Float[Tensor, "rows time width"], offset: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows time width"]:
        """Read segments without a bank; the first `offset` tokens of a row's first block are missing."""
        q, k, v = self.project(x)
        num_blocks = -(-x.shape[1] // self.block_len) + (offset is not None)
        offset = torch.zeros(len(x), dtype=torch.long, device=x.device) if offset is None else offset
        positions = torch.arange(num_blocks * self.block_len, device=x.device).expand(len(x), -1)
        k, v = (gather_slots(part, part[:, :, :0], offset, positions) for part in (k, v))
        queries = (offset[:, None] + torch.arange(x.shape[1], device=x.device))[:, None]
        q, k = self.positions.rotate(q, queries), self.positions.rotate(k, positions[:, None])
        causal = positions[:, None, None] <= queries[..., None]
        mask = (positions >= offset[:, None])[:, None, None] & causal
        return self._merge_heads(self._weights(self._scores(q, k), mask, queries // self.block_len) @ v)

    def _merge_heads(self, y: Float[Tensor, "rows heads time head_dim"]) -> Float[Tensor, "rows time width"]:
        return self.out_proj(rearrange(y, "b h t k -> b t (h k)"))

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * self.head_dim**-0.5) @ k.mT

    def _weights(self, scores: Tensor, mask: Tensor, query_block: Tensor) -> Tensor:
        """The grouped softmax, with the blocks' keys one after another in the last axis."""
        scores, mask = (part.unflatten(-1, (-1, self.block_len)) for part in (scores, mask))
        return self.dropout(grouped_softmax(scores, mask, query_block).to(scores.dtype)).flatten(-2)

    def init_decode_cache(self, state: BankState) -> DecodeCache:
        empty = state.open_keys[:, :, :0]
        return DecodeCache(state, empty, empty)

    def decode(
        self, x: Float[Tensor, "rows time width"], cache: DecodeCache
    ) -> tuple[Float[Tensor, "rows time width"], DecodeCache]:
        """Not for selection `head`, which depends on all queries of a segment."""
        q, *new = self.project(x)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(cache[1:], new, strict=True))
        y, _ = self._attend_bank(q, keys, values, cache.state)
        return self._merge_heads(y), DecodeCache(cache.state, keys, values)

    def _attend_bank(self, q: Tensor, k: Tensor, v: Tensor, state: BankState) -> tuple[Tensor, LocalContext]:
        """The last queries of a segment over its keys, causally, and the state; and the local context."""
        local = local_context(state, k, v)
        start = (self.topk + 1) * self.block_len  # rotary position of the open block
        time = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)
        positions = (state.open_length[:, None] + time)[:, None]  # of the queries, as `local.positions`
        mask = local.positions[:, None, None] <= positions[..., None]
        rotated_q = self.positions.rotate(q, start + positions)
        rotated = local._replace(keys=self.positions.rotate(local.keys, start + local.positions[:, None]))
        if not self.num_blocks:
            weights = self._weights(self._scores(rotated_q, rotated.keys), mask, positions // self.block_len)
            return weights @ local.values, local
        ids = self.choose_blocks(rotated_q, state)
        size = max(1, MAX_GATHERED // max(1, ids[:, :, 0].numel() * self.block_len * self.head_dim))
        y = [
            self._attend_retrieved(state, rotated, *batch)
            for batch in zip(
                *(part.split(size, dim=2) for part in (q, rotated_q, ids, positions, mask)), strict=True
            )
        ]
        return torch.cat(y, dim=2), local

    def _attend_retrieved(
        self,
        state: BankState,
        rotated: LocalContext,
        q: Float[Tensor, "rows heads time head_dim"],
        rotated_q: Float[Tensor, "rows heads time head_dim"],
        ids: Int[Tensor, "rows heads time topk"],
        positions: Int[Tensor, "rows 1 time"],
        mask: Bool[Tensor, "rows 1 time local"],
    ) -> Float[Tensor, "rows heads time head_dim"]:
        """Queries, at `positions` of the local context, over it and over the blocks `ids` of the bank."""
        block_len, topk = self.block_len, self.topk
        # rotated by its distance to the start of a block, a query meets keys rotated inside their blocks
        ranks = torch.arange(topk, device=q.device) + (ids >= self.num_blocks - topk).long()
        distance = (topk + 1) * block_len + positions[..., None] - ranks * block_len
        q_by_block = self.positions.rotate(q[:, :, :, None].expand(-1, -1, -1, topk, -1), distance)
        selected = gather_blocks(state, ids)
        inside = torch.arange(block_len, device=q.device)
        keys = self.positions.rotate(selected.keys.to(q.dtype), inside)[selected.indices]
        absent = (ids < 0)[..., None, None]  # whose values may be infinite, and 0 times that isn't 0
        values = selected.values.to(rotated.values.dtype)[selected.indices].masked_fill(absent, 0)
        retrieved_scores = self._scores(q_by_block[..., None, :], keys).flatten(-3)
        scores = torch.cat([retrieved_scores, self._scores(rotated_q, rotated.keys)], dim=-1)
        retrieved_mask = (ids >= 0).repeat_interleave(block_len, dim=-1)
        mask = torch.cat([retrieved_mask, mask.expand(*ids.shape[:3], -1)], dim=-1)
        weights = self._weights(scores, mask, topk + positions // block_len)
        retrieved, local = weights.tensor_split([topk * block_len], dim=-1)
        report_read(lambda: self._read(state, ids, positions, retrieved))
        return (retrieved[..., None, :] @ values.flatten(-3, -2)).squeeze(-2) + local @ rotated.values

    def _read(self, state: BankState, ids: Tensor, positions: Tensor, retrieved: Tensor) -> Read:
        """Tokens are counted without landmarks, which hold nothing."""
        freq = self.block_len - 1
        inside = torch.arange(self.block_len, device=ids.device)
        blocks = state.num_closed.view(-1, 1, 1, 1) - self.num_blocks + ids
        tokens = (blocks[..., None] * freq + inside).masked_fill((ids < 0)[..., None] | (inside == freq), -1)
        open_block, offset = positions[:, 0] // self.block_len, positions[:, 0] % self.block_len
        queries = (state.num_closed[:, None] + open_block) * freq + offset
        return Read(self, queries.masked_fill(offset == freq, -1), tokens.flatten(-2), retrieved)

    @torch.no_grad()
    def choose_blocks(
        self, q: Float[Tensor, "rows heads time head_dim"], state: BankState
    ) -> Int[Tensor, "rows heads time topk"]:
        """The blocks of the bank that each query reads, as indices into `state.keys`, the oldest first; -1,
        before them, where the bank has fewer."""
        dtype = torch.promote_types(state.open_keys.dtype, torch.float32)  # rounded scores would tie
        landmarks = oldest_first(tuple(blocks[..., -1:, :] for blocks in state.closed_keys), state.num_closed)
        landmarks = landmarks.squeeze(3).flip(2).to(dtype)  # newest first: max takes the first of equals
        age = torch.arange(self.num_blocks, device=q.device)
        ranks = (self.topk - age).clamp(min=0)  # 0 for all blocks older than the newest `topk`
        with no_autocast(q):
            rotated = self.positions.rotate(landmarks, ranks * self.block_len + self.block_len - 1)
            scores = self._scores(q.to(dtype), rotated)
        stored = (age < state.num_closed[:, None])[:, None, None]
        if self.selection != "token_and_head":
            shared = 1 if self.selection == "token" else 2
            scores = masked_softmax(scores, stored).amax(shared, keepdim=True)
        scores, chosen = scores.masked_fill(~stored, -torch.inf), []
        for _ in range(self.topk):
            best, index = scores.max(-1, keepdim=True)
            chosen.append((self.num_blocks - 1 - index).masked_fill(best == -torch.inf, -1))
            scores.scatter_(-1, index, -torch.inf)
        return torch.cat(chosen, dim=-1).sort(-1).values.expand(*q.shape[:3], -1)
