"""h_t = a_t h_{t-1} + b_t for all t at once, with a hand-written backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


class LinearScan(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t for (rows, time, width); backward is the same recurrence from the end:
    g_t = dh_t + a_{t+1} g_{t+1},  da_t = g_t h_{t-1},  db_t = g_t."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
        h = _scan(a, b, h0)
        ctx.save_for_backward(a, h, h0)
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, h, h0 = ctx.saved_tensors
        next_a = F.pad(a[:, 1:], (0, 0, 0, 1))
        g = _scan(next_a.flip(1), dh.flip(1), torch.zeros_like(h0)).flip(1)
        previous_h = torch.cat([h0[:, None], h[:, :-1]], dim=1)
        return g * previous_h, g, g[:, 0] * a[:, 0]


def _scan(
    a: Float[Tensor, "rows time width"], b: Float[Tensor, "rows time width"], h0: Float[Tensor, "rows width"]
) -> Float[Tensor, "rows time width"]:
    """Scan all chunks of about sqrt(time) tokens at once from zero, then add what each chunk's initial state
    contributes.

    Decays are only multiplied, never divided, so that underflow to 0 is harmless.
    """
    time = a.shape[1]
    chunk = max(1, round(time**0.5))
    padding = -time % chunk
    a, b = (rearrange(F.pad(part, (0, 0, 0, padding)), "b (n c) w -> c b n w", c=chunk) for part in (a, b))
    # the slices of time have to be contiguous: torch.compile knows no other `out`
    h, product = (torch.empty_like(b, memory_format=torch.contiguous_format) for _ in range(2))
    h[0], product[0] = b[0], a[0]
    for t in range(1, chunk):
        torch.addcmul(b[t], a[t], h[t - 1], out=h[t])
        torch.mul(a[t], product[t - 1], out=product[t])
    initial_states = [h0]
    for decay, chunk_state in zip(product[-1].unbind(1)[:-1], h[-1].unbind(1)[:-1], strict=True):
        initial_states.append(torch.addcmul(chunk_state, decay, initial_states[-1]))
    h.addcmul_(product, torch.stack(initial_states, dim=1))
    return rearrange(h, "c b n w -> b (n c) w")[:, :time]
