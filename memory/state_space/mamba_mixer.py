"""Mamba's mixer: short convolution, selective scan, gate.

Gu & Dao 2023, arXiv:2312.00752, section 3.4; Jamba's norms on dt, B and C: Lieber et al. 2024,
arXiv:2403.19887, section 6.4.

    x, z = W_in u        x = silu(conv(x))        r, B, C = W_x x        dt = softplus(W_dt r + dt_bias)
    y = scan(x, dt, A = -exp(A_log), B, C, D) silu(z)        out = W_out y

Carried: the convolution's last K-1 inputs and the scan's h.
Differs from the paper: nothing.
"""

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.mixer import Mixer, float32_zeros
from zoo.memory.state_space import kernels
from zoo.memory.state_space.conv import CausalConv
from zoo.memory.state_space.inputs import ScanInputs
from zoo.memory.state_space.selective_scan import Backend, selective_scan


class MambaState(NamedTuple):
    conv: Float[Tensor, "rows earlier channels"]  # the convolution's last K-1 inputs, oldest first
    ssm: Float[Tensor, "rows channels states"]  # h, in float32 at least


def initial_dt_bias(count: int) -> Float[Tensor, " count"]:
    """b with softplus(b) = dt, dt drawn log-uniformly from [1e-3, 1e-1] (arXiv:2312.00752, section 3.6)."""
    dt = torch.empty(count).uniform_(math.log(1e-3), math.log(1e-1)).exp()
    return dt + (-torch.expm1(-dt)).log()


class MambaMixer(Mixer):
    """`channels` is the inner width E; `norm_eps` turns on Jamba's RMS norms of dt's input, B and C.

    The decoder's init_weights draws the weights of its linear maps and norms; `reset` draws the rest.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        width: int,
        channels: int,
        *,
        state_size: int = 16,
        conv_size: int = 4,
        dt_rank: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        norm_eps: float | None = None,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        self.channels, self.state_size, self.dt_rank = channels, state_size, dt_rank or math.ceil(width / 16)
        self.backend: Backend = backend
        self.in_proj = nn.Linear(width, 2 * channels, bias=bias)
        self.conv = CausalConv(channels, conv_size, conv_bias, kernels.for_conv(backend))
        self.select = nn.Linear(channels, self.dt_rank + 2 * state_size, bias=False)
        self.dt_weight = nn.Parameter(torch.empty(channels, self.dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(channels))
        self.A_log = nn.Parameter(torch.empty(channels, state_size))
        self.D = nn.Parameter(torch.empty(channels))
        self.out_proj = nn.Linear(channels, width, bias=bias)
        self.dt_norm, self.write_norm, self.read_norm = (  # of r, B and C
            nn.Identity() if norm_eps is None else nn.RMSNorm(size, eps=norm_eps)
            for size in (self.dt_rank, state_size, state_size)
        )
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """dt_weight U(-R^-1/2, R^-1/2); dt_bias the inverse softplus of a log-uniform step; A = -1 .. -N in
        every channel; D = 1."""
        self.dt_weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_bias.copy_(initial_dt_bias(self.channels))
        self.A_log.copy_(torch.arange(1, self.state_size + 1).log().expand_as(self.A_log))
        self.D.fill_(1.0)

    def device_note(self, device: torch.device) -> str:
        return kernels.scan_note(self.backend, device)

    def init_state(self, rows: int) -> MambaState:
        ssm = float32_zeros(self.A_log, rows, self.channels, self.state_size)
        return MambaState(self.conv.init_state(rows), ssm)

    def forward(
        self, u: Float[Tensor, "rows time width"], state: MambaState
    ) -> tuple[Float[Tensor, "rows time width"], MambaState]:
        x, z = self.in_proj(u).chunk(2, dim=-1)
        x, conv = self.conv(x, state.conv)
        x = F.silu(x)
        r, B, C = self.select(x).split([self.dt_rank, self.state_size, self.state_size], dim=-1)
        inputs = ScanInputs(
            x,
            F.linear(self.dt_norm(r), self.dt_weight),
            -self.A_log.exp(),
            self.write_norm(B)[:, :, None],
            self.read_norm(C)[:, :, None],
            state.ssm,
            D=self.D,
            z=z,
            dt_bias=self.dt_bias,
        )
        y, ssm = selective_scan(inputs, backend=self.backend)
        return self.out_proj(y.to(x.dtype)), MambaState(conv, ssm)
