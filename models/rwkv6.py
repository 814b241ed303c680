"""RWKV-6: a recurrent decoder with matrix-valued states, and a feed-forward that looks one token back.

Peng et al. 2024, arXiv:2404.05892; its parts: memory/fast_weights/rwkv6_time_mix.py and rwkv_parts.py, its
recurrence: recurrence.py.

    x = norm(E tokens)      x += time_mix(norm(x))      x += channel_mix(norm(x))      logits = E norm(x)

Carried from segment to segment: in every block each head's S (head_dim, head_dim), and the last inputs of
time mix and channel mix, for their token shift.
Differs from the paper: matrices start as in all models here, everything else as published.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.memory.fast_weights.recurrence import Backend
from zoo.memory.fast_weights.rwkv6_time_mix import RWKV6TimeMix
from zoo.memory.fast_weights.rwkv_parts import ChannelMix, TimeMixState, channel_positions
from zoo.models.blocks import init_weights, make_norm, output_projection
from zoo.module import SequenceModule
from zoo.state import State


class RWKVState(NamedTuple):
    time: TimeMixState
    channel: Float[Tensor, "rows width"]  # the channel mix's last input


class RWKVBlock(nn.Module):
    """x += time_mix(norm(x)), x += channel_mix(norm(x))."""

    def __init__(self, time_mix: nn.Module, channel_mix: ChannelMix, width: int, dropout: float) -> None:
        super().__init__()
        self.time_mix: Any = time_mix
        self.channel_mix = channel_mix
        self.time_norm, self.channel_norm = make_norm("layer", width), make_norm("layer", width)
        self.dropout = nn.Dropout(dropout)

    def init_state(self, rows: int) -> RWKVState:
        return RWKVState(self.time_mix.init_state(rows), self.channel_mix.init_state(rows))

    def forward(
        self,
        x: Float[Tensor, "rows time width"],
        state: RWKVState,
        *v_first: Float[Tensor, "rows time width"],
    ) -> tuple[Any, ...]:
        """x, the state after it, and in RWKV-7 (models/rwkv7.py) the first layer's values, which later layers
        are given."""
        y, time, *v_first = self.time_mix(self.time_norm(x), state.time, *v_first)
        x = x + self.dropout(y)
        y, channel = self.channel_mix(self.channel_norm(x), state.channel)
        return x + self.dropout(y), RWKVState(time, channel), *v_first


class RWKV(SequenceModule):
    """The decoder around the time mixes and channel mixes of one version."""

    learns_through_memory = True
    reach = None
    cuts_anywhere = True
    parallel = "any_length"

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        width: int,
        mixes: Iterable[tuple[nn.Module, ChannelMix]],
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.vocab_size, self.segment_len, self.width = vocab_size, segment_len, width
        self.embed, self.embed_norm = nn.Embedding(vocab_size, width), make_norm("layer", width)
        self.stack = nn.ModuleList(RWKVBlock(time, channel, width, dropout) for time, channel in mixes)
        self.norm, self.dropout = make_norm("layer", width), nn.Dropout(dropout)
        self.head = output_projection(self.embed, tied)
        init_weights(self, len(self.stack))

    def init_state(self, rows: int) -> State:
        blocks: Any = self.stack
        return tuple(block.init_state(rows) for block in blocks)

    def hidden_segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        x, after = self.dropout(self.embed_norm(self.embed(tokens))), []
        v_first: list[Tensor] = []
        for block, before in zip(self.stack, state, strict=True):
            x, block_state, *v_first = block(x, before, *v_first)
            after.append(block_state)
        return self.norm(x), tuple(after)

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        return self.head(hidden)

    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        x, state = self.hidden_segment(tokens, state)
        return self.logits(x), state


class RWKV6(RWKV):
    """The ranks are those of the maps to the token shifts and to the decay."""

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        head_dim: int,
        mlp_width: int,
        mix_rank: int = 32,
        decay_rank: int = 64,
        chunk_size: int = 32,
        backend: Backend = "torch",
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        time_mix = partial(RWKV6TimeMix, width, head_dim=head_dim, depth=depth, chunk_size=chunk_size)
        time_mix = partial(time_mix, mix_rank=mix_rank, decay_rank=decay_rank, backend=backend)
        positions = channel_positions(width).expand(2, -1)
        mixes = (
            (
                time_mix(layer=layer),
                ChannelMix(width, mlp_width, 1 - positions ** (1 - layer / depth), gated=True),
            )
            for layer in range(depth)
        )
        super().__init__(vocab_size, segment_len, width, mixes, tied, dropout)
