"""Sliding-window attention that carries its keys and values, with attention sinks by option.

Beltagy et al. 2020, arXiv:2004.05150 (window); Xiao et al. 2024, arXiv:2309.17453 (StreamingLLM's sinks).

    position p attends to the keys p-W+1 .. p of the whole text, and always to the text's first `sinks` keys

Carried from call to call: the last W-1 keys and values of every head, without positions (only distances
count, so a text may be of any length), the sinks', and each row's number of tokens.

A sink's distance is that in StreamingLLM's cache: sink s is min(p, sinks + W - 1) - s away from p.
Differs from the papers: nothing.
"""

from collections.abc import Iterable
from typing import NamedTuple, Unpack

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.memory.attention.core import Attention, AttentionOptions
from zoo.memory.attention.positions import repeat_kv


class WindowState(NamedTuple):
    keys: Float[Tensor, "rows heads cache head_dim"]  # the last W-1, newest last
    values: Float[Tensor, "rows heads cache head_dim"]
    sink_keys: Float[Tensor, "rows heads sinks head_dim"]  # the text's first
    sink_values: Float[Tensor, "rows heads sinks head_dim"]
    length: Int[Tensor, " rows"]  # tokens since the last reset


class WindowAttention(Attention):
    """Attention over the last `window` tokens, this one included, however they are cut into calls."""

    def __init__(
        self, width: int, heads: int, *, window: int, sinks: int = 0, **options: Unpack[AttentionOptions]
    ) -> None:
        super().__init__(width, heads, **options)
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        if options.get("position") == "learned":
            raise ValueError(
                "a window needs positions that only count distances: rope, alibi or none, not learned"
            )
        self.window, self.sinks = window, sinks

    def init_state(self, rows: int) -> WindowState:
        weight = self.qkv.weight

        def zeros(length: int) -> Tensor:
            return weight.new_zeros(rows, self.kv_heads, length, self.head_dim)

        cache, sinks = self.window - 1, self.sinks
        length = torch.zeros(rows, dtype=torch.long, device=weight.device)
        return WindowState(zeros(cache), zeros(cache), zeros(sinks), zeros(sinks), length)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: WindowState
    ) -> tuple[Float[Tensor, "rows time width"], WindowState]:
        """Read any number of tokens."""
        y, after = self.mix(*self.project(x), state)
        return self.out_proj(y), after

    def mix(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads time head_dim"],
        v: Float[Tensor, "rows kv_heads time head_dim"],
        state: WindowState,
    ) -> tuple[Float[Tensor, "rows time heads_width"], WindowState]:
        """Attention in chunks of half a window of queries, each chunk with the keys in its reach."""
        rows, time, cache = len(q), q.shape[2], self.window - 1
        keys, values = (
            torch.cat([old.to(new.dtype), new], 2) for old, new in ((state.keys, k), (state.values, v))
        )
        sink_keys, sink_values = self._sinks(k, v, state)
        dtype = state.keys.dtype
        after = WindowState(
            keys[:, :, time:].to(dtype),
            values[:, :, time:].to(dtype),
            sink_keys.to(dtype),
            sink_values.to(dtype),
            state.length + time,
        )

        # each chunk scores cache + chunk keys, of which a query sees `window`: half a window is fastest
        chunk = min(max(self.window // 2, 1), time)
        front, back = -cache % chunk, -time % chunk  # to whole chunks; outputs of the back are dropped below
        q, keys, values = (
            F.pad(part, (0, 0, before, back)) for part, before in ((q, 0), (keys, front), (values, front))
        )
        cache, end = front + cache, keys.shape[2]
        q_rotated = self.positions.rotate(q, range(cache, end))
        keys = self.positions.rotate(keys, range(end))
        q_chunks = rearrange(q_rotated, "b h (n c) k -> (b n) h c k", c=chunk)
        k_chunks, v_chunks = (_with_chunks_before(part, chunk, cache) for part in (keys, values))
        k_positions = torch.arange(cache + chunk, device=q.device)  # in a chunk
        q_positions = k_positions[cache:]
        mask = self._mask(q_positions, k_positions, end, state)
        if self.sinks:
            local = self.positions.scores(q_chunks, k_chunks, q_positions, k_positions, mask)
            y = self._attend_with_sinks(q, local, v_chunks, sink_keys, sink_values, state)
        else:
            y = self.attend(q_chunks, k_chunks, v_chunks, q_positions, k_positions, mask)
        return rearrange(y, "(b n) h c k -> b (n c) (h k)", b=rows)[:, :time], after

    def _mask(
        self,
        q_positions: Int[Tensor, " chunk"],
        k_positions: Int[Tensor, " keys"],
        end: int,
        state: WindowState,
    ) -> Bool[Tensor, "rows_and_chunks 1 chunk keys"]:
        """True for the last `window` keys, cached or new, without sinks, which are scored separately.

        `end` is the number of keys of the call, padding included.
        """
        keys, chunk = len(k_positions), len(q_positions)
        distance = q_positions[:, None] - k_positions
        in_window = (distance >= 0) & (distance < self.window)
        text_positions = torch.arange(end, device=q_positions.device) - (keys - chunk) + state.length[:, None]
        stored = (text_positions >= self.sinks).unfold(1, keys, chunk)  # (rows, chunks, keys)
        return rearrange(in_window & stored[:, :, None], "b n c m -> (b n) 1 c m")

    def _sinks(self, k: Tensor, v: Tensor, state: WindowState) -> tuple[Tensor, Tensor]:
        """The sinks after this call: those of the state, and the text's first tokens among the new ones."""
        slots = torch.arange(self.sinks, device=k.device)
        index = slots - state.length[:, None]  # of each row's sinks among the new tokens
        is_new = ((index >= 0) & (index < k.shape[2]))[:, None, :, None]
        index = index.clamp(0, k.shape[2] - 1)[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        sink_keys, sink_values = (
            torch.where(is_new, part.gather(2, index), old.to(part.dtype))
            for part, old in ((k, state.sink_keys), (v, state.sink_values))
        )
        return sink_keys, sink_values

    def _attend_with_sinks(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        local: Float[Tensor, "rows_and_chunks heads chunk keys"],
        v_chunks: Float[Tensor, "rows_and_chunks kv_heads keys head_dim"],
        sink_keys: Float[Tensor, "rows kv_heads sinks head_dim"],
        sink_values: Float[Tensor, "rows kv_heads sinks head_dim"],
        state: WindowState,
    ) -> Float[Tensor, "rows_and_chunks heads chunk head_dim"]:
        """One softmax over sinks and window; `local` are the window's scores.

        The sinks' distances differ from the window's, so they are scored separately; a query's position
        in the cache stops growing once the cache is full.
        """
        slots = torch.arange(self.sinks, device=q.device)
        text_positions = torch.arange(q.shape[2], device=q.device) + state.length[:, None]  # (rows, time)
        q_positions = text_positions.clamp(max=self.sinks + self.window - 1)[:, None]  # in the cache
        mask = (slots <= text_positions[..., None])[:, None]
        q, sink_keys = self.positions.rotate(q, q_positions), self.positions.rotate(sink_keys, slots)
        to_sinks = self.positions.scores(q, sink_keys, q_positions, slots, mask)
        to_sinks = rearrange(to_sinks, "b h (n c) s -> (b n) h c s", c=local.shape[2])
        weights = self.dropout(torch.cat([to_sinks, local], dim=-1).softmax(-1))
        sink_values = repeat_kv(sink_values, self.groups).repeat_interleave(len(local) // len(q), dim=0)
        to_sinks, local = weights.tensor_split([self.sinks], dim=-1)
        return to_sinks @ sink_values + local @ repeat_kv(v_chunks, self.groups)


def _with_chunks_before(
    x: Float[Tensor, "rows heads keys head_dim"], chunk: int, cache: int
) -> Float[Tensor, "rows_and_chunks heads cache_and_chunk head_dim"]:
    """Each chunk after the first `cache` keys, and the `cache` keys before it; both are multiples of `chunk`.

    The same as `unfold`, whose backward pass is slow.
    """
    blocks = x.unflatten(2, (-1, chunk))
    chunks = blocks.shape[2] - cache // chunk
    if chunks == 1:
        return x
    shifted = [blocks[:, :, start : start + chunks] for start in range(cache // chunk + 1)]
    return rearrange(torch.cat(shifted, dim=3), "b h n m k -> (b n) h m k")


def stack_reach(mixers: Iterable[nn.Module]) -> int | None:
    """How many positions can change an output of these layers one after another, the position itself
    included; None if one has sinks or is no WindowAttention."""
    reach = 1
    for mixer in mixers:
        if not isinstance(mixer, WindowAttention) or mixer.sinks:
            return None
        reach += mixer.window - 1
    return reach
