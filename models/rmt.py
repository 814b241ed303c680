"""Recurrent Memory Transformer: memory tokens are read before each segment and written after it.

Bulatov, Kuratov & Burtsev 2022, arXiv:2207.06881; Bulatov et al. 2024, arXiv:2402.10790.

    H_0 = [M_s ; E[w_1 .. w_S] ; M_s]        H_L = norm(transformer(H_0))
    logits = E H_L[m : m + S]        M_{s+1} = H_L[m + S :]        M_0 learned, m = memory_tokens

Carried from segment to segment: the memory tokens.  The gradient runs back through them to the beginning of
the window of a training step.
Differs from the paper: the body is a LLaMA-shaped decoder by default (the published ones are GPT-2
and Transformer-XL, models/rmt_xl.py); memory tokens see one another causally by default as in the
authors' later GPT-2 code, `memory_attention=block` is the paper's mask.
"""

from typing import Any, ClassVar, NamedTuple, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.memory.attention.core import Attention
from zoo.memory.attention.position_options import Position, position_kind
from zoo.memory.tokens.memory_tokens import BlockMemoryAttention, MemoryAttention, surround_with_memory
from zoo.models.decoder import Decoder, DecoderOptions, attention_options


class RMTState(NamedTuple):
    memory: Float[Tensor, "rows memory width"]  # the last segment's memory tokens


class RMT(Decoder):
    """`memory_tokens` stand before and again after each segment; ValueError for fewer than 1."""

    learns_through_memory = True
    reach = None
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
        memory_attention: MemoryAttention = "causal",
        position: Position = "rope",
        qk_norm: bool = False,
        **options: Unpack[DecoderOptions],
    ) -> None:
        if memory_tokens < 1:
            raise ValueError(
                f"memory_tokens must be at least 1, not {memory_tokens}: with none this is model=transformer"
            )

        attention: dict[str, Any] = {
            "position": position,
            "qk_norm": qk_norm,
            "context": segment_len + 2 * memory_tokens,
        }
        attention |= attention_options(options)

        def mixer() -> Attention:
            if memory_attention == "block":
                return BlockMemoryAttention(width, heads, memory_tokens, **attention)
            return Attention(width, heads, **attention)

        super().__init__(
            vocab_size,
            segment_len,
            width,
            (mixer() for _ in range(depth)),
            mlp_width=mlp_width,
            positions=segment_len + 2 * memory_tokens if position_kind(position) == "learned" else 0,
            **options,
        )
        self.memory_tokens = memory_tokens
        # same standard deviation as the embeddings, as in the published code
        self.memory = nn.Parameter(torch.randn(memory_tokens, width) * self.embed.weight.std().detach())
        if memory_attention == "block":  # a mask that counts positions from the end
            self.decodes = False

    def init_state(self, rows: int) -> RMTState:
        return RMTState(self.memory.expand(rows, -1, -1))

    def hidden_segment(
        self, tokens: Int[Tensor, "rows time"], state: RMTState
    ) -> tuple[Float[Tensor, "rows time width"], RMTState]:
        x = surround_with_memory(state.memory, self.embed(tokens))
        x, _ = self.body(x, self.stack.init_state(len(tokens)))
        end = self.memory_tokens + tokens.shape[1]
        return x[:, self.memory_tokens : end], RMTState(x[:, end:].to(self.memory.dtype))

    def init_decode_cache(self, state: RMTState) -> Any:
        """With the memory tokens already read."""
        cache = 0, self.stack.init_decode_cache(self.stack.init_state(len(state.memory)))
        return self.decode_body(state.memory.to(self.embed.weight.dtype), cache)[1]
