"""The rotation of pairs of features by positions times rates, with tables that layers and calls share.

Su et al. 2021, arXiv:2104.09864; the encodings that rotate: positions.py and rotary_forms.py.
"""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.memory.attention.rotary_scaling import Frequencies


def rotary(
    x: Float[Tensor, "*rows time rotated"],
    positions: Real[Tensor, "*rows_or_none time"] | range,
    base: float,
    frequencies: Frequencies | None = None,
) -> Float[Tensor, "*rows time rotated"]:
    """Rotate the pairs (i, i + K/2) by the angle position * base^(-2i/K) (arXiv:2104.09864, eq. 34), or by
    position * rate_i of given frequencies, and multiply by their factor."""
    half = x.shape[-1] // 2
    # in bf16 an angle would be pure rounding error after a few hundred positions
    dtype = torch.promote_types(x.dtype, torch.float32)
    if isinstance(positions, range):
        # a compiled graph computes its own table: it may not hold tensors from outside
        table = rotary_table if torch.compiler.is_compiling() else stored_rotary_table
        cos, sin = table(positions, half, base, x.device, dtype, frequencies)
    else:
        if frequencies is None:
            rates = base ** -(torch.arange(half, device=x.device, dtype=dtype) / half)
        else:
            rates = stored_rates(frequencies, x.device, dtype)
        angles = positions.to(dtype)[..., None] * rates
        cos, sin = angles.cos(), angles.sin()
        if frequencies is not None and frequencies.factor != 1:
            cos, sin = cos * frequencies.factor, sin * frequencies.factor
    if torch.compiler.is_compiling():
        return rotate_pairs(x, cos, sin)
    rotated: Tensor = _Rotate.apply(x.to(dtype), cos, sin)
    return rotated.to(x.dtype)


class _Rotate(torch.autograd.Function):
    """The rotation as four operations without copies, and as many in the backward pass, which turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _rotate_halves(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotate_halves(grad, cos, sin, -1), None, None


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    y = torch.empty_like(x)
    (left, right), (y_left, y_right) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(left, cos, out=y_left).addcmul_(right, sin, value=-sign)
    torch.mul(right, cos, out=y_right).addcmul_(left, sin, value=sign)
    return y


def rotate_pairs(
    x: Float[Tensor, "*rows time rotated"],
    cos: Float[Tensor, "*rows_or_none time half"],
    sin: Float[Tensor, "*rows_or_none time half"],
) -> Float[Tensor, "*rows time rotated"]:
    """The pairs (i, i + K/2) times the complex numbers cos + i sin."""
    left, right = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)


def rotary_table(
    positions: range,
    half: int,
    base: float,
    device: torch.device,
    dtype: torch.dtype,
    frequencies: Frequencies | None = None,
) -> tuple[Float[Tensor, "time half"], Float[Tensor, "time half"]]:
    """cos and sin of the angles position * base^(-k / half), k = 0 .. half - 1, or of given frequencies.

    The angles are float64, so that those of a long text's last positions are as exact as the first ones';
    MPS devices have no float64.
    """
    exact = dtype if device.type == "mps" else torch.float64
    if frequencies is None:
        rates, factor = base ** -(torch.arange(half, device=device, dtype=exact) / half), 1.0
    else:
        # a new table is made for every token that is decoded: the rates are on the device already
        rates, factor = stored_rates(frequencies, device, exact), frequencies.factor
    steps = torch.arange(positions.start, positions.stop, positions.step, device=device, dtype=exact)
    angles = steps[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    if factor != 1:
        cos, sin = cos * factor, sin * factor
    return cos.to(dtype), sin.to(dtype)


@lru_cache(maxsize=64)
def stored_rotary_table(
    positions: range,
    half: int,
    base: float,
    device: torch.device,
    dtype: torch.dtype,
    frequencies: Frequencies | None = None,
) -> tuple[Float[Tensor, "time half"], Float[Tensor, "time half"]]:
    """`rotary_table`, computed once: all layers and calls share it."""
    with torch.inference_mode(False), torch.no_grad():  # a later call may need gradients through a product
        return rotary_table(positions, half, base, device, dtype, frequencies)


def stored_rates(
    frequencies: Frequencies, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, " half"]:
    """The rates as a tensor; outside of compiled graphs copied to the device once."""
    if torch.compiler.is_compiling():
        return torch.tensor(frequencies.rates, device=device, dtype=dtype)
    return _stored_rates(frequencies, device, dtype)


@lru_cache(maxsize=64)
def _stored_rates(frequencies: Frequencies, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor(frequencies.rates, device=device, dtype=dtype)
