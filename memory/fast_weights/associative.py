"""An associative memory: one matrix of fast weights, written by the delta rule and read by linear attention.

Rodkin et al. 2024, arXiv:2407.04841, equations 1-4; DPFP: Schlag et al. 2021, arXiv:2102.11174, section 3.4.

    phi(x) = DPFP-nu(x)         read(x) = phi(W_q x) A / (z phi(W_q x) + eps), which ARMT adds to x
    k_i, v_i, b_i = phi(W_k m_i), W_v m_i, sigmoid(W_b m_i)        old_i = k_i A / (z k_i + eps)
    A <- A + sum_i b_i k_i (v_i - old_i)        z <- z + sum_i gamma_i k_i
    gamma_i = clip(1 - (z k_i + eps) / (|k_i|^2 + eps), 0, 1), without gradient

That is the published form, `write="together"`: all memory tokens i see the A and z from before the segment.
Its memory grows without bound where it is written to in hundreds of segments, for three reasons.

* The corrections of similar keys add up: `write="in_turn"` lets a token see what those before it wrote.
* A is written, by keys with gamma = 0, where z is almost 0, so that the next key or query there divides by
  almost nothing: with `bounded` the denominator of a key or query q is max(z q, |q|^2) + eps, that of a key
  which has been written.  Then no write overshoots, b_i |k_i|^2 <= d_i, and a read is at most |A| / |q|.
* What is read is added to x, from which the next keys and values come: with `bounded` these are taken from
  x / rms(x).

Carried: A and z, and the number of writes to each row.  The first write has old = 0 and gamma = 1.
Differs from the paper, as its code does: eps = 1e-5, gamma is clipped, W_b has a bias, and ARMT adds read(x)
to x.
"""

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.gradients import stop_gradient

EPS, RMS_EPS = 1e-5, 1e-6
Write = Literal["together", "in_turn"]


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

    def __init__(
        self,
        width: int,
        key_width: int,
        nu: int = 3,
        correction: bool = True,
        write: Write = "together",
        bounded: bool = False,
    ) -> None:
        super().__init__()
        if write not in get_args(Write):
            raise ValueError(f"write must be {' or '.join(get_args(Write))}, not {write}")
        self.width, self.nu, self.features = width, nu, 2 * nu * key_width
        self.correction = correction  # by gamma; without it gamma = 1
        self.in_turn, self.bounded = write == "in_turn", bounded
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
        values, normaliser = lookup(dpfp(self.query(self._input(x)), self.nu), state, self.bounded)
        return (values / normaliser[..., None]).to(x.dtype)

    def write(
        self, x: Float[Tensor, "rows memory_tokens width"], state: AssociativeState
    ) -> AssociativeState:
        """The state after a segment with these memory tokens."""
        x = self._input(x)
        keys, values, strength = dpfp(self.key(x), self.nu), self.value(x), self.strength(x).sigmoid()
        with torch.autocast(x.device.type, enabled=False):  # sums in the memory's precision
            keys, values, strength = (part.to(state.matrix.dtype) for part in (keys, values, strength))
            write = write_in_turn if self.in_turn else write_together
            matrix, normaliser = write(state, keys, values, strength, self.correction, self.bounded)
            return AssociativeState(matrix, normaliser, state.writes + 1)

    def _input(self, x: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time width"]:
        return F.rms_norm(x, x.shape[-1:], eps=RMS_EPS) if self.bounded else x


Keys = Float[Tensor, "rows memory_tokens features"]
Values = Float[Tensor, "rows memory_tokens width"]
Strength = Float[Tensor, "rows memory_tokens 1"]
Written = tuple[Float[Tensor, "rows features width"], Float[Tensor, "rows features"]]


def lookup(
    keys: Float[Tensor, "rows time features"], state: AssociativeState, floor: bool
) -> tuple[Float[Tensor, "rows time width"], Float[Tensor, "rows time"]]:
    """Numerator k A and denominator of what is stored under k, in the memory's precision."""
    with torch.autocast(keys.device.type, enabled=False):
        keys = keys.to(state.matrix.dtype)
        weight = (keys @ state.normaliser[..., None]).squeeze(-1)
        return keys @ state.matrix, denominator(weight, keys.square().sum(-1), floor)


def denominator(weight: Tensor, squares: Tensor, floor: bool) -> Tensor:
    """Of a key with weight z k and square |k|^2."""
    return (torch.maximum(weight, squares) if floor else weight) + EPS


def new_weight(weight: Tensor, squares: Tensor, is_first: Tensor) -> Tensor:
    """gamma, the share of a key that z is increased by, of a key with weight z k and square |k|^2."""
    gamma = (1 - (weight + EPS) / (squares + EPS)).clamp(0, 1)
    return torch.where(is_first, 1.0, stop_gradient(gamma))


def write_together(
    state: AssociativeState, keys: Keys, values: Values, strength: Strength, correction: bool, floor: bool
) -> Written:
    """A and z after all memory tokens, each corrected by the memory before this write."""
    old, total = lookup(keys, state, floor)
    matrix = state.matrix + keys.mT @ (strength * (values - old / total[..., None]))
    if correction:
        weight = (keys @ state.normaliser[..., None]).squeeze(-1)
        gamma = new_weight(weight, keys.square().sum(-1), state.writes[:, None] == 0)
        keys = gamma[..., None] * keys
    return matrix, state.normaliser + keys.sum(1)


def write_in_turn_loop(
    state: AssociativeState, keys: Keys, values: Values, strength: Strength, correction: bool, floor: bool
) -> Written:
    """A and z after the memory tokens, each corrected by the memory with the tokens before it."""
    for i in range(keys.shape[1]):
        token = slice(i, i + 1)
        matrix, normaliser = write_together(
            state, keys[:, token], values[:, token], strength[:, token], correction, floor
        )
        state = AssociativeState(matrix, normaliser, state.writes + 1)
    return state.matrix, state.normaliser


def write_in_turn(
    state: AssociativeState, keys: Keys, values: Values, strength: Strength, correction: bool, floor: bool
) -> Written:
    """`write_in_turn_loop` by one triangular system: with G = K K^T and d_i the denominator of k_i under
    z_{i-1}, what token i adds under its key is u_i = b_i (v_i - (k_i A + sum_{j<i} G_ij u_j) / d_i)."""
    products = keys @ keys.mT
    weight = (keys @ state.normaliser[..., None]).squeeze(-1)
    gammas, totals = list[Tensor](), list[Tensor]()
    for i, product in enumerate(products.unbind(1)):  # numbers per row
        now = weight[:, i] + sum(gammas[j] * product[:, j] for j in range(i))  # z_{i-1} k_i
        totals.append(denominator(now, product[:, i], floor))
        is_first = (state.writes == 0) & (i == 0)
        gammas.append(new_weight(now, product[:, i], is_first) if correction else torch.ones_like(now))
    rate = strength / torch.stack(totals, dim=1)[..., None]
    system = rate * products  # its unit diagonal is implied
    target = strength * values - rate * (keys @ state.matrix)
    added = torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)
    normaliser = state.normaliser + (torch.stack(gammas, dim=1)[..., None] * keys).sum(1)
    return state.matrix + keys.mT @ added, normaliser
