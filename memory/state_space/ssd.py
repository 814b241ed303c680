"""Mamba-2's recurrence, computed as attention inside chunks and as a recurrence between them.

Dao & Gu 2024, arXiv:2405.21060, section 6 (structured state-space duality).  Per head, h (P, N):

    dt = clamp(softplus(dt + dt_bias), dt_limit)
    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        y_t = h_t C_t + D x_t        y_t silu(z_t)

Carried: h.
Differs from the paper: nothing.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.memory.mixer import matmul, matmul_dtype, no_autocast
from zoo.memory.state_space import kernels
from zoo.memory.state_space.inputs import SSDInputs, cast

Backend = Literal["torch", "mamba_ssm"]


def ssd_loop(
    inputs: SSDInputs,
) -> tuple[Float[Tensor, "rows time heads head_dim"], Float[Tensor, "rows heads head_dim states"]]:
    """The definition, token by token: y, and the last h."""
    x, A, h, outputs = inputs.x, inputs.A, inputs.state, []
    heads_per_group = x.shape[2] // inputs.B.shape[2]
    tokens = (part.unbind(1) for part in (x, inputs.step_sizes(), inputs.B, inputs.C))
    for x_t, dt_t, B_t, C_t in zip(*tokens, strict=True):
        B_t, C_t = (part.repeat_interleave(heads_per_group, dim=1)[:, :, None] for part in (B_t, C_t))
        h = (dt_t * A).exp()[..., None, None] * h + (dt_t[..., None] * x_t)[..., None] * B_t
        outputs.append((h * C_t).sum(-1))
    y = torch.stack(outputs, dim=1)
    y = y if inputs.D is None else y + inputs.D.view(x.shape[2], -1) * x
    return (y if inputs.z is None else y * F.silu(inputs.z)), h


def ssd(
    inputs: SSDInputs, *, chunk_size: int = 64, backend: Backend = "torch"
) -> tuple[Float[Tensor, "rows time heads head_dim"], Float[Tensor, "rows heads head_dim states"]]:
    """`ssd_loop` in chunks, with gradients through the initial and the final state.

    Everything is computed in the state's dtype, also under autocast; only the products of matrices are in
    bfloat16 there, as in the published kernels.  `chunk_size` affects only speed and memory.
    """
    if backend == "mamba_ssm":
        return kernels.ssd(inputs, chunk_size)
    product_dtype = matmul_dtype(inputs.x, inputs.state.dtype)
    with no_autocast(inputs.x):
        inputs = cast(inputs, inputs.state.dtype)
        x, D, z = inputs.x, inputs.D, inputs.z
        chunked = _chunked if x.device.type != "cpu" else _chunked_uncompiled
        y, h = chunked(inputs, min(chunk_size, x.shape[1]), product_dtype)
        y = y if D is None else torch.addcmul(y, D.view(x.shape[2], -1), x)
        return (y if z is None else y * F.silu(z)), h


def _chunked(inputs: SSDInputs, chunk_size: int, product_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Figure 5 of the paper.  A token that pads the last chunk has dt = 0, which changes nothing."""
    x, dt, A, B, C, h = inputs.x, inputs.step_sizes(), inputs.A, inputs.B, inputs.C, inputs.state
    time, heads, groups = x.shape[1], x.shape[2], B.shape[2]
    padding = -time % chunk_size
    if padding:
        x, dt, B, C = (F.pad(part, (0, 0) * (part.ndim - 2) + (0, padding)) for part in (x, dt, B, C))
    x = rearrange(x * dt[..., None], "b (c q) (g h) p -> b c g h q p", q=chunk_size, g=groups)
    B, C = (rearrange(part, "b (c q) g n -> b c g q n", q=chunk_size) for part in (B, C))
    dA = rearrange(dt.double() * A.double(), "b (c q) (g h) -> b c g h q", q=chunk_size, g=groups)
    dA_cumsum = dA.cumsum(-1)
    dA_total = dA_cumsum[..., -1:]

    causal_mask = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=x.device).tril()
    L = _Segsum.apply(dA_cumsum, x.dtype).masked_fill_(~causal_mask, -torch.inf).exp_()
    product = partial(matmul, dtype=product_dtype)
    y = product(L * product(C, B.mT)[:, :, :, None], x)  # inside the chunks

    decayed_x = (dA_total - dA_cumsum).to(x.dtype).exp()[..., None] * x  # decayed until the chunk's end
    chunk_states = product(rearrange(decayed_x, "b c g h q p -> b c g (h p) q"), B)  # from an empty state
    chunk_states = rearrange(chunk_states, "b c g (h p) n -> c b g h p n", h=heads // groups)
    chunk_decays = rearrange(dA_total, "b c g h 1 -> c b g h 1 1").to(x.dtype).exp()
    h = rearrange(h, "b (g h) p n -> b g h p n", g=groups)
    initial_states = []  # of each chunk
    for chunk_decay, chunk_state in zip(chunk_decays.unbind(0), chunk_states.unbind(0), strict=True):
        initial_states.append(h)
        h = torch.addcmul(chunk_state, chunk_decay, h)

    initial = rearrange(torch.stack(initial_states, dim=1), "b c g h p n -> b c g n (h p)")
    state_output = rearrange(product(C, initial), "b c g q (h p) -> b c g h q p", h=heads // groups)
    y = torch.addcmul(y, dA_cumsum.to(x.dtype).exp()[..., None], state_output)
    y = rearrange(y, "b c g h q p -> b (c q) (g h) p")[:, :time]
    return y, rearrange(h, "b g h p n -> b (g h) p n")


# torch 2.13's compiled code for CPUs writes out of bounds here
_chunked_uncompiled = torch.compiler.disable(_chunked)


class _Segsum(torch.autograd.Function):
    """segsum: the sum of dt A over the tokens j + 1 .. i, as the difference of two cumulative sums.

    Cumulative sums grow large over a chunk while their differences stay small, so that float32 would lose the
    difference's digits.  Each float64 sum is therefore split into a float32 number and its rounding error,
    which are subtracted separately: almost float64's accuracy without a (chunk, chunk) tensor of float64.
    In the gradient a pair's terms for i and j must cancel, so that it is summed in float64.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, dA_cumsum: Float[Tensor, "*any chunk"], dtype: torch.dtype
    ) -> Float[Tensor, "*any chunk chunk"]:
        high = dA_cumsum.to(dtype)
        low = (dA_cumsum - high).to(dtype)
        return (high[..., :, None] - high[..., None, :]).add_(low[..., :, None] - low[..., None, :])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.sum(-1, dtype=torch.float64) - grad.sum(-2, dtype=torch.float64), None
