"""Sliding-window attention that carries its keys and values, with attention sinks by option.

Beltagy et al. 2020, arXiv:2004.05150 (window); Xiao et al. 2024, arXiv:2309.17453 (StreamingLLM's sinks).

    position p attends to the keys p-W+1 .. p of the whole text, and always to the text's first `sinks` keys

Carried from call to call: the last W-1 keys and values of every head, without positions (only distances
count, so a text may be of any length), the sinks', and each row's number of tokens.

A sink's distance is that in StreamingLLM's cache: sink s is min(p, sinks + W - 1) - s away from p.
Differs from the papers: nothing.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.memory.attention.core import Attention, AttentionOptions
from zoo.memory.attention.flex_window import BLOCK, flex_window
from zoo.memory.attention.positions import repeat_kv
from zoo.memory.attention.sinks import SinkInputs, beside_sinks
from zoo.memory.attention.window_chunks import with_chunks_before
from zoo.memory.kernel_packages import require_gpu

Backend = Literal["torch", "flex"]


class WindowState(NamedTuple):
    keys: Float[Tensor, "rows heads cache head_dim"]  # the last W-1, newest last
    values: Float[Tensor, "rows heads cache head_dim"]
    sink_keys: Float[Tensor, "rows heads sinks head_dim"]  # the text's first
    sink_values: Float[Tensor, "rows heads sinks head_dim"]
    length: Int[Tensor, " rows"]  # tokens since the last reset


class WindowAttention(Attention):
    """Attention over the last `window` tokens, this one included, however they are cut into calls.

    With `backend` "flex", calls of BLOCK tokens or more run flex_attention's kernel (flex_window.py).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        sinks: int = 0,
        backend: Backend = "torch",
        **options: Unpack[AttentionOptions],
    ) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.support = "sinks" if sinks else "window"
        options["context"] = sinks + window
        super().__init__(width, heads, **options)
        self.window, self.sinks, self.backend = window, sinks, backend
        if backend == "flex" and not (self.positions.unbiased and self.dropout.p == 0):
            raise ValueError("backend: expected torch with biased scores or dropout, found flex")

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
        """The outputs before `out_proj`, and the state after the call, from projections without positions."""
        if self.positions.log_n is not None:
            text_positions = torch.arange(q.shape[2], device=q.device) + state.length[:, None, None]
            q = self.positions.scale_queries(q, text_positions)
        time = q.shape[2]
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
        cached = WindowState(keys, values, sink_keys, sink_values, state.length)  # with the call's own keys
        mix = self._mix_flex if self.backend == "flex" and time >= BLOCK else self._mix_chunks
        return mix(q, cached), after

    def _mix_flex(
        self, q: Float[Tensor, "rows heads time head_dim"], cached: WindowState
    ) -> Float[Tensor, "rows time heads_width"]:
        """`_mix_chunks` by flex_attention."""
        require_gpu("flex_attention", q)
        end, values = cached.keys.shape[2], cached.values
        q_rotated = self.positions.rotate(q, range(self.window - 1, end))
        keys = self.positions.rotate(cached.keys, range(end))
        if self.sinks:
            sinks = self._sink_inputs(q, 1, cached)
            q_rotated, keys, values = beside_sinks(q_rotated, keys, values, sinks)
        y = flex_window(
            q_rotated,
            keys,
            values,
            cached.length,
            window=self.window,
            sinks=self.sinks,
            scale=self.head_dim**-0.5,
        )
        return rearrange(y[..., : self.head_dim], "b h t k -> b t (h k)")

    def _mix_chunks(
        self, q: Float[Tensor, "rows heads time head_dim"], cached: WindowState
    ) -> Float[Tensor, "rows time heads_width"]:
        """Attention in chunks of half a window of queries, each chunk with the keys in its reach."""
        rows, time, cache = len(q), q.shape[2], self.window - 1
        # each chunk scores cache + chunk keys, of which a query sees `window`: half a window is fastest
        chunk = min(max(self.window // 2, 1), time)
        front, back = -cache % chunk, -time % chunk  # to whole chunks; outputs of the back are dropped below
        q, keys, values = (
            F.pad(part, (0, 0, before, back))
            for part, before in ((q, 0), (cached.keys, front), (cached.values, front))
        )
        cache, end = front + cache, keys.shape[2]
        q_rotated = self.positions.rotate(q, range(cache, end))
        keys = self.positions.rotate(keys, range(end))
        q_chunks = rearrange(q_rotated, "b h (n c) k -> (b n) h c k", c=chunk)
        k_chunks, v_chunks = (with_chunks_before(part, chunk, cache) for part in (keys, values))
        k_positions = torch.arange(cache + chunk, device=q.device)  # in a chunk
        q_positions = k_positions[cache:]
        text_positions = self._text_positions(len(k_positions), chunk, end, cached.length)
        mask = self._mask(q_positions, k_positions, text_positions)
        if self.positions.absolute:
            k_positions = rearrange(text_positions, "b n m -> (b n) 1 m")
            q_positions = k_positions[..., cache:]
        if self.sinks:
            sinks = self._sink_inputs(q, len(q_chunks) // rows, cached)
            attend = self._attend_fused if self.positions.unbiased else self._attend_with_scores
            y = attend(q_chunks, k_chunks, v_chunks, q_positions, k_positions, mask, sinks)
        else:
            y = self.attend(q_chunks, k_chunks, v_chunks, q_positions, k_positions, mask)
        return rearrange(y, "(b n) h c k -> b (n c) (h k)", b=rows)[:, :time]

    def _text_positions(
        self, keys: int, chunk: int, end: int, length: Int[Tensor, " rows"]
    ) -> Int[Tensor, "rows chunks keys"]:
        """Positions in the text of each chunk's keys, negative for those before it.

        `end` is the number of keys of the call, padding included.
        """
        positions = torch.arange(end, device=length.device) - (keys - chunk) + length[:, None]
        return positions.unfold(1, keys, chunk)

    def _mask(
        self,
        q_positions: Int[Tensor, " chunk"],
        k_positions: Int[Tensor, " keys"],
        text_positions: Int[Tensor, "rows chunks keys"],
    ) -> Bool[Tensor, "rows_and_chunks 1 chunk keys"]:
        """True for the last `window` keys, cached or new, without sinks, which are scored separately."""
        distance = q_positions[:, None] - k_positions
        in_window = (distance >= 0) & (distance < self.window)
        stored = text_positions >= self.sinks
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

    def _sink_inputs(
        self, q: Float[Tensor, "rows heads time head_dim"], chunks: int, cached: WindowState
    ) -> SinkInputs:
        """What each chunk of queries needs for the sinks, whose distances differ from the window's: a query's
        position in the cache stops growing once the cache is full."""
        slots = torch.arange(self.sinks, device=q.device)
        text_positions = torch.arange(q.shape[2], device=q.device) + cached.length[:, None]  # (rows, time)
        positions = text_positions.clamp(max=self.sinks + self.window - 1)[:, None]  # in the cache
        mask = (slots <= text_positions[..., None])[:, None]
        q, sink_keys = self.positions.rotate(q, positions), self.positions.rotate(cached.sink_keys, slots)
        q, positions, mask = (
            rearrange(part, "b h (n c) ... -> (b n) h c ...", n=chunks) for part in (q, positions, mask)
        )
        sink_keys, sink_values = (
            part.repeat_interleave(chunks, dim=0) for part in (sink_keys, cached.sink_values)
        )
        return SinkInputs(q, sink_keys, sink_values, positions, slots, mask)

    def _attend_with_scores(
        self,
        q: Float[Tensor, "rows_and_chunks heads chunk head_dim"],
        k: Float[Tensor, "rows_and_chunks kv_heads keys head_dim"],
        v: Float[Tensor, "rows_and_chunks kv_heads keys head_dim"],
        q_positions: Int[Tensor, "*q_rows chunk"],
        k_positions: Int[Tensor, "*k_rows keys"],
        mask: Bool[Tensor, "rows_and_chunks 1 chunk keys"],
        sinks: SinkInputs,
    ) -> Float[Tensor, "rows_and_chunks heads chunk head_dim"]:
        """One softmax over the scores of sinks and window."""
        local = self.positions.scores(q, k, q_positions, k_positions, mask)
        to_sinks = self.positions.scores(sinks.q, sinks.keys, sinks.q_positions, sinks.slots, sinks.mask)
        weights = self.dropout(torch.cat([to_sinks, local], dim=-1).softmax(-1))
        to_sinks, local = weights.tensor_split([self.sinks], dim=-1)
        return to_sinks @ repeat_kv(sinks.values, self.groups) + local @ repeat_kv(v, self.groups)

    def _attend_fused(
        self,
        q: Float[Tensor, "rows_and_chunks heads chunk head_dim"],
        k: Float[Tensor, "rows_and_chunks kv_heads keys head_dim"],
        v: Float[Tensor, "rows_and_chunks kv_heads keys head_dim"],
        q_positions: Int[Tensor, "*q_rows chunk"],
        k_positions: Int[Tensor, "*k_rows keys"],
        mask: Bool[Tensor, "rows_and_chunks 1 chunk keys"],
        sinks: SinkInputs,
    ) -> Float[Tensor, "rows_and_chunks heads chunk head_dim"]:
        """`_attend_with_scores` without bias, in one call, whose fused kernels keep no scores; on CUDA there
        may be none for grouped queries with a mask (docs/design.md)."""
        y = F.scaled_dot_product_attention(
            *beside_sinks(q, k, v, sinks),
            torch.cat([sinks.mask, mask], dim=-1),
            dropout_p=self.dropout.p if self.training else 0.0,
            scale=self.head_dim**-0.5,
            enable_gqa=self.groups > 1,
        )
        return y[..., : self.head_dim]


def stack_reach(mixers: Iterable[nn.Module]) -> int | None:
    """How many positions can change an output of these layers one after another, the position itself
    included; None if one has sinks or is no WindowAttention."""
    reach = 1
    for mixer in mixers:
        if not isinstance(mixer, WindowAttention) or mixer.sinks:
            return None
        reach += mixer.window - 1
    return reach
