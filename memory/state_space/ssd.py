"""Mamba-2's recurrence, computed as attention inside chunks and as a recurrence between them.

Dao & Gu 2024, arXiv:2405.21060, section 6 (structured state-space duality).  Per head, S (P, N):

    dt = clamp(softplus(dt + dt_bias), limits)
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

from zoo.memory import kernels

Backend = Literal["torch", "mamba_ssm"]


def ssd_loop(
    x: Float[Tensor, "rows time heads head_dim"],
    dt: Float[Tensor, "rows time heads"],
    rates: Float[Tensor, " heads"],
    write: Float[Tensor, "rows time groups states"],
    read: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows heads head_dim states"],
    *,
    skip: Float[Tensor, "heads ..."] | None = None,
    gate: Float[Tensor, "rows time heads head_dim"] | None = None,
    bias: Float[Tensor, " heads"] | None = None,
    softplus: bool = True,
    limits: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "rows time heads head_dim"], Float[Tensor, "rows heads head_dim states"]]:
    """The definition, token by token."""
    dt = dt if bias is None else dt + bias
    dt = F.softplus(dt) if softplus else dt
    dt = dt if limits is None else dt.clamp(*limits)
    each, said = x.shape[2] // write.shape[2], []
    for x_t, dt_t, b, c in zip(*(part.unbind(1) for part in (x, dt, write, read)), strict=True):
        b, c = (part.repeat_interleave(each, dim=1)[:, :, None] for part in (b, c))
        state = (dt_t * rates).exp()[..., None, None] * state + (dt_t[..., None] * x_t)[..., None] * b
        said.append((state * c).sum(-1))
    y = torch.stack(said, dim=1)
    y = y if skip is None else y + skip.view(x.shape[2], -1) * x
    return (y if gate is None else y * F.silu(gate)), state


def ssd(
    x: Float[Tensor, "rows time heads head_dim"],
    dt: Float[Tensor, "rows time heads"],
    rates: Float[Tensor, " heads"],
    write: Float[Tensor, "rows time groups states"],
    read: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows heads head_dim states"],
    *,
    skip: Float[Tensor, "heads ..."] | None = None,
    gate: Float[Tensor, "rows time heads head_dim"] | None = None,
    bias: Float[Tensor, " heads"] | None = None,
    softplus: bool = True,
    limits: tuple[float, float] | None = None,
    chunk_size: int = 64,
    backend: Backend = "torch",
) -> tuple[Float[Tensor, "rows time heads head_dim"], Float[Tensor, "rows heads head_dim states"]]:
    """The recurrence from a given state, and the state after it, with gradients through both.

    `rates` is A, `write` B, `read` C, `skip` D (per head, or per head and width), `gate` z; head h belongs to
    group h // (heads / groups).  All is computed in the state's dtype, also under autocast; `chunk_size`
    changes the cost alone.
    """
    if backend == "mamba_ssm":
        return kernels.ssd(
            x,
            dt,
            rates,
            write,
            read,
            state,
            skip=skip,
            gate=gate,
            bias=bias,
            softplus=softplus,
            limits=limits,
            chunk_size=chunk_size,
        )
    with torch.autocast(x.device.type, enabled=False):
        x, dt, rates, write, read = (part.to(state.dtype) for part in (x, dt, rates, write, read))
        dt = dt if bias is None else dt + bias.to(state.dtype)
        dt = F.softplus(dt) if softplus else dt
        dt = dt if limits is None else dt.clamp(*limits)
        y, after = _chunked(x, dt, rates, write, read, state, min(chunk_size, x.shape[1]))
        y = y if skip is None else torch.addcmul(y, skip.to(state.dtype).view(x.shape[2], -1), x)
        return (y if gate is None else y * F.silu(gate.to(state.dtype))), after


@torch.compiler.disable  # compiled for a CPU by torch 2.13 it writes outside its buffers
def _chunked(
    x: Tensor, dt: Tensor, rates: Tensor, write: Tensor, read: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Figure 5 of the paper.  A token added to fill the last chunk has dt = 0, which changes nothing."""
    time, heads, groups = x.shape[1], x.shape[2], write.shape[2]
    spare = -time % chunk_size
    if spare:
        x, dt, write, read = (
            F.pad(part, (0, 0) * (part.ndim - 2) + (0, spare)) for part in (x, dt, write, read)
        )
    x = rearrange(x * dt[..., None], "b (c q) (g h) p -> b c g h q p", q=chunk_size, g=groups)
    write, read = (rearrange(part, "b (c q) g n -> b c g q n", q=chunk_size) for part in (write, read))
    sums = rearrange(dt.double() * rates.double(), "b (c q) (g h) -> b c g h q", q=chunk_size, g=groups)
    sums = sums.cumsum(-1)
    whole = sums[..., -1:]

    ahead = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=x.device).triu(1)
    kept = _Differences.apply(sums, x.dtype).masked_fill_(ahead, -torch.inf).exp_()
    y = (kept * (read @ write.mT)[:, :, :, None]) @ x  # inside the chunks

    ends = (whole - sums).to(x.dtype).exp()[..., None] * x
    new = rearrange(ends, "b c g h q p -> b c g (h p) q") @ write  # what each chunk adds to the state
    faded = rearrange(whole, "b c g h 1 -> c b g h 1 1").to(x.dtype).exp().unbind(0)
    new = rearrange(new, "b c g (h p) n -> c b g h p n", h=heads // groups)
    state = rearrange(state, "b (g h) p n -> b g h p n", g=groups)
    before = []
    for fade, add in zip(faded, new.unbind(0), strict=True):
        before.append(state)
        state = torch.addcmul(add, fade, state)

    carried = rearrange(torch.stack(before, dim=1), "b c g h p n -> b c g n (h p)")
    old = rearrange(read @ carried, "b c g q (h p) -> b c g h q p", h=heads // groups)
    y = torch.addcmul(y, sums.to(x.dtype).exp()[..., None], old)
    y = rearrange(y, "b c g h q p -> b (c q) (g h) p")[:, :time]
    return y, rearrange(state, "b g h p n -> b (g h) p n")


class _Differences(torch.autograd.Function):
    """s_i - s_j of sums of dt A, which grow large over a chunk where their differences are small: as exact as
    from float64, without a large tensor of it.  Going back, what a pair gives to s_i and takes from s_j must
    cancel in the gradient of dt A: that sum is in float64 too."""

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
