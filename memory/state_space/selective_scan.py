"""The selective scan of Mamba: a diagonal linear recurrence whose step, input and output depend on the token.

Gu & Dao 2023, arXiv:2312.00752, equation 2 and algorithm 2.  Per channel e and state n:

    dt = softplus(dt + dt_bias)
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

from zoo.memory.mixer import no_autocast
from zoo.memory.state_space import kernels
from zoo.memory.state_space.inputs import ScanInputs, cast

Backend = Literal["torch", "mamba_ssm", "triton"]

MIN_CHUNK, MAX_CHUNK = 4, 32  # tokens whose states are in memory at once
CACHED = 2**18  # numbers in such a buffer, of which a CPU's core reads two or three from its cache


def selective_scan_loop(
    inputs: ScanInputs,
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows channels states"]]:
    """The definition, token by token: y, and the last h."""
    u, A, h, outputs = inputs.u, inputs.A, inputs.state, []
    channels_per_group = u.shape[2] // inputs.B.shape[2]
    tokens = (part.unbind(1) for part in (u, inputs.step_sizes(), inputs.B, inputs.C))
    for u_t, dt_t, B_t, C_t in zip(*tokens, strict=True):
        B_t, C_t = (part.repeat_interleave(channels_per_group, dim=1) for part in (B_t, C_t))
        h = (dt_t[..., None] * A).exp() * h + (dt_t * u_t)[..., None] * B_t
        outputs.append((h * C_t).sum(-1))
    y = torch.stack(outputs, dim=1)
    y = y if inputs.D is None else y + inputs.D * u
    return (y if inputs.z is None else y * F.silu(inputs.z)), h


def selective_scan(
    inputs: ScanInputs, *, backend: Backend = "torch"
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows channels states"]]:
    """`selective_scan_loop`, faster, with gradients through the initial and the final state.

    Everything is computed in the state's dtype, also under autocast.
    """
    with no_autocast(inputs.u):
        inputs = cast(inputs, inputs.state.dtype)
        u, D, z = inputs.u, inputs.D, inputs.z
        scans = {"torch": _scan, "mamba_ssm": kernels.selective_scan, "triton": kernels.triton_scan}
        y, h = scans[backend](u, inputs.step_sizes(), inputs.A, inputs.B, inputs.C, inputs.state)
        y = y if D is None else torch.addcmul(y, D, u)
        return (y if z is None else y * F.silu(z)), h


def _scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Call `_Scan` with the time axis first and the groups folded into the rows."""
    rows, groups = len(u), B.shape[2]
    y, h = _Scan.apply(
        *(rearrange(part, "b t (g e) -> t (b g) e", g=groups).contiguous() for part in (u, dt)),
        repeat(A, "(g e) n -> (b g) n e", b=rows, g=groups).contiguous(),
        *(rearrange(part, "b t g n -> t (b g) n").contiguous() for part in (B, C)),
        rearrange(h, "b (g e) n -> (b g) n e", g=groups).contiguous(),
    )
    return rearrange(y, "t (b g) e -> b t (g e)", b=rows), rearrange(h, "(b g) n e -> b (g e) n", b=rows)


class _Scan(torch.autograd.Function):
    """h_t and y_t in one pass, a chunk at a time; backward recomputes each chunk's states from its
    initial one, so that only one chunk of states is in memory.

    With a_t = exp(dt_t A) and G_t = dL/dh_t = C_t gy_t + a_{t+1} G_{t+1}: dL/d(dt_t A) = a_t h_{t-1} G_t.
    Only products of decays appear, never a quotient: nothing can overflow.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        u: Float[Tensor, "time rows channels"],
        dt: Float[Tensor, "time rows channels"],
        A: Float[Tensor, "rows states channels"],
        B: Float[Tensor, "time rows states"],
        C: Float[Tensor, "time rows states"],
        h: Float[Tensor, "rows states channels"],
    ) -> tuple[Tensor, Tensor]:
        y, initial_states, A = torch.empty_like(u), [], A / math.log(2)
        a, hs = _buffers(2, u, h)
        for chunk in _chunks(u, h):
            initial_states.append(h)
            n = len(u[chunk])
            h = _states(u[chunk], dt[chunk], A, B[chunk], h, a[:n], hs[:n]).clone()
            torch.matmul(C[chunk, :, None], hs[:n], out=y[chunk, :, None])
        ctx.save_for_backward(u, dt, A, B, C, *initial_states)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        u, dt, A, B, C, *initial_states = ctx.saved_tensors
        du, ddt, dB, dC = (torch.empty_like(part) for part in (u, dt, B, C))
        dA, dy = torch.zeros_like(A), dy.contiguous()
        buffers = _buffers(3, u, initial_states[0])
        for chunk, h in reversed(list(zip(_chunks(u, initial_states[0]), initial_states, strict=True))):
            a, hs, g = (buffer[: len(u[chunk])] for buffer in buffers)
            _states(u[chunk], dt[chunk], A, B[chunk], h, a, hs)
            torch.matmul(dy[chunk, :, None], hs.mT, out=dC[chunk, :, None])
            torch.mul(C[chunk, ..., None], dy[chunk, :, None], out=g)
            decays, grads = a.unbind(0), g.unbind(0)
            grads[-1].add_(dh)
            for t in range(len(grads) - 2, -1, -1):
                grads[t].addcmul_(decays[t + 1], grads[t + 1])
            dtu_grad = torch.matmul(B[chunk, :, None], g)[:, :, 0]  # dL/d(dt u)
            torch.matmul((dt[chunk] * u[chunk])[:, :, None], g.mT, out=dB[chunk, :, None])
            torch.mul(dtu_grad, dt[chunk], out=du[chunk])
            a.mul_(g)
            dh = a[0].clone()
            a[1:].mul_(hs[:-1])
            a[0].mul_(h)  # dL/d(dt A)
            torch.sum(torch.mul(a, A, out=hs), 2, out=ddt[chunk])
            ddt[chunk].mul_(math.log(2)).addcmul_(dtu_grad, u[chunk])
            dA += a.mul_(dt[chunk, :, None]).sum(0)
        return du, ddt, dA, dB, dC, dh


def _chunk_size(u: Tensor, h: Tensor) -> int:
    """Fewer tokens the larger a state is: 1.8 times as fast as MAX_CHUNK for 16 rows of 228 channels."""
    size = MAX_CHUNK if h.is_cuda else max(MIN_CHUNK, min(MAX_CHUNK, CACHED // max(1, h.numel())))
    return min(size, len(u))


def _chunks(u: Tensor, h: Tensor) -> list[slice]:
    size = _chunk_size(u, h)
    return [slice(start, min(start + size, len(u))) for start in range(0, len(u), size)]


def _buffers(count: int, u: Tensor, h: Tensor) -> list[Tensor]:
    """Uninitialised tensors (time, rows, states, channels) for the tokens of a chunk."""
    return [h.new_empty(_chunk_size(u, h), *h.shape) for _ in range(count)]


def _states(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, h: Tensor, a: Tensor, hs: Tensor) -> Tensor:
    """Fill `a` with the decays 2^(dt A / ln 2), three times as fast as exp, and `hs` with the states after
    each token; `A` is divided by ln 2 already.  Returns the last state."""
    torch.mul(dt[:, :, None], A, out=a).exp2_()
    torch.mul((dt * u)[:, :, None], B[..., None], out=hs)
    for decay, after in zip(a.unbind(0), hs.unbind(0), strict=True):
        h = after.addcmul_(decay, h)
    return h
