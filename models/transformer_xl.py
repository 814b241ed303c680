"""Transformer-XL: every layer also attends to its inputs in the last segments.

Dai et al. 2019, arXiv:1901.02860; attention and memory: memory/attention/relative.py.

    h_0 = sqrt(D) E[w]        h_l = LN(y + FF(y))  with  y = LN(h + attention(h, memory_l))
    FF(y) = W_2 drop(relu(W_1 y + b_1)) + b_2        logits = E h_L + b

Carried from segment to segment: in every layer its last `memory_len` inputs, without gradient: the reach of
back-propagation is one segment, that of information depth * segment_len + memory_len (for memory_len from 1
to segment_len), since a stored input has read its segment.
Differs from the paper: as its PyTorch code, scores are divided by sqrt(K), one pair u, v serves all layers,
and the memory starts empty; initial weights are those of all models here.
"""

from functools import partial
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.interface import Parallel
from zoo.memory.attention.relative import RelativeAttention, XLCache, XLDecodeCache, xl_reach
from zoo.models.blocks import (
    FeedForward,
    check_output_options,
    init_weights,
    output_projection,
    sinusoid,
    soft_capped,
)
from zoo.module import SequenceModule
from zoo.state import State


class XLLayer(nn.Module):
    """Attention sub-layer, then feed-forward with residual and LayerNorm."""

    def __init__(self, attention: RelativeAttention, mlp: FeedForward, width: int, prenorm: bool) -> None:
        super().__init__()
        self.attention, self.mlp, self.norm, self.prenorm = attention, mlp, nn.LayerNorm(width), prenorm

    def forward(
        self,
        h: Float[Tensor, "rows time width"],
        state: XLCache,
        R: Float[Tensor, "distances width"],
        segment_len: int,
        mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "rows time width"], XLCache]:
        y, state = self.attention(h, state, R, segment_len, mask)
        return self._feed_forward(y), state

    def decode(
        self, h: Float[Tensor, "rows time width"], cache: XLDecodeCache
    ) -> tuple[Float[Tensor, "rows time width"], XLDecodeCache]:
        y, cache = self.attention.decode(h, cache)
        return self._feed_forward(y), cache

    def _feed_forward(self, y: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time width"]:
        return y + self.mlp(self.norm(y)) if self.prenorm else self.norm(y + self.mlp(y))


def validate(width: int, heads: int, memory_len: int, head_dim: int | None, same_length: bool) -> None:
    """Raises ValueError for settings that are out of range or don't fit one another."""
    if head_dim is None and width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")
    if width % 2:
        raise ValueError(f"sinusoid positions need an even width, not {width}")
    if same_length and not memory_len:
        raise ValueError("same_length lets a query see memory_len keys, itself included: 0 leaves none")


class XLOptions(TypedDict, total=False):
    """Options that subclasses of TransformerXL pass through to it."""

    head_dim: int | None
    prenorm: bool
    same_length: bool
    clamp_len: int
    tied: bool
    dropout: float
    attention_dropout: float
    qk_norm: bool
    soft_cap: float | None
    z_loss: float


class TransformerXL(SequenceModule):
    """`memory_len` is in positions of each layer, `clamp_len` the largest distance (-1: none); ValueError for
    settings that don't fit one another (`validate`).  `qk_norm` is RelativeAttention's; `soft_cap` c makes
    logits c tanh(logits / c); `z_loss` is SequenceModule's."""

    learns_through_memory: bool | tuple[str, ...] = False
    parallel: Parallel = "segments"

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        memory_len: int,
        head_dim: int | None = None,
        prenorm: bool = False,
        same_length: bool = False,
        clamp_len: int = -1,
        tied: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        qk_norm: bool = False,
        soft_cap: float | None = None,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        check_output_options(soft_cap, z_loss)
        validate(width, heads, memory_len, head_dim, same_length)
        head_dim = head_dim or width // heads
        self.vocab_size, self.segment_len, self.width = vocab_size, segment_len, width
        self.memory_len, self.remembers = memory_len, memory_len > same_length  # which sees itself first
        self.clamp_len, self.same_length = clamp_len, same_length
        self.soft_cap, self.z_loss = soft_cap, z_loss
        in_window = depth * (memory_len - 1) + 1
        self.reach = in_window if same_length else xl_reach(segment_len, depth, memory_len)
        self.embed = nn.Embedding(vocab_size, width)
        biases = [nn.Parameter(torch.empty(heads, head_dim)) for _ in range(2)]
        self.content_bias, self.position_bias = biases
        self.dropout = nn.Dropout(dropout)
        attention = partial(RelativeAttention, width, heads, head_dim, memory_len, *biases, prenorm=prenorm)
        attention = partial(attention, same_length=same_length, attention_dropout=attention_dropout)
        attention = partial(attention, qk_norm=qk_norm)
        mlp = partial(FeedForward, width, mlp_width, "relu", True, inner_dropout=dropout)
        self.layers = nn.ModuleList(
            XLLayer(attention(dropout=dropout), mlp(dropout=dropout), width, prenorm) for _ in range(depth)
        )
        self.head = output_projection(self.embed, tied, bias=True)
        init_weights(self, depth)
        for bias in biases:
            nn.init.normal_(bias, std=0.02)

    def init_state(self, rows: int) -> State:
        return tuple(part.init_state(rows) for part in self.modules() if isinstance(part, RelativeAttention))

    def body(
        self,
        x: Float[Tensor, "rows time width"],
        state: State,
        segment_len: int,
        mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        """All layers, over a text of full segments; a layer's memory is its inputs in earlier segments."""
        R = self.relative_positions(segment_len, x)
        h, after = self.dropout(x), []
        for layer, memory in zip(self.layers, state, strict=True):
            h, memory = layer(h, memory, R, segment_len, mask)
            after.append(memory)
        return self.dropout(h), tuple(after)

    def relative_positions(self, segment_len: int, reference: Tensor) -> Float[Tensor, "distances width"]:
        """R for the distances memory + segment - 1 .. 0."""
        distances = torch.arange(self.memory_len + segment_len - 1, -1, -1, device=reference.device)
        if self.clamp_len > 0:
            distances = distances.clamp(max=self.clamp_len)
        return self.dropout(sinusoid(distances, self.width, reference))

    def init_decode_cache(self, state: State) -> Any:
        """Every layer's memory, projected once."""
        R = self.relative_positions(self.segment_len, self.embed.weight)
        layers: Any = zip(self.layers, state, strict=True)
        return tuple(layer.attention.init_decode_cache(memory, R) for layer, memory in layers)

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        h, after = self.dropout(self.embed_tokens(tokens)), []
        layers: Any = zip(self.layers, cache, strict=True)
        for layer, layer_cache in layers:
            h, layer_cache = layer.decode(h, layer_cache)
            after.append(layer_cache)
        return self.logits(self.dropout(h)), tuple(after)

    def embed_tokens(self, tokens: Int[Tensor, "rows time"]) -> Float[Tensor, "rows time width"]:
        """sqrt(D) E[w]."""
        return self.embed(tokens) * self.width**0.5

    def hidden_segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        return self.body(self.embed_tokens(tokens), state, min(tokens.shape[1], self.segment_len))

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        return soft_capped(self.head(hidden), self.soft_cap)

    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        h, state = self.hidden_segment(tokens, state)
        return self.logits(h), state
