"""The Real-Gated Linear Recurrent Unit: a diagonal recurrence whose decay depends on the token.

De et al. 2024 (Griffin), arXiv:2402.19427, equations 1-4.

    r_t = sigmoid(W_a x_t + b_a)        i_t = sigmoid(W_x x_t + b_x)        block-diagonal matrices
    log a_t = -c r_t softplus(Lambda)        c = 8
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t)        at a text's first token: h_t = i_t x_t

Carried: h, at least float32.
Differs from the paper, as its code (google-deepmind/recurrentgemma) does: the first token is not scaled, and
the square root's gradient is at most 1000.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.memory.mixer import no_autocast
from zoo.memory.state_space.linear_scan import LinearScan

EXPONENT = 8.0  # c
MIN_4X = 1e-6  # lower bound of 4x in the gradient of sqrt(x)


def rglru_loop(
    x: Float[Tensor, "rows time width"],
    log_a: Float[Tensor, "rows time width"],
    starts: Bool[Tensor, "rows time"],
    h: Float[Tensor, "rows width"],
) -> tuple[Float[Tensor, "rows time width"], Float[Tensor, "rows width"]]:
    """The definition of `rglru`, token by token."""
    outputs = []
    for x_t, log_a_t, start in zip(
        x.to(h.dtype).unbind(1), log_a.to(h.dtype).unbind(1), starts.unbind(1), strict=True
    ):
        continued = log_a_t.exp() * h + BoundedSqrt.apply(one_minus_a_squared(log_a_t)) * x_t
        h = torch.where(start[:, None], x_t, continued)
        outputs.append(h)
    return torch.stack(outputs, dim=1), h


def rglru(
    x: Float[Tensor, "rows time width"],
    log_a: Float[Tensor, "rows time width"],
    starts: Bool[Tensor, "rows time"],
    h: Float[Tensor, "rows width"],
) -> tuple[Float[Tensor, "rows time width"], Float[Tensor, "rows width"]]:
    """h_t for every token and the last one, from i_t x_t, log a_t and the h before, in that h's dtype.

    `starts` marks first tokens of texts, at which the state before them is discarded.
    """
    with no_autocast(x):  # a sum over the whole text
        x, log_a, start = x.to(h.dtype), log_a.to(h.dtype), starts[..., None]
        a = decay(log_a).masked_fill(start, 0)
        scale = BoundedSqrt.apply(one_minus_a_squared(log_a)).masked_fill(start, 1)
        y = LinearScan.apply(a, scale * x, h)
        return y, y[:, -1]


def decay(log_a: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """a, rounded to nearest also where it is almost 1: there the exp of some processors is an ulp too small,
    which adds up over thousands of tokens."""
    return torch.where(log_a > -1, 1 + log_a.expm1(), log_a.exp())


def one_minus_a_squared(log_a: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """1 - a^2; in float64 with a^2 rounded as the published code does, else without cancellation near 1."""
    excess = (2 * log_a).expm1()  # not exp, which on some processors rounds exp(-1e-17) to 1 - 2^-53
    return 1 - (1 + excess) if log_a.dtype == torch.float64 else -excess


class BoundedSqrt(torch.autograd.Function):
    """sqrt(x) with the gradient 1 / sqrt(max(4x, 1e-6)): finite where a decay is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (4 * x).clamp(min=MIN_4X).rsqrt()


class BlockLinear(nn.Module):
    """A linear map whose matrix is block-diagonal, x_h W_h + b_h for each block h."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        if width % blocks:
            raise ValueError(f"width {width} is not a multiple of blocks {blocks}")
        self.weight = nn.Parameter(torch.randn(blocks, width // blocks, width // blocks))
        self.bias = nn.Parameter(torch.zeros(width))
        with torch.no_grad():
            self.weight.mul_((width // blocks) ** -0.5)

    def forward(self, x: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time width"]:
        parts = rearrange(x, "b t (h i) -> b t h i", h=len(self.weight))
        y = einsum(parts, self.weight, "b t h i, h i j -> b t h j")
        return rearrange(y, "b t h j -> b t (h j)") + self.bias


class RGLRU(nn.Module):
    """The unit with its gates, `blocks` blocks in each.  Initially a^2 is uniform between 0.9^2 and 0.999^2
    where r = 1/c; gates have variance 1/block, their biases are 0."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.input_gate, self.decay_gate = BlockLinear(width, blocks), BlockLinear(width, blocks)
        low, high = 0.9**2, 0.999**2
        log_a = 0.5 * (low + (high - low) * torch.rand(width)).log()
        self.rate = nn.Parameter((-log_a).expm1().log())  # Lambda: softplus(Lambda) = -log a

    def forward(
        self,
        x: Float[Tensor, "rows time width"],
        h: Float[Tensor, "rows width"],
        starts: Bool[Tensor, "rows time"],
    ) -> tuple[Float[Tensor, "rows time width"], Float[Tensor, "rows width"]]:
        i, r = (gate(x).to(h.dtype).sigmoid() for gate in (self.input_gate, self.decay_gate))
        Lambda = self.rate.to(h.dtype)
        y, h = rglru(i * x, -EXPONENT * r * F.softplus(Lambda), starts, h)
        return y.to(x.dtype), h
