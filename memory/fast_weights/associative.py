"""An associative memory: one matrix of fast weights, written by the delta rule and read by linear attention.

Rodkin et al. 2024, arXiv:2407.04841, equations 1-4; DPFP: Schlag et al. 2021, arXiv:2102.11174, section 3.4.

    phi(x) = DPFP-nu(x)         read(x) = phi(W_q x) A / (z phi(W_q x) + eps), which ARMT adds to x
    k_i, v_i, b_i = phi(W_k m_i), W_v m_i, sigmoid(W_b m_i)        old_i = k_i A / (z k_i + eps)
    A <- A + sum_i b_i k_i (v_i - old_i)        z <- z + sum_i gamma_i k_i
    gamma_i = clip(1 - (z k_i + eps) / (|k_i|^2 + eps), 0, 1), without gradient

Carried: A and z, and the number of writes to each row.  The first write has old = 0 and gamma = 1.
Differs from the paper, as its code does: eps = 1e-5, gamma is clipped, W_b has a bias, and ARMT adds read(x)
to x.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.gradients import stop_gradient

EPS = 1e-5


class AssociativeState(NamedTuple):
    matrix: Float[Tensor, "rows features width"]  # A
    normaliser: Float[Tensor, "rows features"]  # z
    writes: Int[Tensor, " rows"]


def dpfp(x: Float[Tensor, "*rows width"], nu: int) -> Float[Tensor, "*rows features"]:
    """[y*roll(y,1) .. y*roll(y,nu)] with y = [relu(x); relu(-x)]: 2 nu features per entry of x."""
    y = torch.cat([x.relu(), (-x).relu()], dim=-1)
    return torch.cat([y * y.roll(shift, dims=-1) for shift in range(1, nu + 1)], dim=-1)


class AssociativeMemory(nn.Module):
    """One matrix of fast weights per row, (features, width), read by tokens and written by memory tokens."""

    def __init__(self, width: int, key_width: int, nu: int = 3, correction: bool = True) -> None:
        super().__init__()
        self.width, self.nu, self.features = width, nu, 2 * nu * key_width
        self.correction = correction  # by gamma; without it gamma = 1
        self.query = nn.Linear(width, key_width, bias=False)
        self.key = nn.Linear(width, key_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.strength = nn.Linear(width, 1)

    def init_state(self, rows: int) -> AssociativeState:
        weight = self.query.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)  # sums over all segments of a text
        return AssociativeState(
            weight.new_zeros(rows, self.features, self.width, dtype=dtype),
            weight.new_zeros(rows, self.features, dtype=dtype),
            torch.zeros(rows, dtype=torch.long, device=weight.device),
        )

    def read(
        self, x: Float[Tensor, "rows time width"], state: AssociativeState
    ) -> Float[Tensor, "rows time width"]:
        """The memory's values for each position; exactly 0 before the first write."""
        values, normaliser = self._lookup(dpfp(self.query(x), self.nu), state)
        return (values / normaliser[..., None]).to(x.dtype)

    def write(
        self, x: Float[Tensor, "rows memory_tokens width"], state: AssociativeState
    ) -> AssociativeState:
        """Writes all memory tokens in parallel, each corrected by the matrix before this write."""
        keys, values, strength = dpfp(self.key(x), self.nu), self.value(x), self.strength(x).sigmoid()
        with torch.autocast(x.device.type, enabled=False):  # sums in the memory's precision
            keys, values, strength = (part.to(state.matrix.dtype) for part in (keys, values, strength))
            old, normaliser = self._lookup(keys, state)
            matrix = state.matrix + keys.mT @ (strength * (values - old / normaliser[..., None]))
            gamma = torch.ones_like(normaliser)
            if self.correction:
                new = (1 - normaliser / (keys.square().sum(-1) + EPS)).clamp(0, 1)
                gamma = torch.where(state.writes[:, None] > 0, stop_gradient(new), gamma)
            return AssociativeState(
                matrix, state.normaliser + (gamma[..., None] * keys).sum(1), state.writes + 1
            )

    def _lookup(
        self, keys: Float[Tensor, "rows time features"], state: AssociativeState
    ) -> tuple[Float[Tensor, "rows time width"], Float[Tensor, "rows time"]]:
        """Numerator k A and denominator z k + eps of what is stored under k, in the memory's precision."""
        with torch.autocast(keys.device.type, enabled=False):
            keys = keys.to(state.matrix.dtype)
            return keys @ state.matrix, (keys @ state.normaliser[..., None]).squeeze(-1) + EPS
