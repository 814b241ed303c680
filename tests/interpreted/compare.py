"""Two forms of a recurrence side by side: values, final state and every gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Form = Callable[..., tuple[Tensor, Tensor]]


def draw(dtype: torch.dtype, **shapes: tuple[int, ...]) -> Tensors:
    rng = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def run(form: Form, tensors: Tensors) -> Tensors:
    """y, the final state, and the gradients of all `tensors` through both, by name."""
    y, after = form(**tensors)
    rng, total = torch.Generator().manual_seed(9), torch.zeros((), dtype=torch.float64)
    for output in (y, after):
        total = total + (output.double() * torch.randn(output.shape, generator=rng)).sum()
    gradients = torch.autograd.grad(total, list(tensors.values()))
    return {"y": y, "after": after} | dict(zip(tensors, gradients, strict=True))


def assert_same(result: Tensors, expected: Tensors, tolerance: float) -> None:
    """`tolerance` is relative to each tensor's largest entry."""
    assert result.keys() == expected.keys()
    for name, reference in expected.items():
        assert result[name].shape == reference.shape, name
        gap = (result[name].double() - reference.double()).abs().max().item()
        largest = reference.abs().max().item()
        assert gap <= tolerance * largest, f"{name}: off by {gap:.2g} of {largest:.2g}"
