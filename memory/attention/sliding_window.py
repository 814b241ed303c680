"""Sliding-window attention that carries its keys and values, with attention sinks by option.

Beltagy et al. 2020, arXiv:2004.05150 (window); Xiao et al. 2024, arXiv:2309.17453 (StreamingLLM's sinks).

    position p attends to the keys p-W+1 .. p of the whole text, and to the text's first `sinks` keys for ever

Carried from call to call: the last W-1 keys and values of every head, without positions (only distances
count, so a text may be of any length), the sinks', and how many tokens each row has read.

Positions as in StreamingLLM count places in the cache: sink s is min(p, sinks + W - 1) - s away from p.
Differs from the papers: nothing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from zoo.memory.attention.core import Attention, Position, alibi_slopes


class WindowState(NamedTuple):
    keys: Float[Tensor, "rows heads cache head_dim"]  # the last W-1, newest last
    values: Float[Tensor, "rows heads cache head_dim"]
    sink_keys: Float[Tensor, "rows heads sinks head_dim"]  # the text's first
    sink_values: Float[Tensor, "rows heads sinks head_dim"]
    length: Int[Tensor, " rows"]  # tokens since the row was fresh


class WindowAttention(Attention):
    """Attention over the last `window` tokens, this one included, whatever calls they came in."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        sinks: int = 0,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Position = "rope",
        rope_base: float = 10000.0,
        rotated: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            width,
            heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            position=position,
            rope_base=rope_base,
            rotated=rotated,
            bias=bias,
            out_bias=out_bias,
            dropout=dropout,
        )
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window, self.sinks = window, sinks

    def init_state(self, rows: int) -> WindowState:
        weight = self.qkv.weight

        def empty(length: int) -> Tensor:
            return weight.new_zeros(rows, self.kv_heads, length, self.head_dim)

        cache, sinks = self.window - 1, self.sinks
        length = torch.zeros(rows, dtype=torch.long, device=weight.device)
        return WindowState(empty(cache), empty(cache), empty(sinks), empty(sinks), length)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: WindowState
    ) -> tuple[Float[Tensor, "rows time width"], WindowState]:
        """Read any number of tokens."""
        y, after = self.mix(*self.project(x), state)
        return self.out(y), after

    def mix(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads time head_dim"],
        v: Float[Tensor, "rows kv_heads time head_dim"],
        state: WindowState,
    ) -> tuple[Float[Tensor, "rows time heads_width"], WindowState]:
        """In chunks of `window` queries that are all attended at once."""
        rows, time, cache = len(q), q.shape[2], self.window - 1
        keys, values = (
            torch.cat([old.to(new.dtype), new], 2) for old, new in ((state.keys, k), (state.values, v))
        )
        sink_keys, sink_values = self._sinks(k, v, state)
        after = WindowState(
            keys[:, :, time:].to(state.keys.dtype),
            values[:, :, time:].to(state.values.dtype),
            sink_keys.to(state.keys.dtype),
            sink_values.to(state.values.dtype),
            state.length + time,
        )

        chunk = min(self.window, time)
        chunks = -(-time // chunk)
        spare = chunks * chunk - time  # the last chunk is filled up; what is said there is cut off below
        q, keys, values = (F.pad(part, (0, 0, 0, spare)) for part in (q, keys, values))
        places = torch.arange(keys.shape[2], device=q.device) - cache  # of keys, from this call's first token
        distance = (
            torch.arange(chunk, device=q.device)[:, None]
            + cache
            - torch.arange(cache + chunk, device=q.device)
        )
        banded = (distance >= 0) & (distance < self.window)  # (chunk, cache + chunk)
        exists = places + state.length[:, None] >= self.sinks  # a sink is seen as a sink, never twice
        allowed = (
            banded & exists.unfold(1, cache + chunk, chunk)[:, :, None]
        )  # (rows, chunks, chunk, cache + chunk)

        q_chunks = rearrange(q, "b h (n c) k -> (b n) h c k", c=chunk)
        k_chunks, v_chunks = (
            rearrange(part.unfold(2, cache + chunk, chunk), "b h n k c -> (b n) h c k")
            for part in (keys, values)
        )
        if self.position == "rope":  # counted anew in each chunk: an angle stays exact however long the call
            near = torch.arange(cache + chunk, device=q.device)
            q_chunks = self.turn(q_chunks, near[cache:])
            k_chunks = self.turn(k_chunks, near)
        flat = rearrange(allowed, "b n c m -> (b n) 1 c m")
        if self.sinks:
            y = self._attend_with_sinks(
                q, q_chunks, k_chunks, v_chunks, flat, distance, sink_keys, sink_values, state
            )
        else:
            y = self.attend(q_chunks, k_chunks, v_chunks, flat, distance)
        y = rearrange(y, "(b n) h c k -> b (n c) (h k)", b=rows)[:, :time]
        return y, after

    def _sinks(self, k: Tensor, v: Tensor, state: WindowState) -> tuple[Tensor, Tensor]:
        """The sinks after this call: those already there, and the text's first tokens among the new ones."""
        slots = torch.arange(self.sinks, device=k.device)
        here = slots - state.length[:, None]  # the place in this call of each row's sinks
        new = ((here >= 0) & (here < k.shape[2]))[:, None, :, None]
        index = here.clamp(0, k.shape[2] - 1)[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        sink_keys, sink_values = (
            torch.where(new, part.gather(2, index), old.to(part.dtype))
            for part, old in ((k, state.sink_keys), (v, state.sink_values))
        )
        return sink_keys, sink_values

    def _attend_with_sinks(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_chunks: Float[Tensor, "pieces heads chunk head_dim"],
        k_chunks: Float[Tensor, "pieces kv_heads keys head_dim"],
        v_chunks: Float[Tensor, "pieces kv_heads keys head_dim"],
        allowed: Tensor,
        distance: Int[Tensor, "chunk keys"],
        sink_keys: Float[Tensor, "rows kv_heads sinks head_dim"],
        sink_values: Float[Tensor, "rows kv_heads sinks head_dim"],
        state: WindowState,
    ) -> Float[Tensor, "pieces heads chunk head_dim"]:
        """One softmax over sinks and window.  The sinks' distances differ from the window's, so the two are
        scored apart; a query's place in the cache stops growing once the cache is full."""
        groups, chunk = self.heads // self.kv_heads, q_chunks.shape[2]
        sink_keys, sink_values, k_chunks, v_chunks = (
            part.repeat_interleave(groups, dim=1) for part in (sink_keys, sink_values, k_chunks, v_chunks)
        )
        place = torch.arange(q.shape[2], device=q.device) + state.length[:, None]  # (rows, time), in the text
        cached = place.clamp(max=self.sinks + self.window - 1)  # in the cache
        slots = torch.arange(self.sinks, device=q.device)
        if self.position == "rope":
            q = self.turn(q, cached[:, None])
            sink_keys = self.turn(sink_keys, slots)
        to_sinks = q @ sink_keys.mT
        near = q_chunks @ k_chunks.mT
        if self.position == "alibi":
            slopes = alibi_slopes(self.heads, q)[:, None, None]
            to_sinks = to_sinks - slopes * (cached[:, None, :, None] - slots) * self.head_dim**0.5
            near = near - slopes * distance * self.head_dim**0.5
        to_sinks = to_sinks.masked_fill((slots > place[..., None])[:, None], -torch.inf)
        near = near.masked_fill(~allowed, -torch.inf)
        to_sinks = rearrange(to_sinks, "b h (n c) s -> (b n) h c s", c=chunk)
        weights = (torch.cat([to_sinks, near], dim=-1) * self.head_dim**-0.5).softmax(-1)
        weights = self.dropout(weights)
        chunks = len(q_chunks) // len(q)
        sink_values = sink_values.repeat_interleave(chunks, dim=0)
        return weights[..., : self.sinks] @ sink_values + weights[..., self.sinks :] @ v_chunks
