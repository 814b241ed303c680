"""Transformer-XL's attention: relative positions, and the last segments' hidden states as memory.

Dai et al. 2019, arXiv:1901.02860, section 3.  With c = [memory ; h], d = i + M - j from query to key:

    q, k, v = W_q h, W_k c, W_v c
    score_ij = ((q_i + u) k_j + (q_i + v) W_R R_d) / sqrt(K)      over 0 <= d
    memory' = the last M rows of [memory ; h], without gradient

Carried: the layer's inputs h (not its keys, so that they are always read by the current weights), and their
number.  `same_length` limits attention to d < M; `clamp_len` > 0 takes R_min(d, clamp_len).
"""

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class XLCache(NamedTuple):
    """One layer's memory: its inputs at the last `memory_len` positions."""

    hidden: Float[Tensor, "rows memory width"]  # newest last
    filled: Int[Tensor, " rows"]  # valid positions, which are the last ones


class XLDecodeCache(NamedTuple):
    """Keys and values of the memory and of the segment so far."""

    keys: Float[Tensor, "rows heads keys head_dim"]
    values: Float[Tensor, "rows heads keys head_dim"]
    distances: Float[Tensor, "heads distances head_dim"]  # W_R R, in order of decreasing distance, to 0
    filled: Int[Tensor, " rows"]  # of the memory


def shift(raw: Float[Tensor, "*heads queries keys_and_one"]) -> Float[Tensor, "*heads queries keys"]:
    """Scores by key from scores by distance, whose columns are L-1 .. 0 and one of padding.

    Each row is shifted by one more column than the row before, which with rows of length L + 1 is a view.
    Columns of future keys have arbitrary values.
    """
    queries, keys = raw.shape[-2], raw.shape[-1] - 1
    return raw.flatten(-2).narrow(-1, queries - 1, queries * keys).unflatten(-1, (queries, keys))


class RelativeAttention(nn.Module):
    """Attention sub-layer with residual and LayerNorm (after it, or before it with `prenorm`).

    `qk_norm` divides q and k of each head, also those of the memory, by their root mean square, with a gain
    per feature, before u and v are added to q.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("content_bias", "position_bias")

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        memory_len: int,
        content_bias: nn.Parameter,
        position_bias: nn.Parameter,
        *,
        prenorm: bool = False,
        same_length: bool = False,
        qk_norm: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.heads, self.head_dim, self.memory_len = width, heads, head_dim, memory_len
        self.prenorm, self.same_length = prenorm, same_length
        self.wrapped = True  # as published; False: a future key in `mask` has distance 0
        self.content_bias, self.position_bias = content_bias, position_bias  # u, v, shared by all layers
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.relative = nn.Linear(width, heads * head_dim, bias=False)  # W_R
        self.out_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.q_norm = nn.RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.dropout, self.attention_dropout = nn.Dropout(dropout), nn.Dropout(attention_dropout)

    def init_state(self, rows: int) -> XLCache:
        weight = self.qkv.weight
        filled = torch.zeros(rows, dtype=torch.long, device=weight.device)
        return XLCache(weight.new_zeros(rows, self.memory_len, self.width), filled)

    def forward(
        self,
        h: Float[Tensor, "rows time width"],
        state: XLCache,
        R: Float[Tensor, "distances width"],
        segment_len: int,
        mask: Bool[Tensor, "segment keys"] | None = None,
    ) -> tuple[Float[Tensor, "rows time width"], XLCache]:
        """Read `time` tokens, a multiple of `segment_len`, all segments at once.

        `R` holds R for the distances memory + segment - 1 .. 0; `mask` replaces the causal mask.
        """
        rows, segments = len(h), h.shape[1] // segment_len
        before = torch.cat([state.hidden.to(h.dtype), h.detach()], dim=1)
        after = XLCache(
            before[:, h.shape[1] :].to(state.hidden.dtype),
            (state.filled + h.shape[1]).clamp(max=self.memory_len),
        )
        before = before[:, : self.memory_len + h.shape[1] - segment_len]
        q, k, v = self._project(h)
        old_k, old_v = self._memory(before)
        q = rearrange(q, "b h (n s) k -> (b n) h s k", s=segment_len)
        k, v = (
            torch.cat([self._windows(old, segment_len), new.unflatten(2, (segments, segment_len))], dim=3)
            for old, new in ((old_k, k), (old_v, v))
        )  # (rows, heads, segments, keys, head_dim)
        k, v = (rearrange(part, "b h n m k -> (b n) h m k") for part in (k, v))

        r = F.pad(self._split(self.relative(R)), (0, 0, 0, 1))  # (heads, keys + 1, head_dim)
        scale = self.head_dim**-0.5
        raw = torch.matmul((q + self.position_bias[:, None]) * scale, r.mT)
        position_scores = shift(raw)
        if mask is not None:  # the causal mask excludes future keys
            position_scores = self._with_future_keys(position_scores, raw, state, segments)
        scores = torch.matmul((q + self.content_bias[:, None]) * scale, k.mT) + position_scores
        mask = self.attention_mask(state, segments, segment_len, mask)
        weights = self.attention_dropout(scores.masked_fill_(~mask, -torch.inf).softmax(-1))
        y = rearrange(weights @ v, "(b n) h s k -> b (n s) (h k)", b=rows)
        y = h + self.dropout(self.out_proj(y))
        return (y if self.prenorm else self.norm(y)), after

    def init_decode_cache(self, state: XLCache, R: Float[Tensor, "distances width"]) -> XLDecodeCache:
        """A cache for `decode`, of the memory alone; `R` as in `forward`, for a full segment."""
        keys, values = self._memory(state.hidden.to(R.dtype))
        return XLDecodeCache(keys, values, self._split(self.relative(R)), state.filled)

    def decode(
        self, h: Float[Tensor, "rows time width"], cache: XLDecodeCache
    ) -> tuple[Float[Tensor, "rows time width"], XLDecodeCache]:
        """`forward` of a segment, causal, at the tokens after those in the cache."""
        q, k, v = self._project(h)
        keys, values = torch.cat([cache.keys, k], dim=2), torch.cat([cache.values, v], dim=2)
        positions = torch.arange(keys.shape[2], device=h.device)  # the memory's oldest is 0
        distance = positions[keys.shape[2] - h.shape[1] :, None] - positions
        farthest = cache.distances.shape[1] - 1
        scale = self.head_dim**-0.5
        raw = torch.matmul((q + self.position_bias[:, None]) * scale, cache.distances.mT)
        column = (farthest - distance.clamp(0, farthest)).expand(*raw.shape[:2], -1, -1)
        scores = torch.matmul((q + self.content_bias[:, None]) * scale, keys.mT) + raw.gather(-1, column)
        in_reach = (distance >= 0) & ((distance < self.memory_len) if self.same_length else True)
        stored = positions >= self.memory_len - cache.filled[:, None]  # (rows, keys)
        weights = scores.masked_fill(~(in_reach & stored[:, None, None]), -torch.inf).softmax(-1)
        y = h + self.out_proj(rearrange(weights @ values, "b h s k -> b s (h k)"))
        return (y if self.prenorm else self.norm(y)), cache._replace(keys=keys, values=values)

    def _split(
        self, x: Float[Tensor, "*rows time heads_width"]
    ) -> Float[Tensor, "*rows heads time head_dim"]:
        return rearrange(x, "... t (h k) -> ... h t k", h=self.heads)

    def _project(self, h: Float[Tensor, "rows time width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the heads."""
        x = self.qkv(self.norm(h) if self.prenorm else h)
        q, k, v = (self._split(part) for part in x.chunk(3, dim=-1))
        return self.q_norm(q), self.k_norm(k), v

    def _memory(self, before: Float[Tensor, "rows time width"]) -> tuple[Tensor, Tensor]:
        """Keys and values of earlier segments' hidden states; only the weights get a gradient."""
        x = self.norm(before) if self.prenorm else before
        x = F.linear(x, self.qkv.weight[self.heads * self.head_dim :])
        k, v = (self._split(part) for part in x.chunk(2, dim=-1))
        return self.k_norm(k), v

    def _windows(
        self, old: Float[Tensor, "rows heads time head_dim"], segment_len: int
    ) -> Float[Tensor, "rows heads segments memory head_dim"]:
        """Each segment's memory: the `memory_len` positions before it."""
        if not self.memory_len:
            return old.new_empty(*old.shape[:2], old.shape[2] // segment_len + 1, 0, old.shape[3])
        return rearrange(old.unfold(2, self.memory_len, segment_len), "b h n k m -> b h n m k")

    def _with_future_keys(
        self, position_scores: Tensor, raw: Tensor, state: XLCache, segments: int
    ) -> Float[Tensor, "rows_and_segments heads segment keys"]:
        """A key after its query has distance 0.  With `wrapped` it gets what the published shift wraps around
        to: 0 one step ahead, then the next query's farthest distances, of the memory's content only."""
        (segment_len, keys), device = position_scores.shape[-2:], raw.device
        ahead = torch.arange(keys, device=device) - torch.arange(segment_len, device=device)[:, None]
        ahead = ahead - self.memory_len
        if not self.wrapped:
            return torch.where(ahead > 0, raw[..., -2:-1], position_scores)
        segment_starts = torch.arange(segments, device=device) * segment_len
        empty = (self.memory_len - state.filled[:, None] - segment_starts).clamp(min=0).view(-1, 1, 1)
        column = torch.where(ahead == 1, keys, (empty + ahead - 2).clamp(min=0))  # column `keys` holds zeros
        column = column[:, None].expand(-1, self.heads, -1, -1)
        return torch.where(ahead > 0, raw.roll(-1, dims=-2).gather(-1, column), position_scores)

    def attention_mask(
        self, state: XLCache, segments: int, segment_len: int, mask: Tensor | None = None
    ) -> Bool[Tensor, "rows_and_segments 1 segment keys"]:
        """`mask` (causal and within reach by default), without the memory's empty positions."""
        device, memory = state.filled.device, self.memory_len
        if mask is None:
            distance = torch.arange(segment_len, device=device)[:, None] + memory
            distance = distance - torch.arange(memory + segment_len, device=device)
            mask = (distance >= 0) & ((distance < memory) if self.same_length else True)
        segment_starts = torch.arange(segments, device=device) * segment_len  # of each segment, in this call
        stored = (
            torch.arange(memory, device=device) + segment_starts[:, None]
            >= memory - state.filled[:, None, None]
        )
        stored = F.pad(stored, (0, segment_len), value=True)  # (rows, segments, keys)
        return rearrange(stored, "b n m -> (b n) 1 1 m") & mask


def xl_reach(segment_len: int, depth: int, stored: int) -> int:
    """The receptive field of a stack whose layers cache `stored` positions before the segment: an input that
    layer l cached has attended to its segment, and to the positions that were cached then."""
    return segment_len + (depth - 1) * math.ceil(stored / segment_len) * segment_len + stored
