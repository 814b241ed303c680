"""Landmark attention: a landmark token closes every block of tokens and is the gate to it.

Mohtashami & Jaggi 2023, arXiv:2305.16300, equations 2-4 and section 3.2.

    p = softmax(q k_j / sqrt(K))   over the tokens of the query's own block and the landmarks of earlier ones
    a_j = p_j                                               j a token of the query's own block
    a_j = softmax over the block (q k_j / sqrt(K)) p_l      j a token of an earlier block with landmark l
    a_j = 0                                                 j a landmark

In train mode each segment is read alone.  In eval mode a query also reads the `topk` blocks of the bank whose
landmarks score highest, ties to the newest.  Positions are stingy: the newest `topk` blocks of the bank stand
where they are, all older ones just before those; what is retrieved keeps its order.

Carried, in eval mode alone: the last `blocks` closed blocks and the open one, keys without positions; without
gradient (memory/retrieval/landmark_bank.py).  `head` chooses for a segment's queries together, so that an
earlier query learns what a later one asks for: it is the paper's option, and it breaks causality by
definition. Differs from the paper, whose code fails or overlaps positions with `topk` blocks or fewer: they
stand where they are, and what isn't there is masked.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.memory.attention.chunked import gather_slots
from zoo.memory.attention.core import Attention
from zoo.memory.retrieval.landmark_bank import BankState, add, gather, lines, oldest_first
from zoo.state import State

Selection = Literal["token_and_head", "token", "head"]
MAX_GATHERED = 2**26  # numbers of retrieved keys held at once: queries are read in pieces


class OpenLine(NamedTuple):
    """Of an open segment: the state before it, and its slots' keys, without positions, and values."""

    state: BankState
    keys: Float[Tensor, "rows heads slots head_dim"]
    values: Float[Tensor, "rows heads slots head_dim"]


def allowed_softmax(
    scores: Float[Tensor, "*rows keys"], allowed: Bool[Tensor, "*rows_or_one keys"]
) -> Float[Tensor, "*rows keys"]:
    """Softmax over what is allowed, all zeros where nothing is; at least in float32."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1) * allowed


def grouped_softmax_reference(
    scores: Float[Tensor, "*rows time keys"], landmarks: Bool[Tensor, "*rows_or_one keys"]
) -> tuple[Float[Tensor, "*rows time keys"], Float[Tensor, "*rows time keys"]]:
    """a and p above, wherever the landmarks stand; the queries are the last of the keys' positions."""
    time, keys = scores.shape[-2:]
    visible = torch.ones(time, keys, dtype=torch.bool, device=scores.device).tril(keys - time)
    landmarks = landmarks[..., None, :]
    block = landmarks.long().cumsum(-1) - landmarks.long()  # a landmark belongs to the block that it closes
    own = block.masked_fill(~visible, -1).amax(-1, keepdim=True)
    p = allowed_softmax(scores, visible & torch.where(landmarks, block < own, block == own))
    weights = p * ~landmarks
    for number in range(int(landmarks.sum(-1).max())):
        inside = allowed_softmax(scores, visible & (block == number) & ~landmarks)
        gate = (p * (landmarks & (block == number))).sum(-1, keepdim=True)  # 0: the own block's
        weights = weights + inside * gate
    return weights, p


def grouped_softmax(
    scores: Float[Tensor, "rows heads time blocks block"],
    visible: Bool[Tensor, "*rows_or_one time blocks block"],
    own: Int[Tensor, "*rows_or_none time"],
) -> Float[Tensor, "rows heads time blocks block"]:
    """a for keys that come in whole blocks, each with its landmark last; `own` is each query's block."""
    number = torch.arange(scores.shape[-2], device=scores.device)
    mine = own.expand(scores.shape[:3])[..., None, None]
    tokens, seen = scores[..., :-1], visible[..., :-1]
    gates, passable = scores[..., -1], visible[..., -1] & (number < own[..., None])
    near, near_seen = (
        part.take_along_dim(mine, -2).squeeze(-2) for part in (tokens, seen.expand(tokens.shape))
    )
    top = torch.cat([passable.expand(gates.shape), near_seen], dim=-1)
    p = allowed_softmax(torch.cat([gates, near], dim=-1), top)
    p_gates, p_near = p.tensor_split([len(number)], dim=-1)
    far = allowed_softmax(tokens, seen) * p_gates[..., None]
    return F.pad(far + p_near[..., None, :] * (number == own[..., None])[..., None], (0, 1))


class LandmarkAttention(Attention):
    """Reads slots: tokens, and a landmark after every `block - 1` of them.

    `segment` and `block` are lengths in slots.  A bank of 0 `blocks` is none: the layer reads its segment
    and the open block.  Rotary positions turn the features (i, i + K/2), or `interleaved` (2i, 2i + 1).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        segment: int,
        block: int,
        blocks: int,
        topk: int,
        selection: Selection = "token_and_head",
        interleaved: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, heads, bias=bias, dropout=dropout)
        self.segment, self.block, self.blocks, self.topk = segment, block, blocks, min(topk, blocks)
        self.selection, self.interleaved = selection, interleaved

    def init_state(self, rows: int) -> BankState:
        """Zeros that take no memory until something is written."""
        nought, head = self.qkv.weight.new_zeros(()), (rows, self.heads)
        size = math.gcd(self.blocks, max(1, self.segment // self.block))  # whole segments fill whole pieces
        piece = nought.expand(*head, size, self.block, self.head_dim)
        still_open = nought.expand(*head, self.block - 1, self.head_dim)
        read = torch.zeros(rows, dtype=torch.long, device=nought.device)
        ring = (piece,) * (self.blocks // size)
        return BankState(ring, ring, still_open, still_open, read)

    def turn(
        self, x: Float[Tensor, "*rows time head_dim"], positions: Int[Tensor, "*rows_or_none time"]
    ) -> Float[Tensor, "*rows time head_dim"]:
        if not self.interleaved:
            return super().turn(x, positions)
        halves = super().turn(rearrange(x, "... (k two) -> ... (two k)", two=2), positions)
        return rearrange(halves, "... (two k) -> ... (k two)", two=2)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        """Read a segment of any length, or many whole ones; in train mode the state is neither read nor
        written."""
        if self.training:
            segment = min(self.segment, x.shape[1])
            alone = self.attend_alone(rearrange(x, "b (n s) d -> (b n) s d", s=segment))
            return rearrange(alone, "(b n) s d -> b (n s) d", n=x.shape[1] // segment), state
        said = []
        for q, k, v in zip(*(part.split(self.segment, dim=2) for part in self.project(x)), strict=True):
            y, state = self._read(q, k, v, state)
            said.append(y)
        return self._leave(torch.cat(said, dim=2)), state

    def attend_alone(
        self, x: Float[Tensor, "rows time width"], here: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows time width"]:
        """Read segments as whole texts; the first `here` slots of a row's first block are missing."""
        q, k, v = self.project(x)
        count = -(-x.shape[1] // self.block) + (here is not None)
        here = torch.zeros(len(x), dtype=torch.long, device=x.device) if here is None else here
        places = torch.arange(count * self.block, device=x.device).expand(len(x), -1)
        k, v = (gather_slots(part, part[:, :, :0], here, places) for part in (k, v))
        queries = (here[:, None] + torch.arange(x.shape[1], device=x.device))[:, None]
        q, k = self.turn(q, queries), self.turn(k, places[:, None])
        visible = (places >= here[:, None])[:, None, None] & (places[:, None, None] <= queries[..., None])
        weights = self._weigh(self._score(q, k), visible, queries // self.block)
        return self._leave(weights @ v)

    def _leave(self, y: Float[Tensor, "rows heads time head_dim"]) -> Float[Tensor, "rows time width"]:
        return self.out(rearrange(y, "b h t k -> b t (h k)"))

    def _score(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * self.head_dim**-0.5) @ k.mT

    def _weigh(self, scores: Tensor, visible: Tensor, own: Tensor) -> Tensor:
        """Grouped softmax over keys in a line."""
        scores, visible = (x.unflatten(-1, (-1, self.block)) for x in (scores, visible))
        return self.dropout(grouped_softmax(scores, visible, own).to(scores.dtype)).flatten(-2)

    def init_decode_cache(self, state: BankState) -> OpenLine:
        nothing = state.open_keys[:, :, :0]
        return OpenLine(state, nothing, nothing)

    def decode(
        self, x: Float[Tensor, "rows time width"], cache: OpenLine
    ) -> tuple[Float[Tensor, "rows time width"], OpenLine]:
        """Not by selection `head`, which asks the whole segment at once."""
        q, *new = self.project(x)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(cache[1:], new, strict=True))
        y, _, _ = self._look(q, keys, values, cache.state)
        return self._leave(y), OpenLine(cache.state, keys, values)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, state: BankState) -> tuple[Tensor, BankState]:
        """One segment after what the state holds."""
        y, keys, values = self._look(q, k, v, state)
        return y, add(state, keys, values, q.shape[2])

    def _look(self, q: Tensor, k: Tensor, v: Tensor, state: BankState) -> tuple[Tensor, Tensor, Tensor]:
        """What the last slots of a segment read of it, up to themselves, and of the state; and the segment's
        line of keys and values."""
        block, topk = self.block, self.topk
        places, line, values = lines(state, k, v)
        start = (topk + 1) * block  # where the open block begins
        late = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)
        queries = (state.begun[:, None] + late)[:, None]  # places in the line
        visible = places[:, None, None] <= queries[..., None]
        turned, keys = self.turn(q, start + queries), self.turn(line, start + places[:, None])
        if not self.blocks:
            return self._weigh(self._score(turned, keys), visible, queries // block) @ values, line, values

        chosen = self.choose_blocks(turned, state)
        size = max(1, MAX_GATHERED // max(1, chosen[:, :, 0].numel() * block * self.head_dim))
        said = []
        for piece, asked, ids, at, seen in zip(
            *(part.split(size, dim=2) for part in (q, turned, chosen, queries, visible)), strict=True
        ):
            # turned back by where its block stands, a query meets keys at their places inside the block
            slots = torch.arange(topk, device=q.device) + (ids >= self.blocks - topk).long()
            apart = start + at[..., None] - slots * block
            apart_q = self.turn(piece[:, :, :, None].expand(-1, -1, -1, topk, -1), apart)
            kept_keys, kept_values, which = gather(state, ids)
            kept_keys = self.turn(kept_keys.to(q.dtype), torch.arange(block, device=q.device))[which]
            absent = (ids < 0)[..., None, None]  # 0 times whatever stands there may not be 0
            kept_values = kept_values.to(v.dtype)[which].masked_fill(absent, 0).flatten(-3, -2)
            kept_scores = self._score(apart_q[..., None, :], kept_keys).flatten(-3)
            scores = torch.cat([kept_scores, self._score(asked, keys)], dim=-1)
            there = (ids >= 0).repeat_interleave(block, dim=-1)
            shown = torch.cat([there, seen.expand(*there.shape[:3], -1)], dim=-1)
            weights = self._weigh(scores, shown, topk + at // block)
            kept, near = weights.tensor_split([topk * block], dim=-1)
            said.append((kept[..., None, :] @ kept_values).squeeze(-2) + near @ values)
        return torch.cat(said, dim=2), line, values

    @torch.no_grad()
    def choose_blocks(
        self, q: Float[Tensor, "rows heads time head_dim"], state: BankState
    ) -> Int[Tensor, "rows heads time topk"]:
        """Which blocks of the bank each query reads, as places in `state.keys`, oldest first; before them -1
        for what isn't there."""
        exact = torch.promote_types(state.open_keys.dtype, torch.float32)  # rounded scores would tie
        landmarks = oldest_first(tuple(piece[..., -1:, :] for piece in state.closed_keys), state.closed)
        landmarks = landmarks.squeeze(3).flip(2).to(exact)  # newest first: the first of equals is taken
        age = torch.arange(self.blocks, device=q.device)
        ranks = (self.topk - age).clamp(min=0)  # all old blocks stand at 0
        with torch.autocast(q.device.type, enabled=False):
            left = self._score(q.to(exact), self.turn(landmarks, ranks * self.block + self.block - 1))
        there = (age < state.closed[:, None])[:, None, None]
        if self.selection != "token_and_head":
            shared = 1 if self.selection == "token" else 2
            left = allowed_softmax(left, there).amax(shared, keepdim=True)
        left, found = left.masked_fill(~there, -torch.inf), []
        for _ in range(self.topk):
            best, place = left.max(-1, keepdim=True)
            found.append((self.blocks - 1 - place).masked_fill(best == -torch.inf, -1))
            left.scatter_(-1, place, -torch.inf)
        return torch.cat(found, dim=-1).sort(-1).values.expand(*q.shape[:3], -1)
