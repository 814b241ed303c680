"""Mamba-2's mixer: one projection for everything, short convolution, state-space duality, gated norm.

Dao & Gu 2024, arXiv:2405.21060, section 7.1.

    z0, x0, z, xBC, dt = W_in u        x, B, C = silu(conv(xBC))
    y = RMSNorm(ssd(x, dt, A = -exp(A_log), B, C, D) silu(z))        out = W_out [silu(z0) x0 ; y]

Carried: the convolution's last K-1 inputs (x, B and C), and every head's S.
Differs from the paper: nothing.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory import kernels
from zoo.memory.mixer import Mixer
from zoo.memory.state_space.conv import CausalConv
from zoo.memory.state_space.mamba_mixer import inverse_softplus_of_steps
from zoo.memory.state_space.ssd import Backend, ssd

GatedNorm = Literal["after_gate", "before_gate", "none"]


class Mamba2State(NamedTuple):
    tail: Float[Tensor, "rows earlier channels"]  # the last taps - 1 inputs of the convolution: x, B and C
    hidden: Float[Tensor, "rows heads head_dim states"]  # S, in float32 at least


class Mamba2Mixer(Mixer):
    """`heads` of `head_dim` channels each, in `groups` that share B and C; `gated_width` channels pass the
    recurrence by, as silu(z0) x0."""

    undecayed: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_dim: int = 64,
        state_size: int = 64,
        groups: int = 1,
        conv_size: int = 4,
        gated_width: int = 0,
        norm: GatedNorm = "after_gate",
        norm_eps: float = 1e-5,
        skip_per_channel: bool = False,
        dt_limit: tuple[float, float] | None = None,
        chunk_size: int = 64,
        bias: bool = False,
        conv_bias: bool = True,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        if heads % groups:
            raise ValueError(f"heads {heads} is not a multiple of groups {groups}")
        self.heads, self.head_dim, self.state_size, self.groups = heads, head_dim, state_size, groups
        self.gated_width, self.norm, self.norm_eps = gated_width, norm, norm_eps
        self.dt_limit, self.chunk = dt_limit, chunk_size
        self.backend: Backend = backend
        inner, mixed = heads * head_dim, heads * head_dim + 2 * groups * state_size
        self.parts = [gated_width, gated_width, inner, mixed, heads]  # z0, x0, z, xBC, dt
        self.enter = nn.Linear(width, sum(self.parts), bias=bias)
        self.conv = CausalConv(mixed, conv_size, conv_bias, kernels.for_conv(backend))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads, head_dim) if skip_per_channel else torch.empty(heads))
        self.norm_weight = None if norm == "none" else nn.Parameter(torch.empty(inner))
        self.out = nn.Linear(gated_width + inner, width, bias=bias)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """dt_bias the inverse softplus of a log-uniform step; A ~ -U(1, 16) per head; D and the norm 1."""
        self.dt_bias.copy_(inverse_softplus_of_steps(self.heads))
        self.A_log.uniform_(1.0, 16.0).log_()
        self.D.fill_(1.0)
        if self.norm_weight is not None:
            self.norm_weight.fill_(1.0)

    def init_state(self, rows: int) -> Mamba2State:
        kept = torch.promote_types(self.A_log.dtype, torch.float32)
        hidden = self.A_log.new_zeros(rows, self.heads, self.head_dim, self.state_size, dtype=kept)
        return Mamba2State(self.conv.init_state(rows), hidden)

    def forward(
        self, u: Float[Tensor, "rows time width"], state: Mamba2State
    ) -> tuple[Float[Tensor, "rows time width"], Mamba2State]:
        z0, x0, gate, mixed, dt = self.enter(u).split(self.parts, dim=-1)
        mixed, tail = self.conv(mixed, state.tail)
        shared = self.groups * self.state_size
        x, write, read = F.silu(mixed).split([mixed.shape[-1] - 2 * shared, shared, shared], dim=-1)
        y, hidden = ssd(
            rearrange(x, "b t (h k) -> b t h k", h=self.heads),
            dt,
            -self.A_log.exp(),
            rearrange(write, "b t (g n) -> b t g n", g=self.groups),
            rearrange(read, "b t (g n) -> b t g n", g=self.groups),
            state.hidden,
            skip=self.D,
            bias=self.dt_bias,
            limits=self.dt_limit,
            chunk_size=self.chunk,
            backend=self.backend,
        )
        y = self._gated(rearrange(y, "b t h k -> b t (h k)").to(u.dtype), gate)
        if self.gated_width:
            y = torch.cat([F.silu(z0) * x0, y], dim=-1)
        return self.out(y), Mamba2State(tail, hidden)

    def _gated(self, y: Tensor, gate: Tensor) -> Tensor:
        """RMS norm over each group's channels, of y silu(z) or of y alone."""
        if self.norm != "before_gate":
            y = y * F.silu(gate)
        if self.norm_weight is None:
            return y
        grouped = rearrange(y, "b t (g c) -> b t g c", g=self.groups)
        normed = F.rms_norm(grouped, grouped.shape[-1:], eps=self.norm_eps)
        y = rearrange(normed, "b t g c -> b t (g c)") * self.norm_weight
        return y * F.silu(gate) if self.norm == "before_gate" else y
