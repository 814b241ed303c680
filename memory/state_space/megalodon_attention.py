"""Moving average gated attention: an average and a norm of the whole text, gated attention inside chunks.

Ma et al. 2024, arXiv:2404.08801, sections 3.3 to 3.5.  With x the layer's input, s = silu, K a head's width:

    X = TimestepNorm(x)        C = RMSNorm(CEMA(X))        V = s(W_v X + b_v)
    Z = W_z C + b_z, each head over its own root mean square
    q, k = Z (gamma + 1) / sqrt(K) + beta, each with its gamma and beta
    O = attention in chunks (q, k, V)
    y = W_h C + b_h + U (O * s(W_r C + b_r)) + x

Carried: the statistics of the norm, the state of the average, and the open chunk's keys and values.
Differs from the paper, as its code does: C has an RMSNorm; for the rest see complex_ema.py,
timestep_norm.py and attention/chunked.py.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor, nn

from zoo.memory.attention.chunked import ChunkState, attend_in_chunks
from zoo.memory.attention.position_kinds import build_positions
from zoo.memory.attention.position_options import Position
from zoo.memory.mixer import Mixer, no_autocast
from zoo.memory.state_space.complex_ema import ComplexEMA
from zoo.memory.state_space.timestep_norm import TimestepNorm, TimestepState


class MegalodonState(NamedTuple):
    norm: TimestepState
    average: Complex[Tensor, "rows width states"]
    chunk: ChunkState


def gained_rms(
    x: Float[Tensor, "*rows width"], gain: Tensor | None, eps: float
) -> Float[Tensor, "*rows width"]:
    """x over its root mean square, times 1 + gain."""
    with no_autocast(x):
        return F.rms_norm(x, x.shape[-1:], None if gain is None else (1 + gain).to(x.dtype), eps)


class GatedAttention(Mixer):
    """Attention inside chunks over keys from the moving average of the text, gated; the residual is added."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("gain", "shift")

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int,
        value_width: int,
        chunk_size: int,
        state_size: int,
        norm_groups: int,
        norm_affine: bool = True,
        eps: float = 1e-5,
        position: Position = "rope",
        rope_base: float = 10000.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if key_width % (2 * heads):
            raise ValueError(f"key_width {key_width} is not an even number for each of {heads} heads")
        if value_width % heads:
            raise ValueError(f"value_width {value_width} is not a multiple of heads {heads}")
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
        self.heads, self.chunk_size, self.eps = heads, chunk_size, eps
        self.positions = build_positions(
            position,
            heads,
            key_width // heads,
            context=chunk_size,
            base=rope_base,
            support="rotation",
            interleaved=True,
        )
        self.timestep_norm = TimestepNorm(width, norm_groups, eps=eps)
        self.average = ComplexEMA(width, state_size)
        self.average_gain = nn.Parameter(torch.zeros(width)) if norm_affine else None
        self.shared = nn.Linear(width, key_width)  # W_z
        self.gain, self.shift = (
            nn.Parameter(torch.zeros(2, key_width)) for _ in range(2)
        )  # gamma, beta of q, k
        self.value = nn.Linear(width, value_width)  # W_v
        self.gate = nn.Linear(width, value_width)  # W_r
        self.straight = nn.Linear(width, width)  # W_h
        self.mixed = nn.Linear(value_width, width, bias=False)  # U
        self.dropout, self.hidden_dropout = nn.Dropout(dropout), nn.Dropout(hidden_dropout)
        self.attention_dropout = nn.Dropout(attention_dropout)

    def init_state(self, rows: int) -> MegalodonState:
        weight, cache = self.shared.weight, self.chunk_size - 1
        keys, values = (
            weight.new_zeros(rows, self.heads, cache, part.out_features // self.heads)
            for part in (self.shared, self.value)
        )
        chunk = ChunkState(keys, values, torch.zeros(rows, dtype=torch.long, device=weight.device))
        return MegalodonState(self.timestep_norm.init_state(rows), self.average.init_state(rows), chunk)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: MegalodonState
    ) -> tuple[Float[Tensor, "rows time width"], MegalodonState]:
        X, norm = self.timestep_norm(x, state.norm)
        C, average = self.average(X, state.average)
        C = self.hidden_dropout(gained_rms(C, self.average_gain, self.eps))
        V = rearrange(F.silu(self.value(X)), "b t (h k) -> b h t k", h=self.heads)
        Z = rearrange(self.shared(C), "b t (h k) -> b t h k", h=self.heads)
        Z = rearrange(gained_rms(Z, None, self.eps), "b t h k -> b t (h k)")
        scale = (self.heads / Z.shape[-1]) ** 0.5  # 1 / sqrt(K)
        q, k = (
            rearrange(Z * (gamma + 1) * scale + beta, "b t (h k) -> b h t k", h=self.heads)
            for gamma, beta in zip(self.gain, self.shift, strict=True)
        )
        dropout = self.attention_dropout.p if self.training else 0.0
        y, chunk = attend_in_chunks(q, k, V, state.chunk, self.chunk_size, self.positions, dropout)
        y = self.hidden_dropout(rearrange(y, "b h t k -> b t (h k)") * F.silu(self.gate(C)))
        y = self.dropout(self.straight(C) + self.mixed(y)) + x
        return y, MegalodonState(norm, average, chunk)
