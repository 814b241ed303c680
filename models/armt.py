"""Associative Recurrent Memory Transformer: in every layer an associative memory, written by memory tokens.

Rodkin et al. 2024, arXiv:2407.04841.  In layer l, on x = [E[w_1 .. w_S] ; memory tokens]:

    x <- x + A_l read with x        x <- block(x)        A_l <- A_l written with x at the memory tokens

Carried from segment to segment: in every layer the associative matrix and its normaliser
(memory/fast_weights/associative.py).  The memory tokens themselves are the same learned ones in every
segment, so that layers can read different segments at once (models/diagonal.py).
Differs from the paper: the body is a LLaMA-shaped decoder by default (`position=learned norm=layer
activation=gelu_tanh bias=true` is the published GPT-2 one).
"""

from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.interface import split_segments
from zoo.memory.attention.core import Attention
from zoo.memory.attention.position_options import Position, position_kind
from zoo.memory.fast_weights.associative import AssociativeMemory, AssociativeState, Write
from zoo.memory.mixer import Mixer, decode_step, new_decode_cache
from zoo.models.blocks import Block
from zoo.models.decoder import Decoder, DecoderOptions, attention_options
from zoo.models.diagonal import DiagonalStack
from zoo.state import State


class AssociativeBlock(Mixer):
    """A block that reads its memory at all positions and then writes it with its last `memory_tokens`."""

    def __init__(self, block: Block, memory: AssociativeMemory, memory_tokens: int) -> None:
        super().__init__()
        self.block, self.memory, self.memory_tokens = block, memory, memory_tokens

    def init_state(self, rows: int) -> AssociativeState:
        return self.memory.init_state(rows)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: AssociativeState
    ) -> tuple[Float[Tensor, "rows time width"], AssociativeState]:
        x = x + self.memory.read(x, state)
        x, _ = self.block(x, ())
        return x, self.memory.write(x[:, -self.memory_tokens :], state)

    def init_decode_cache(self, state: AssociativeState) -> Any:
        return state, new_decode_cache(self.block, ())

    def decode(
        self, x: Float[Tensor, "rows time width"], cache: Any
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        state, inner = cache
        x, inner = decode_step(self.block, x + self.memory.read(x, state), inner)
        return x, (state, inner)


class ARMT(Decoder):
    """`memory_tokens` write after each segment, by keys of `key_width`, which become 2 nu key_width features;
    ValueError for no memory token and for an unknown `write`."""

    learns_through_memory = True
    reach = None
    parallel = "segments"
    stack: DiagonalStack
    no_weight_decay: ClassVar[tuple[str, ...]] = ("memory",)

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        memory_tokens: int,
        key_width: int,
        nu: int = 3,
        correction: bool = True,
        write: Write = "together",
        bounded: bool = False,
        position: Position = "rope",
        qk_norm: bool = False,
        wrap_positions: bool = True,
        **options: Unpack[DecoderOptions],
    ) -> None:
        if memory_tokens < 1:
            raise ValueError(
                f"memory_tokens must be at least 1, not {memory_tokens}: the memory is written through them"
            )

        def wrap(block: Block) -> AssociativeBlock:
            return AssociativeBlock(
                block, AssociativeMemory(width, key_width, nu, correction, write, bounded), memory_tokens
            )

        attention = {
            "position": position,
            "qk_norm": qk_norm,
            "context": segment_len + memory_tokens,
            **attention_options(options),
        }
        super().__init__(
            vocab_size,
            segment_len,
            width,
            (Attention(width, heads, **attention) for _ in range(depth)),
            mlp_width=mlp_width,
            positions=segment_len + memory_tokens if position_kind(position) == "learned" else 0,
            wrap=wrap,
            **options,
        )
        self.stack = DiagonalStack(self.stack)
        self.memory_tokens, self.wrap_positions = memory_tokens, wrap_positions
        self.memory = nn.Parameter(torch.randn(memory_tokens, width) * self.embed.weight.std().detach())

    @torch.no_grad()
    def init_weights(self) -> None:
        """W_v is zero, so that a new ARMT equals its body (the published code's rule)."""
        super().init_weights()
        for part in self.modules():
            if isinstance(part, AssociativeMemory):
                nn.init.zeros_(part.value.weight)

    def body(
        self, x: Float[Tensor, "rows time width"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        """Learned positions of the memory tokens are the table's last, in short segments too, or with
        `wrap_positions=false` those right after the segment's."""
        if self.positions is not None and self.wrap_positions:
            time = x.shape[1] - self.memory_tokens
            positions = torch.cat([self.positions[:time], self.positions[-self.memory_tokens :]])
            x, state = self.stack(self.dropout(x + positions), state)
            return self.norm(x), state
        return super().body(x, state)

    def hidden_segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        rows, time = tokens.shape
        if time <= self.segment_len:
            return self._segments_as_batch(tokens, state)
        elements = rows * (self.segment_len + self.memory_tokens) * self.width
        if not self.stack.reads_diagonally(time // self.segment_len, elements):
            return self._fold(self._segments_as_batch, tokens, state)
        x, state = self._segments_as_batch(split_segments(tokens, self.segment_len), state)
        return x.reshape(rows, time, self.width), state

    def _segments_as_batch(
        self, tokens: Int[Tensor, "rows_and_segments time"], state: State
    ) -> tuple[Float[Tensor, "rows_and_segments time width"], State]:
        x = torch.cat([self.embed(tokens), self.memory.expand(len(tokens), -1, -1)], dim=1)
        x, state = self.body(x, state)
        return x[:, : tokens.shape[1]], state

    def init_decode_cache(self, state: State) -> Any:
        """Without the memory tokens: they follow the text, which doesn't see them."""
        return 0, self.stack.init_decode_cache(state)
