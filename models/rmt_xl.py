"""RMT on Transformer-XL: memory tokens around each segment, and in every layer Transformer-XL's cache.

Bulatov, Kuratov & Burtsev 2022, arXiv:2207.06881: the code behind the paper's tables.

    H_0 = [M_s ; sqrt(D) E[w_1 .. w_S] ; M_s]  ->  Transformer-XL  ->  H_L        M_{s+1} = end of H_L

With `prenorm` no norm follows the last layer, so that every segment adds to the residual stream of M: M grows
with the text, until a segment hardly changes it.  `memory_norm` applies LayerNorm (without weights) to
M_{s+1}; in the published RMT on GPT-2 the body's final norm does.

Carried from segment to segment: the memory tokens, with gradient; in every layer the XL cache, its last
`memory_len` inputs (those of memory tokens included), without gradient.
Differs from the paper: a memory token that attends to a later one of its block uses relative distance 0; in
the published code the relative shift wraps around there (`wrapped=true` reproduces it).  The published code
has no `memory_norm`.
"""

from typing import ClassVar, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.memory.attention.relative import RelativeAttention, XLCache, xl_reach
from zoo.memory.tokens.memory_tokens import surround_with_memory
from zoo.models.transformer_xl import TransformerXL, XLOptions


class RMTXLState(NamedTuple):
    memory: Float[Tensor, "rows memory width"]
    layers: tuple[XLCache, ...]


class RMTXL(TransformerXL):
    """`memory_len` is the XL cache in positions, those of memory tokens included; `memory_tokens` stand
    before each segment and, with `write_at_end`, after it.  ValueError for fewer than 1, and for what
    TransformerXL refuses."""

    parallel = "none"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("memory",)

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        memory_len: int,
        memory_tokens: int,
        write_at_end: bool = True,
        read_cache: bool = False,
        memory_norm: bool = False,
        wrapped: bool = False,  # distances to later memory tokens as in the published code, see above
        **options: Unpack[XLOptions],
    ) -> None:
        """With `write_at_end=false` there are no memory tokens after the segment: those before it become the
        next memory.  `read_cache` lets memory tokens attend to the XL cache."""
        super().__init__(vocab_size, segment_len, depth, width, heads, mlp_width, memory_len, **options)
        if memory_tokens < 1:
            raise ValueError(
                f"memory_tokens must be at least 1, not {memory_tokens}: with none this is transformer_xl"
            )
        if self.same_length and memory_len < 2:
            raise ValueError(
                f"memory_len: expected at least 2 with same_length, found {memory_len}: a query sees so many "
                "keys, itself included"
            )
        self.memory_tokens, self.write_at_end, self.read_cache = memory_tokens, write_at_end, read_cache
        self.memory_norm = memory_norm
        for part in self.modules():
            if isinstance(part, RelativeAttention):
                part.wrapped = wrapped
        # same standard deviation as the scaled embeddings
        scale = self.embed.weight.std().detach() * width**0.5
        self.memory = nn.Parameter(torch.randn(memory_tokens, width) * scale)
        self.remembers, self.reach = True, None
        if not (write_at_end or read_cache or self.same_length):  # the memory tokens never see the text
            full, rest = divmod(memory_len, segment_len + memory_tokens)
            self.reach = xl_reach(segment_len, depth, full * segment_len + min(rest, segment_len))
        # without write tokens, the memory never sees the segment except through the detached cache
        self.learns_through_memory = ("memory",) if write_at_end else ()

    def init_state(self, rows: int) -> RMTXLState:
        return RMTXLState(self.memory.expand(rows, -1, -1), super().init_state(rows))

    def attention_mask(self, time: int) -> Bool[Tensor, "time keys"] | None:
        """The paper's mask for `time` positions, a segment with its memory tokens: causal, except that each
        block of memory tokens attends to all of itself, and to the XL cache only with `read_cache`.  As
        published, None with `same_length`: the default mask."""
        if self.same_length:
            return None
        cache, memory_tokens = self.memory_len, self.memory_tokens
        mask = torch.ones(time, cache + time, dtype=torch.bool, device=self.memory.device).tril(cache)
        blocks = [slice(0, memory_tokens)]
        if self.write_at_end:
            blocks.append(slice(time - memory_tokens, time))
        for block in blocks:
            mask[block, cache:][:, block] = True
            mask[block, :cache] = self.read_cache
        return mask

    def hidden_segment(
        self, tokens: Int[Tensor, "rows time"], state: RMTXLState
    ) -> tuple[Float[Tensor, "rows time width"], RMTXLState]:
        x = self.embed_tokens(tokens)
        if self.write_at_end:
            x = surround_with_memory(state.memory, x)
        else:
            x = torch.cat([state.memory.to(x.dtype), x], dim=1)
        h, layers = self.body(x, state.layers, x.shape[1], self.attention_mask(x.shape[1]))
        at_tokens = h[:, self.memory_tokens : self.memory_tokens + tokens.shape[1]]
        memory = h[:, -self.memory_tokens :] if self.write_at_end else h[:, : self.memory_tokens]
        memory = F.layer_norm(memory, memory.shape[-1:]) if self.memory_norm else memory
        return at_tokens, RMTXLState(memory.to(self.memory.dtype), layers)
