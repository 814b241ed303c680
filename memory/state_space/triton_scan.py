"""Mamba's selective scan in two Triton kernels: `backend: triton`, for CUDA devices without mamba_ssm.

Every program reads a block of channels of one row, token by token, with h in registers: a scan is one launch,
where plain PyTorch needs one per token.  The forward kernel stores h at every `CHUNK`-th token; the backward
kernel reads a chunk again from there and then goes back through it (equations in selective_scan.py):

    G_t = C_t dy_t + a_{t+1} G_{t+1}        a_t = exp(dt_t A)

Sums over channels (dB, dC) are written per block and added up outside, in a fixed order.

Imports triton, which comes with torch for CUDA: `kernels.triton_scan` imports this module when it is called.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 32  # tokens between two stored states
BLOCK = 32  # channels per program


def scan(
    u: Float[Tensor, "rows time channels"],
    dt: Float[Tensor, "rows time channels"],
    A: Float[Tensor, "channels states"],
    B: Float[Tensor, "rows time groups states"],
    C: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows channels states"],
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows channels states"]]:
    """The scan of zoo.memory.state_space.selective_scan with dt as it is, in the state's dtype."""
    y, after = _Scan.apply(*(part.contiguous() for part in (u, dt, A, B, C, state)))
    return y, after


@triton.jit
def _indices(group_channels, states, BLOCK: tl.constexpr, STATES: tl.constexpr):
    """This program's row and group, its channels and states, each with a mask."""
    row, group, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    within_group = block * BLOCK + tl.arange(0, BLOCK)
    e, n = group * group_channels + within_group, tl.arange(0, STATES)
    e_mask, n_mask = within_group < group_channels, n < states
    return row, group, e, e_mask, n, n_mask


@triton.jit
def _step(h, u, dt, A, B):
    """h after one token, and the token's decay."""
    a = tl.exp(dt[:, None] * A)
    return a * h + (dt * u)[:, None] * B[None, :], a


@triton.jit
def _forward(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, h_ptr, y_ptr, after_ptr, stored_ptr,
    time, chunks, channels, group_channels, groups, states,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    row, group, e, e_mask, n, n_mask = _indices(group_channels, states, BLOCK, STATES)
    pairs, mask = e[:, None] * states + n[None, :], e_mask[:, None] & n_mask[None, :]
    size = channels * states
    A = tl.load(A_ptr + pairs, mask=mask, other=0.0)
    h = tl.load(h_ptr + row * size + pairs, mask=mask, other=0.0)
    for chunk in range(chunks):
        tl.store(stored_ptr + (row * chunks + chunk) * size + pairs, h, mask=mask)
        for t in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, time)):
            token = row * time + t
            u = tl.load(u_ptr + token * channels + e, mask=e_mask, other=0.0)
            dt = tl.load(dt_ptr + token * channels + e, mask=e_mask, other=0.0)
            B = tl.load(B_ptr + (token * groups + group) * states + n, mask=n_mask, other=0.0)
            C = tl.load(C_ptr + (token * groups + group) * states + n, mask=n_mask, other=0.0)
            h, _ = _step(h, u, dt, A, B)
            tl.store(y_ptr + token * channels + e, tl.sum(h * C[None, :], axis=1), mask=e_mask)
    tl.store(after_ptr + row * size + pairs, h, mask=mask)


@triton.jit
def _backward(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, stored_ptr, dy_ptr, dafter_ptr, scratch_ptr,
    du_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dh_ptr,
    time, chunks, channels, group_channels, groups, states,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """`scratch` (rows, CHUNK, channels, states) has the states before each token of the current chunk; dA is
    per row, dB and dC are per block of channels."""
    row, group, e, e_mask, n, n_mask = _indices(group_channels, states, BLOCK, STATES)
    pairs, mask = e[:, None] * states + n[None, :], e_mask[:, None] & n_mask[None, :]
    size = channels * states
    A = tl.load(A_ptr + pairs, mask=mask, other=0.0)
    G = tl.load(dafter_ptr + row * size + pairs, mask=mask, other=0.0)
    dA = tl.zeros_like(A)
    for back in range(chunks):
        chunk = chunks - 1 - back
        start, end = chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, time)
        h = tl.load(stored_ptr + (row * chunks + chunk) * size + pairs, mask=mask, other=0.0)
        for t in range(start, end):
            token = row * time + t
            u = tl.load(u_ptr + token * channels + e, mask=e_mask, other=0.0)
            dt = tl.load(dt_ptr + token * channels + e, mask=e_mask, other=0.0)
            B = tl.load(B_ptr + (token * groups + group) * states + n, mask=n_mask, other=0.0)
            tl.store(scratch_ptr + (row * CHUNK + t - start) * size + pairs, h, mask=mask)
            h, _ = _step(h, u, dt, A, B)
        tl.debug_barrier()  # what a thread reads back, another one may have written
        for i in range(end - start):
            t = end - 1 - i
            token = row * time + t
            vector = token * groups + group
            u = tl.load(u_ptr + token * channels + e, mask=e_mask, other=0.0)
            dt = tl.load(dt_ptr + token * channels + e, mask=e_mask, other=0.0)
            dy = tl.load(dy_ptr + token * channels + e, mask=e_mask, other=0.0)
            B = tl.load(B_ptr + vector * states + n, mask=n_mask, other=0.0)
            C = tl.load(C_ptr + vector * states + n, mask=n_mask, other=0.0)
            before = tl.load(scratch_ptr + (row * CHUNK + t - start) * size + pairs, mask=mask, other=0.0)
            h, a = _step(before, u, dt, A, B)
            G += dy[:, None] * C[None, :]
            part = (vector * tl.num_programs(2) + tl.program_id(2)) * states + n
            tl.store(dC_ptr + part, tl.sum(h * dy[:, None], axis=0), mask=n_mask)
            tl.store(dB_ptr + part, tl.sum(G * (dt * u)[:, None], axis=0), mask=n_mask)
            ddtu = tl.sum(G * B[None, :], axis=1)  # dL/d(dt u)
            G *= a
            ddtA = G * before  # dL/d(dt A)
            tl.store(du_ptr + token * channels + e, ddtu * dt, mask=e_mask)
            tl.store(ddt_ptr + token * channels + e, ddtu * u + tl.sum(ddtA * A, axis=1), mask=e_mask)
            dA += ddtA * dt[:, None]
        tl.debug_barrier()  # before the next chunk's states are written over these
    tl.store(dA_ptr + row * size + pairs, dA, mask=mask)
    tl.store(dh_ptr + row * size + pairs, G, mask=mask)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        grid, sizes, blocks = _launch(u, B)
        y, after, chunks = torch.empty_like(u), torch.empty_like(h), sizes[1]
        stored = h.new_empty(len(u), chunks, *A.shape)
        with _device(u):
            _forward[grid](u, dt, A, B, C, h, y, after, stored, *sizes, **blocks)
        ctx.save_for_backward(u, dt, A, B, C, stored)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dafter: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        u, dt, A, B, C, stored = ctx.saved_tensors
        grid, sizes, blocks = _launch(u, B)
        du, ddt, dh = torch.empty_like(u), torch.empty_like(dt), torch.empty_like(dafter).contiguous()
        dA = A.new_empty(len(u), *A.shape)
        dB, dC = (A.new_empty(*B.shape[:3], grid[2], A.shape[1]) for _ in range(2))
        scratch = A.new_empty(len(u), CHUNK, *A.shape)
        inputs = (u, dt, A, B, C, stored, dy.contiguous(), dafter.contiguous(), scratch)
        with _device(u):
            _backward[grid](*inputs, du, ddt, dA, dB, dC, dh, *sizes, **blocks)
        return du, ddt, dA.sum(0), dB.sum(3), dC.sum(3), dh


def _launch(u: Tensor, B: Tensor) -> tuple[tuple[int, int, int], tuple[int, ...], dict[str, int]]:
    """The grid (rows, groups, blocks of channels), and the kernels' sizes and constants."""
    (rows, time, channels), (groups, states) = u.shape, B.shape[2:]
    group_channels = channels // groups
    grid = (rows, groups, triton.cdiv(group_channels, BLOCK))
    sizes = (time, triton.cdiv(time, CHUNK), channels, group_channels, groups, states)
    return grid, sizes, {"CHUNK": CHUNK, "BLOCK": BLOCK, "STATES": triton.next_power_of_2(states)}


def _device(x: Tensor) -> Any:
    """Triton launches on the current device, which may be another one than x's."""
    return torch.cuda.device_of(x)
