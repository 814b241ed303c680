"""Mamba-2's recurrence, computed as attention inside chunks and as a recurrence between them.

Dao & Gu 2024, arXiv:2405.21060, section 6 (structured state-space duality).  Per head, S (P, N):

    dt = clamp(softplus(dt + dt_bias), dt_limit)
    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T        y_t = S_t C_t + D x_t        y_t silu(z_t)

Carried: S.
Differs from the paper: nothing.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.memory.state_space import kernels
from zoo.memory.state_space.inputs import SSDInputs, cast

Backend = Literal["torch", "mamba_ssm"]


def ssd_loop(
    inputs: SSDInputs,
) -> tuple[Float[Tensor, "rows time heads head_dim"], Float[Tensor, "rows heads head_dim states"]]:
    """The definition, token by token: y, and the last S."""
    x, A, S, outputs = inputs.x, inputs.A, inputs.state, []
    heads_per_group = x.shape[2] // inputs.B.shape[2]
    tokens = (part.unbind(1) for part in (x, inputs.step_sizes(), inputs.B, inputs.C))
    for x_t, dt_t, B_t, C_t in zip(*tokens, strict=True):
        B_t, C_t = (part.repeat_interleave(heads_per_group, dim=1)[:, :, None] for part in (B_t, C_t))
        S = (dt_t * A).exp()[..., None, None] * S + (dt_t[..., None] * x_t)[..., None] * B_t
        outputs.append((S * C_t).sum(-1))
    y = torch.stack(outputs, dim=1)
    y = y if inputs.D is None else y + inputs.D.view(x.shape[2], -1) * x
    return (y if inputs.z is None else y * F.silu(inputs.z)), S


def ssd(
    inputs: SSDInputs, *, chunk_size: int = 64, backend: Backend = "torch"
) -> tuple[Float[Tensor, "rows time heads head_dim"], Float[Tensor, "rows heads head_dim states"]]:
    """`ssd_loop` in chunks, with gradients through both states.

    Everything is computed in the state's dtype, also under autocast; `chunk_size` changes the cost alone.
    """
    if backend == "mamba_ssm":
        return kernels.ssd(inputs, chunk_size)
    with torch.autocast(inputs.x.device.type, enabled=False):
        inputs = cast(inputs, inputs.state.dtype)
        x, D, z = inputs.x, inputs.D, inputs.z
        chunk_size = min(chunk_size, x.shape[1])
        y, S = _chunked(x, inputs.step_sizes(), inputs.A, inputs.B, inputs.C, inputs.state, chunk_size)
        y = y if D is None else torch.addcmul(y, D.view(x.shape[2], -1), x)
        return (y if z is None else y * F.silu(z)), S


@torch.compiler.disable  # compiled for a CPU by torch 2.13 it writes outside its buffers
def _chunked(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, S: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Figure 5 of the paper.  A token that pads the last chunk has dt = 0, which changes nothing."""
    time, heads, groups = x.shape[1], x.shape[2], B.shape[2]
    padding = -time % chunk_size
    if padding:
        x, dt, B, C = (F.pad(part, (0, 0) * (part.ndim - 2) + (0, padding)) for part in (x, dt, B, C))
    x = rearrange(x * dt[..., None], "b (c q) (g h) p -> b c g h q p", q=chunk_size, g=groups)
    B, C = (rearrange(part, "b (c q) g n -> b c g q n", q=chunk_size) for part in (B, C))
    sums = rearrange(dt.double() * A.double(), "b (c q) (g h) -> b c g h q", q=chunk_size, g=groups)
    sums = sums.cumsum(-1)
    total = sums[..., -1:]

    future = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=x.device).triu(1)
    decay = _Differences.apply(sums, x.dtype).masked_fill_(future, -torch.inf).exp_()
    y = (decay * (C @ B.mT)[:, :, :, None]) @ x  # inside the chunks

    to_end = (total - sums).to(x.dtype).exp()[..., None] * x
    added = rearrange(to_end, "b c g h q p -> b c g (h p) q") @ B  # each chunk's addition to the state
    added = rearrange(added, "b c g (h p) n -> c b g h p n", h=heads // groups)
    chunk_decays = rearrange(total, "b c g h 1 -> c b g h 1 1").to(x.dtype).exp().unbind(0)
    S = rearrange(S, "b (g h) p n -> b g h p n", g=groups)
    starts = []  # each chunk's first state
    for chunk_decay, addition in zip(chunk_decays, added.unbind(0), strict=True):
        starts.append(S)
        S = torch.addcmul(addition, chunk_decay, S)

    initial = rearrange(torch.stack(starts, dim=1), "b c g h p n -> b c g n (h p)")
    from_start = rearrange(C @ initial, "b c g q (h p) -> b c g h q p", h=heads // groups)
    y = torch.addcmul(y, sums.to(x.dtype).exp()[..., None], from_start)
    y = rearrange(y, "b c g h q p -> b (c q) (g h) p")[:, :time]
    return y, rearrange(S, "b g h p n -> b (g h) p n")


class _Differences(torch.autograd.Function):
    """s_i - s_j of sums of dt A, which grow large over a chunk while their differences are small: as exact as
    in float64, without a large float64 tensor.  In the gradient of dt A a pair's terms in s_i and s_j must
    cancel: that sum is in float64 too."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, sums: Float[Tensor, "*any chunk"], dtype: torch.dtype
    ) -> Float[Tensor, "*any chunk chunk"]:
        high = sums.to(dtype)
        low = (sums - high).to(dtype)
        return (high[..., :, None] - high[..., None, :]).add_(low[..., :, None] - low[..., None, :])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.sum(-1, dtype=torch.float64) - grad.sum(-2, dtype=torch.float64), None
