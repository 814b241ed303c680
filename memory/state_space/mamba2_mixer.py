"""Mamba-2's mixer: one projection for everything, short convolution, state-space duality, gated norm.

Dao & Gu 2024, arXiv:2405.21060, section 7.1.

    z0, x0, z, xBC, dt = W_in u        x, B, C = silu(conv(xBC))
    y = RMSNorm(ssd(x, dt, A = -exp(A_log), B, C, D) silu(z))        out = W_out [silu(z0) x0 ; y]

Carried: the convolution's last K-1 inputs (x, B and C), and every head's h.
Differs from the paper: nothing.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.mixer import Mixer, float32_zeros
from zoo.memory.state_space import kernels
from zoo.memory.state_space.conv import CausalConv
from zoo.memory.state_space.inputs import SSDInputs
from zoo.memory.state_space.mamba_mixer import initial_dt_bias
from zoo.memory.state_space.ssd import Backend, ssd

GatedNorm = Literal["after_gate", "before_gate", "none"]


class Mamba2State(NamedTuple):
    conv: Float[Tensor, "rows earlier channels"]  # the convolution's last K-1 inputs: x, B and C
    ssm: Float[Tensor, "rows heads head_dim states"]  # h, in float32 at least


class Mamba2Mixer(Mixer):
    """`heads` of `head_dim` channels each, in `groups` that share B and C; `gated_width` channels bypass
    the recurrence as silu(z0) x0."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_bias")

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
        self.dt_limit, self.chunk_size = dt_limit, chunk_size
        self.backend: Backend = backend
        inner, conv_width = heads * head_dim, heads * head_dim + 2 * groups * state_size
        self.parts = [gated_width, gated_width, inner, conv_width, heads]  # z0, x0, z, xBC, dt
        self.in_proj = nn.Linear(width, sum(self.parts), bias=bias)
        self.conv = CausalConv(conv_width, conv_size, conv_bias, kernels.for_conv(backend))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads, head_dim) if skip_per_channel else torch.empty(heads))
        self.norm_weight = None if norm == "none" else nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(gated_width + inner, width, bias=bias)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """dt_bias the inverse softplus of a log-uniform step; A ~ -U(1, 16) per head; D and the norm 1."""
        self.dt_bias.copy_(initial_dt_bias(self.heads))
        self.A_log.uniform_(1.0, 16.0).log_()
        self.D.fill_(1.0)
        if self.norm_weight is not None:
            self.norm_weight.fill_(1.0)

    def init_state(self, rows: int) -> Mamba2State:
        ssm = float32_zeros(self.A_log, rows, self.heads, self.head_dim, self.state_size)
        return Mamba2State(self.conv.init_state(rows), ssm)

    def forward(
        self, u: Float[Tensor, "rows time width"], state: Mamba2State
    ) -> tuple[Float[Tensor, "rows time width"], Mamba2State]:
        z0, x0, z, xBC, dt = self.in_proj(u).split(self.parts, dim=-1)
        xBC, conv = self.conv(xBC, state.conv)
        states = self.groups * self.state_size
        x, B, C = F.silu(xBC).split([xBC.shape[-1] - 2 * states, states, states], dim=-1)
        inputs = SSDInputs(
            rearrange(x, "b t (h k) -> b t h k", h=self.heads),
            dt,
            -self.A_log.exp(),
            rearrange(B, "b t (g n) -> b t g n", g=self.groups),
            rearrange(C, "b t (g n) -> b t g n", g=self.groups),
            state.ssm,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_limit=self.dt_limit,
        )
        y, ssm = ssd(inputs, chunk_size=self.chunk_size, backend=self.backend)
        y = self.gated_norm(rearrange(y, "b t h k -> b t (h k)").to(u.dtype), z)
        if self.gated_width:
            y = torch.cat([F.silu(z0) * x0, y], dim=-1)
        return self.out_proj(y), Mamba2State(conv, ssm)

    def gated_norm(
        self, y: Float[Tensor, "rows time inner"], z: Float[Tensor, "rows time inner"]
    ) -> Float[Tensor, "rows time inner"]:
        """RMS norm over each group's channels, of y silu(z) or of y alone."""
        if self.norm != "before_gate":
            y = y * F.silu(z)
        if self.norm_weight is None:
            return y
        grouped = rearrange(y, "b t (g c) -> b t g c", g=self.groups)
        normed = F.rms_norm(grouped, grouped.shape[-1:], eps=self.norm_eps)
        y = rearrange(normed, "b t g c -> b t (g c)") * self.norm_weight
        return y * F.silu(z) if self.norm == "before_gate" else y
