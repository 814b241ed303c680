"""The selective scan of Mamba: a diagonal linear recurrence whose step, input and output depend on the token.

Gu & Dao 2023, arXiv:2312.00752, equation 2 and algorithm 2.  Per channel e and state n:

    dt = softplus(delta + delta_bias)
    h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t        y_t = sum_n C_t[n] h_t[n] + D u_t        y_t silu(z_t)

Carried: h.
Differs from the paper, as its code does: B is discretised by Euler's rule, not by a zero-order hold.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.memory import kernels

Backend = Literal["torch", "mamba_ssm"]

CHUNK = 32  # tokens whose states are held at once: they fit into a core's cache


def selective_scan_loop(
    u: Float[Tensor, "rows time channels"],
    delta: Float[Tensor, "rows time channels"],
    rates: Float[Tensor, "channels states"],
    write: Float[Tensor, "rows time groups states"],
    read: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows channels states"],
    *,
    skip: Float[Tensor, " channels"] | None = None,
    gate: Float[Tensor, "rows time channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    softplus: bool = True,
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows channels states"]]:
    """The definition, token by token."""
    dt = delta if bias is None else delta + bias
    dt = F.softplus(dt) if softplus else dt
    each, said = u.shape[2] // write.shape[2], []
    for u_t, dt_t, b, c in zip(*(x.unbind(1) for x in (u, dt, write, read)), strict=True):
        b, c = (part.repeat_interleave(each, dim=1) for part in (b, c))
        state = (dt_t[..., None] * rates).exp() * state + (dt_t * u_t)[..., None] * b
        said.append((state * c).sum(-1))
    y = torch.stack(said, dim=1)
    y = y if skip is None else y + skip * u
    return (y if gate is None else y * F.silu(gate)), state


def selective_scan(
    u: Float[Tensor, "rows time channels"],
    delta: Float[Tensor, "rows time channels"],
    rates: Float[Tensor, "channels states"],
    write: Float[Tensor, "rows time groups states"],
    read: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows channels states"],
    *,
    skip: Float[Tensor, " channels"] | None = None,
    gate: Float[Tensor, "rows time channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    softplus: bool = True,
    backend: Backend = "torch",
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows channels states"]]:
    """The scan from a given state, and the state after it, with gradients through both.

    `rates` is A, `write` B, `read` C, `skip` D, `gate` z, `bias` that of delta; channel e belongs to group
    e // (channels / groups).  All is computed in the state's dtype, also under autocast.
    """
    with torch.autocast(u.device.type, enabled=False):
        u, delta, rates, write, read = (x.to(state.dtype) for x in (u, delta, rates, write, read))
        dt = delta if bias is None else delta + bias.to(state.dtype)
        dt = F.softplus(dt) if softplus else dt
        scan = kernels.selective_scan if backend == "mamba_ssm" else _scan
        y, after = scan(u, dt, rates, write, read, state)
        y = y if skip is None else torch.addcmul(y, skip.to(state.dtype), u)
        y = y if gate is None else y * F.silu(gate.to(state.dtype))
        return y, after


def _scan(
    u: Tensor, dt: Tensor, rates: Tensor, write: Tensor, read: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Time first, and groups as rows of their own."""
    rows, groups = len(u), write.shape[2]
    y, after = _Scan.apply(
        *(rearrange(x, "b t (g e) -> t (b g) e", g=groups).contiguous() for x in (u, dt)),
        repeat(rates, "(g e) n -> (b g) n e", b=rows, g=groups).contiguous(),
        *(rearrange(x, "b t g n -> t (b g) n").contiguous() for x in (write, read)),
        rearrange(state, "b (g e) n -> (b g) n e", g=groups).contiguous(),
    )
    return rearrange(y, "t (b g) e -> b t (g e)", b=rows), rearrange(after, "(b g) n e -> b (g e) n", b=rows)


class _Scan(torch.autograd.Function):
    """h_t and y_t in one pass, a chunk at a time; going back, each chunk's states are computed again from
    the one it began with, so that states are never held for more than a chunk.

    With a_t = exp(dt_t A) and G_t = dL/dh_t = C_t gy_t + a_{t+1} G_{t+1}: dL/d(dt_t A) = a_t h_{t-1} G_t.
    Only products of decays appear, never a quotient: nothing can overflow.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        u: Float[Tensor, "time rows channels"],
        dt: Float[Tensor, "time rows channels"],
        rates: Float[Tensor, "rows states channels"],
        write: Float[Tensor, "time rows states"],
        read: Float[Tensor, "time rows states"],
        h: Float[Tensor, "rows states channels"],
    ) -> tuple[Tensor, Tensor]:
        y, began, rates = torch.empty_like(u), [], rates / math.log(2)
        a, hs = _room(2, u, h)
        for now in _chunks(u):
            began.append(h)
            n = len(u[now])
            h = _states(u[now], dt[now], rates, write[now], h, a[:n], hs[:n]).clone()
            torch.matmul(read[now, :, None], hs[:n], out=y[now, :, None])
        ctx.save_for_backward(u, dt, rates, write, read, *began)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, carried: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        u, dt, rates, write, read, *began = ctx.saved_tensors
        du, ddt, dwrite, dread = (torch.empty_like(x) for x in (u, dt, write, read))
        drates, grad_y = torch.zeros_like(rates), grad_y.contiguous()
        room = _room(3, u, began[0])
        for now, h in reversed(list(zip(_chunks(u), began, strict=True))):
            a, hs, g = (x[: len(u[now])] for x in room)
            _states(u[now], dt[now], rates, write[now], h, a, hs)
            torch.matmul(grad_y[now, :, None], hs.mT, out=dread[now, :, None])
            torch.mul(read[now, ..., None], grad_y[now, :, None], out=g)
            decays, grads = a.unbind(0), g.unbind(0)
            grads[-1].add_(carried)
            for t in range(len(grads) - 2, -1, -1):
                grads[t].addcmul_(decays[t + 1], grads[t + 1])
            dbu = torch.matmul(write[now, :, None], g)[:, :, 0]  # dL/d(dt u)
            torch.matmul((dt[now] * u[now])[:, :, None], g.mT, out=dwrite[now, :, None])
            torch.mul(dbu, dt[now], out=du[now])
            a.mul_(g)
            carried = a[0].clone()
            a[1:].mul_(hs[:-1])
            a[0].mul_(h)  # dL/d(dt A)
            torch.sum(torch.mul(a, rates, out=hs), 2, out=ddt[now])
            ddt[now].mul_(math.log(2)).addcmul_(dbu, u[now])
            drates += a.mul_(dt[now, :, None]).sum(0)
        return du, ddt, drates, dwrite, dread, carried


def _chunks(u: Tensor) -> list[slice]:
    return [slice(start, min(start + CHUNK, len(u))) for start in range(0, len(u), CHUNK)]


def _room(count: int, u: Tensor, h: Tensor) -> list[Tensor]:
    """Buffers for what a chunk has of every state, (time, rows, states, channels)."""
    return [h.new_empty(min(CHUNK, len(u)), *h.shape) for _ in range(count)]


def _states(u: Tensor, dt: Tensor, rates: Tensor, write: Tensor, h: Tensor, a: Tensor, hs: Tensor) -> Tensor:
    """Fill `a` with the decays 2^(dt A / ln 2), three times as fast as exp, and `hs` with the states after
    each token; the last of them."""
    torch.mul(dt[:, :, None], rates, out=a).exp2_()
    torch.mul((dt * u)[:, :, None], write[..., None], out=hs)
    for decay, after in zip(a.unbind(0), hs.unbind(0), strict=True):
        h = after.addcmul_(decay, h)
    return h
