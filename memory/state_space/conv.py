"""Causal depthwise convolution over time that carries its last inputs.

The short convolution in front of every selective scan: Gu & Dao 2023, arXiv:2312.00752, figure 3; in Griffin
without activation: De et al. 2024, arXiv:2402.19427, section 2.4.

    y_t = b + sum_{j=0..K-1} w_j x_{t-K+1+j}        (w_{K-1}: the current token; zeros before the start)

Carried: the last K-1 inputs, oldest first.  The published codes keep K of them; the oldest is never used.
Differs from the papers: nothing.
"""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.memory.state_space import kernels

Backend = Literal["torch", "causal_conv1d"]


def causal_conv_loop(
    x: Float[Tensor, "rows time channels"],
    weight: Float[Tensor, "channels conv_size"],
    bias: Float[Tensor, " channels"] | None,
    state: Float[Tensor, "rows earlier channels"],
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows earlier channels"]]:
    """The definition, token by token: y, and the state after it."""
    outputs = []
    for x_t in x.unbind(1):
        window = torch.cat([state, x_t[:, None]], dim=1)
        y = torch.einsum("bkc,ck->bc", window, weight)
        outputs.append(y if bias is None else y + bias)
        state = window[:, 1:]
    return torch.stack(outputs, dim=1), state


def causal_conv(
    x: Float[Tensor, "rows time channels"],
    weight: Float[Tensor, "channels conv_size"],
    bias: Float[Tensor, " channels"] | None,
    state: Float[Tensor, "rows earlier channels"],
    backend: Backend = "torch",
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows earlier channels"]]:
    """All tokens at once; y has x's dtype, the state keeps its dtype."""
    if backend == "causal_conv1d":
        return kernels.causal_conv(x, weight, bias, state)
    inputs = torch.cat([state.to(x.dtype), x], dim=1)
    y = _Conv.apply(inputs, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return y, inputs[:, x.shape[1] :].to(state.dtype)


class _Conv(torch.autograd.Function):
    """A sum of shifted products: on a CPU far cheaper than conv1d with as many groups as channels."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        inputs: Float[Tensor, "rows earlier_and_time channels"],
        weight: Float[Tensor, "channels conv_size"],
        bias: Float[Tensor, " channels"] | None,
    ) -> Float[Tensor, "rows time channels"]:
        ctx.save_for_backward(inputs, weight)
        (first, *rest), shifted = weight.t().contiguous(), _shifts(inputs, weight)
        y = first * shifted[0] if bias is None else torch.addcmul(bias, first, shifted[0])
        for w, x in zip(rest, shifted[1:], strict=True):
            y.addcmul_(w, x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs, weight = ctx.saved_tensors
        dinputs = torch.zeros_like(inputs)
        for w, dx in zip(weight.t().contiguous(), _shifts(dinputs, weight), strict=True):
            dx.addcmul_(w, dy)
        dweight = [(dy * x).sum((0, 1)) for x in _shifts(inputs, weight)]
        dbias = dy.sum((0, 1)) if ctx.needs_input_grad[2] else None
        return dinputs, torch.stack(dweight, dim=1), dbias


def _shifts(inputs: Tensor, weight: Tensor) -> list[Tensor]:
    """For each of w_0 .. w_{K-1}, a view of the inputs that it multiplies."""
    conv_size = weight.shape[1]
    return [inputs[:, k : inputs.shape[1] - conv_size + 1 + k] for k in range(conv_size)]


class CausalConv(nn.Module):
    """The convolution with its weights, initialised like PyTorch's Conv1d: U(-1/sqrt(K), 1/sqrt(K))."""

    depthwise_kernels: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, channels: int, conv_size: int, bias: bool = True, backend: Backend = "torch") -> None:
        super().__init__()
        if conv_size < 1:
            raise ValueError(f"conv_size must be at least 1, not {conv_size}")
        if backend == "causal_conv1d":
            kernels.require("causal-conv1d")
        self.backend: Backend = backend
        bound = conv_size**-0.5
        self.weight = nn.Parameter(torch.empty(channels, conv_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None

    def init_state(self, rows: int) -> Float[Tensor, "rows earlier channels"]:
        channels, conv_size = self.weight.shape
        return self.weight.new_zeros(rows, conv_size - 1, channels)

    def forward(
        self, x: Float[Tensor, "rows time channels"], state: Float[Tensor, "rows earlier channels"]
    ) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows earlier channels"]]:
        return causal_conv(x, self.weight, self.bias, state, self.backend)
