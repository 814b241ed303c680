"""Causal depthwise convolution over time, with the tail of what was read before carried along.

The short convolution in front of every selective scan: Gu & Dao 2023, arXiv:2312.00752, figure 3; in Griffin
without activation: De et al. 2024, arXiv:2402.19427, section 2.4.

    y_t = b + sum_{j=0..K-1} w_j x_{t-K+1+j}        (w_{K-1} weighs the current token; zeros before the start)

Carried: the last K-1 inputs, oldest first.  The published codes keep K of them; nothing reads the oldest.
Differs from the papers: nothing.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.memory import kernels

Backend = Literal["torch", "causal_conv1d"]


def causal_conv_loop(
    x: Float[Tensor, "rows time channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
    tail: Float[Tensor, "rows earlier channels"],
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows earlier channels"]]:
    """The definition, token by token: what was said, and the tail after it."""
    said = []
    for x_t in x.unbind(1):
        seen = torch.cat([tail, x_t[:, None]], dim=1)
        y = torch.einsum("bkc,ck->bc", seen, weight)
        said.append(y if bias is None else y + bias)
        tail = seen[:, 1:]
    return torch.stack(said, dim=1), tail


def causal_conv(
    x: Float[Tensor, "rows time channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
    tail: Float[Tensor, "rows earlier channels"],
    backend: Backend = "torch",
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows earlier channels"]]:
    """All tokens at once; y has x's dtype, the tail keeps its own."""
    if backend == "causal_conv1d":
        return kernels.causal_conv(x, weight, bias, tail)
    seen = torch.cat([tail.to(x.dtype), x], dim=1)
    y = _Conv.apply(seen, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return y, seen[:, x.shape[1] :].to(tail.dtype)


class _Conv(torch.autograd.Function):
    """A sum of shifted products: on a CPU far cheaper than conv1d with as many groups as channels."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        seen: Float[Tensor, "rows earlier_and_time channels"],
        weight: Float[Tensor, "channels taps"],
        bias: Float[Tensor, " channels"] | None,
    ) -> Float[Tensor, "rows time channels"]:
        ctx.save_for_backward(seen, weight)
        (first, *rest), conv_size = weight.t().contiguous(), _shifts(seen, weight)
        y = first * conv_size[0] if bias is None else torch.addcmul(bias, first, conv_size[0])
        for w, x in zip(rest, conv_size[1:], strict=True):
            y.addcmul_(w, x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        seen, weight = ctx.saved_tensors
        dseen = torch.zeros_like(seen)
        for w, d in zip(weight.t().contiguous(), _shifts(dseen, weight), strict=True):
            d.addcmul_(w, grad)
        dweight = [(grad * x).sum((0, 1)) for x in _shifts(seen, weight)]
        dbias = grad.sum((0, 1)) if ctx.needs_input_grad[2] else None
        return dseen, torch.stack(dweight, dim=1), dbias


def _shifts(seen: Tensor, weight: Tensor) -> list[Tensor]:
    """What each tap sees, the oldest first."""
    conv_size = weight.shape[1]
    return [seen[:, k : seen.shape[1] - conv_size + 1 + k] for k in range(conv_size)]


class CausalConv(nn.Module):
    """The convolution's weights, drawn as PyTorch's Conv1d draws them: U(-1/sqrt(K), 1/sqrt(K))."""

    def __init__(self, channels: int, conv_size: int, bias: bool = True, backend: Backend = "torch") -> None:
        super().__init__()
        if conv_size < 1:
            raise ValueError(f"conv_size must be at least 1, not {conv_size}")
        if backend == "causal_conv1d":
            kernels.require("causal-conv1d")
        self.backend: Backend = backend
        self.weight = nn.Parameter(
            torch.empty(channels, conv_size).uniform_(-(conv_size**-0.5), conv_size**-0.5)
        )
        self.bias = (
            nn.Parameter(torch.empty(channels).uniform_(-(conv_size**-0.5), conv_size**-0.5))
            if bias
            else None
        )

    def init_state(self, rows: int) -> Float[Tensor, "rows earlier channels"]:
        channels, conv_size = self.weight.shape
        return self.weight.new_zeros(rows, conv_size - 1, channels)

    def forward(
        self, x: Float[Tensor, "rows time channels"], tail: Float[Tensor, "rows earlier channels"]
    ) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows earlier channels"]]:
        return causal_conv(x, self.weight, self.bias, tail, self.backend)
