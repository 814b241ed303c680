"""Megalodon: attention inside chunks, and a moving average and a running norm over the whole text.

Ma et al. 2024, arXiv:2404.08801; attention, average and norm: memory/state_space/megalodon_attention.py,
complex_ema.py and timestep_norm.py.

    yhat = attention(x)        (its residual x within)
    x' = x + W_2 (silu(W_1 f) * W_3 f)   with  f = LayerNorm(yhat)        or W_2 silu(W_1 f)
    logits = E TimestepNorm(x_L)

The residual of the feed-forward goes two hops back, to x and not to yhat.

Carried: per layer the timestep norm's statistics, the complex state of the average and the open chunk's keys
and values; the last norm's statistics.  The gradient runs through all of them.
Differs from the paper: as its code does (see the parts' files); matrices start as in all models here, the
average as published; only the matrices decay, where the published optimiser decays every weight.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.memory.attention.position_options import Position
from zoo.memory.mixer import Mixer
from zoo.memory.state_space.megalodon_attention import GatedAttention, MegalodonState
from zoo.memory.state_space.timestep_norm import TimestepNorm, TimestepState
from zoo.models.blocks import Stack, check_output_options, init_weights, output_projection, soft_capped
from zoo.module import SequenceModule
from zoo.state import State


class MegalodonModelState(NamedTuple):
    layers: tuple[MegalodonState, ...]
    norm: TimestepState  # of the last norm


class NormedFeedForward(nn.Module):
    """LayerNorm, feed-forward (gated or not), and by option a scale per channel."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        *,
        swiglu: bool,
        norm_affine: bool = True,
        scale: float | None = None,
        eps: float = 1e-5,
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.zeros(width)) if norm_affine else None
        self.shift = nn.Parameter(torch.zeros(width)) if norm_affine else None
        self.in_proj = nn.Linear(width, mlp_width, bias=False)
        self.up = nn.Linear(width, mlp_width, bias=False) if swiglu else None
        self.out_proj = nn.Linear(mlp_width, width, bias=False)
        self.scale = None if scale is None else nn.Parameter(torch.full((width,), scale))
        self.dropout, self.hidden_dropout = nn.Dropout(dropout), nn.Dropout(hidden_dropout)

    def forward(self, x: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time width"]:
        gain = None if self.gain is None else 1 + self.gain
        x = F.layer_norm(x, x.shape[-1:], gain, self.shift, self.eps)
        h = F.silu(self.in_proj(x))
        if self.up is not None:
            h = h * self.up(x)
        y = self.dropout(self.out_proj(self.hidden_dropout(h)))
        return y if self.scale is None else y * self.scale


class MegalodonBlock(Mixer):
    def __init__(self, attention: GatedAttention, mlp: NormedFeedForward) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def init_state(self, rows: int) -> MegalodonState:
        return self.attention.init_state(rows)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: MegalodonState
    ) -> tuple[Float[Tensor, "rows time width"], MegalodonState]:
        y, state = self.attention(x, state)
        return self.mlp(y) + x, state


class Megalodon(SequenceModule):
    """`key_width` and `value_width` are those of all heads together, `chunk_size` is in tokens, `state_size`
    in complex numbers per channel; ValueError for widths that `heads` or `norm_groups` don't divide.
    `soft_cap` c makes logits c tanh(logits / c); `z_loss` is SequenceModule's."""

    learns_through_memory = True
    reach = None
    cuts_anywhere = True
    parallel = "any_length"

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        key_width: int,
        value_width: int,
        chunk_size: int,
        state_size: int = 16,
        norm_groups: int = 1,
        norm_affine: bool = True,
        norm_eps: float = 1e-5,
        position: Position = "rope",
        rope_base: float = 10000.0,
        swiglu: bool = True,
        rescaled: bool = False,
        scaled_embedding: bool = False,
        tied: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        soft_cap: float | None = None,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        check_output_options(soft_cap, z_loss)
        self.soft_cap, self.z_loss = soft_cap, z_loss
        self.vocab_size, self.segment_len = vocab_size, segment_len
        self.embed, self.dropout = nn.Embedding(vocab_size, width), nn.Dropout(dropout)
        self.scale = width**0.5 if scaled_embedding else 1.0
        shared: dict[str, Any] = {"eps": norm_eps, "dropout": dropout, "hidden_dropout": hidden_dropout}
        mlp = partial(NormedFeedForward, width, mlp_width, swiglu=swiglu, norm_affine=norm_affine, **shared)
        attention = partial(GatedAttention, width, heads, key_width=key_width, value_width=value_width)
        attention = partial(attention, chunk_size=chunk_size, state_size=state_size, norm_affine=norm_affine)
        attention = partial(attention, norm_groups=norm_groups, attention_dropout=attention_dropout)
        attention = partial(attention, position=position, rope_base=rope_base, **shared)
        scales = [0.1 * 0.5**layer if rescaled else None for layer in range(depth)]
        self.layers = Stack(MegalodonBlock(attention(), mlp(scale=scale)) for scale in scales)
        self.norm = TimestepNorm(width, norm_groups, eps=norm_eps)
        self.head = output_projection(self.embed, tied)
        init_weights(self, depth)

    def init_state(self, rows: int) -> MegalodonModelState:
        return MegalodonModelState(self.layers.init_state(rows), self.norm.init_state(rows))

    def hidden_segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], MegalodonModelState]:
        x, layers = self.layers(self.dropout(self.embed(tokens) * self.scale), state.layers)
        x, norm = self.norm(x, state.norm)
        return x, MegalodonModelState(layers, norm)

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        return soft_capped(self.head(hidden), self.soft_cap)

    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        x, state = self.hidden_segment(tokens, state)
        return self.logits(x), state
