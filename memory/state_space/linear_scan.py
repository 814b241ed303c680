"""h_t = a_t h_{t-1} + b_t for all t at once, with a backward pass of its own."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


class LinearScan(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t for (rows, time, width); backward is the same recurrence read from the end:
    g_t = dh_t + a_{t+1} g_{t+1},  da_t = g_t h_{t-1},  db_t = g_t."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
        hidden = _scan(decay, inputs, initial)
        ctx.save_for_backward(decay, hidden, initial)
        return hidden

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, hidden, initial = ctx.saved_tensors
        later = F.pad(decay[:, 1:], (0, 0, 0, 1))
        back = _scan(later.flip(1), slope.flip(1), torch.zeros_like(initial)).flip(1)
        before = torch.cat([initial[:, None], hidden[:, :-1]], dim=1)
        return back * before, back, back[:, 0] * decay[:, 0]


def _scan(
    decay: Float[Tensor, "rows time width"],
    inputs: Float[Tensor, "rows time width"],
    initial: Float[Tensor, "rows width"],
) -> Float[Tensor, "rows time width"]:
    """All chunks of about sqrt(time) tokens at once from zero, then what each chunk begins with.

    Only products of decays are taken, so one that underflows is the 0 that it should be.
    """
    time = decay.shape[1]
    chunk = max(1, round(time**0.5))
    spare = -time % chunk
    decay, inputs = (
        rearrange(F.pad(part, (0, 0, 0, spare)), "b (n c) w -> c b n w", c=chunk) for part in (decay, inputs)
    )
    hidden, product = torch.empty_like(inputs), torch.empty_like(inputs)
    hidden[0], product[0] = inputs[0], decay[0]
    for place in range(1, chunk):
        torch.addcmul(inputs[place], decay[place], hidden[place - 1], out=hidden[place])
        torch.mul(decay[place], product[place - 1], out=product[place])
    entering = [initial]
    for kept, new in zip(product[-1].unbind(1)[:-1], hidden[-1].unbind(1)[:-1], strict=True):
        entering.append(torch.addcmul(new, kept, entering[-1]))
    hidden.addcmul_(product, torch.stack(entering, dim=1))
    return rearrange(hidden, "c b n w -> b (n c) w")[:, :time]
