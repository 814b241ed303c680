"""The inputs of the recurrences of Mamba and Mamba-2, in the papers' letters.

dt <- softplus(dt + dt_bias), within dt_limit        y <- y + D x        y <- y silu(z)
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Inputs = TypeVar("Inputs", "ScanInputs", "SSDInputs")


@dataclass(frozen=True, eq=False)
class ScanInputs:
    """Inputs of Mamba's selective scan; channel e belongs to group e // (channels / groups)."""

    u: Float[Tensor, "rows time channels"]
    dt: Float[Tensor, "rows time channels"]
    A: Float[Tensor, "channels states"]
    B: Float[Tensor, "rows time groups states"]
    C: Float[Tensor, "rows time groups states"]
    state: Float[Tensor, "rows channels states"]  # h before the first token
    D: Float[Tensor, " channels"] | None = None
    z: Float[Tensor, "rows time channels"] | None = None
    dt_bias: Float[Tensor, " channels"] | None = None
    dt_softplus: bool = True

    def step_sizes(self) -> Float[Tensor, "rows time channels"]:
        return step_sizes(self.dt, self.dt_bias, self.dt_softplus)


@dataclass(frozen=True, eq=False)
class SSDInputs:
    """Inputs of Mamba-2's recurrence; head i belongs to group i // (heads / groups)."""

    x: Float[Tensor, "rows time heads head_dim"]
    dt: Float[Tensor, "rows time heads"]
    A: Float[Tensor, " heads"]
    B: Float[Tensor, "rows time groups states"]
    C: Float[Tensor, "rows time groups states"]
    state: Float[Tensor, "rows heads head_dim states"]  # h before the first token
    D: Float[Tensor, "heads ..."] | None = None  # per head, or per head and channel
    z: Float[Tensor, "rows time heads head_dim"] | None = None
    dt_bias: Float[Tensor, " heads"] | None = None
    dt_softplus: bool = True
    dt_limit: tuple[float, float] | None = None

    def step_sizes(self) -> Float[Tensor, "rows time heads"]:
        dt = step_sizes(self.dt, self.dt_bias, self.dt_softplus)
        return dt if self.dt_limit is None else dt.clamp(*self.dt_limit)


def step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool) -> Tensor:
    """dt after bias and softplus, in the shape of `dt`."""
    dt = dt if dt_bias is None else dt + dt_bias
    return F.softplus(dt) if dt_softplus else dt


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The inputs with every tensor in `dtype`; settings unchanged."""
    values = ((field.name, getattr(inputs, field.name)) for field in fields(inputs))
    tensors: dict[str, Any] = {name: x.to(dtype) for name, x in values if isinstance(x, Tensor)}
    return replace(inputs, **tensors)
