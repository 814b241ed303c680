"""An associative memory: one matrix of fast weights, written by the delta rule and read by linear attention.

Rodkin et al. 2024, arXiv:2407.04841, equations 1-4; DPFP: Schlag et al. 2021, arXiv:2102.11174, section 3.4.

    phi(x) = DPFP-nu(x)         d(k) = z k + eps        read(x) = q A / d(q), q = phi(W_q x)
    k_i, v_i, b_i = phi(W_k m_i), W_v m_i, sigmoid(W_b m_i)        old_i = k_i A / d(k_i)
    A <- A + sum_i b_i k_i (v_i - old_i)        z <- z + sum_i gamma_i k_i
    gamma_i = clip(1 - (z k_i + eps) / (|k_i|^2 + eps), 0, 1), without gradient

for the memory tokens m_i at a segment's end.  That is the published form, `write="together"`: all of them see
the A and z from before the segment.  Its memory grows without bound where it is written to in hundreds of
segments, for three reasons.

* The corrections of similar keys add up: with `write="in_turn"` the tokens write one after another, each
  to the A and z that the one before it left.
* A is written, by keys with gamma = 0, where z is almost 0, so that the next key or query there divides by
  almost nothing: with `bounded`, d(k) = max(z k, |k|^2) + eps, which is the denominator of a key that has
  been written.  Then no write overshoots, b_i |k_i|^2 <= d(k_i), and a read is at most |A| / |q|.
* What is read is added to x, from which the next keys and values come: with `bounded` these are computed
  from x / rms(x).

Carried: A and z, and the number of writes to each row.  The first write has old = 0 and gamma = 1.
Differs from the paper, as its code does: eps = 1e-5, gamma is clipped, W_b has a bias, and ARMT adds read(x)
to x.
"""

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.gradients import stop_gradient
from zoo.memory.mixer import float32_zeros, matmul, matmul_dtype, no_autocast

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
        if key_width == 1 and nu == 1:
            raise ValueError(
                "nu: expected at least 2 with a key_width of 1, whose features are all 0, found 1"
            )
        self.width, self.nu, self.features = width, nu, 2 * nu * key_width
        self.correction = correction  # by gamma; without it gamma = 1
        self.in_turn, self.bounded = write == "in_turn", bounded
        self.query = nn.Linear(width, key_width, bias=False)
        self.key = nn.Linear(width, key_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.strength = nn.Linear(width, 1)

    def init_state(self, rows: int) -> AssociativeState:
        weight = self.query.weight
        return AssociativeState(
            float32_zeros(weight, rows, self.features, self.width),
            float32_zeros(weight, rows, self.features),
            torch.zeros(rows, dtype=torch.long, device=weight.device),
        )

    def read(
        self, x: Float[Tensor, "rows time width"], state: AssociativeState
    ) -> Float[Tensor, "rows time width"]:
        """read(x) at each position; exactly 0 before the first write."""
        qA, d = lookup(dpfp(self.query(self._normalise_input(x)), self.nu), state, self.bounded)
        return (qA / d[..., None]).to(x.dtype)

    def write(
        self, x: Float[Tensor, "rows memory_tokens width"], state: AssociativeState
    ) -> AssociativeState:
        """The state after a segment with these memory tokens."""
        x = self._normalise_input(x)
        k, v, b = dpfp(self.key(x), self.nu), self.value(x), self.strength(x).sigmoid()
        with no_autocast(x):  # sums in the memory's precision
            k, v, b = (part.to(state.matrix.dtype) for part in (k, v, b))
            write = write_in_turn if self.in_turn else write_together
            A, z = write(state, k, v, b, self.correction, self.bounded)
            return AssociativeState(A, z, state.writes + 1)

    def _normalise_input(self, x: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time width"]:
        """x / rms(x) with `bounded`, otherwise x."""
        return F.rms_norm(x, x.shape[-1:], eps=RMS_EPS) if self.bounded else x


Keys = Float[Tensor, "rows memory_tokens features"]
Values = Float[Tensor, "rows memory_tokens width"]
Strengths = Float[Tensor, "rows memory_tokens 1"]
MatrixAndNormaliser = tuple[Float[Tensor, "rows features width"], Float[Tensor, "rows features"]]


def lookup(
    k: Float[Tensor, "rows time features"], state: AssociativeState, bounded: bool
) -> tuple[Float[Tensor, "rows time width"], Float[Tensor, "rows time"]]:
    """k A and d(k) for keys or queries k, whose quotient is the value stored, in the memory's dtype; k A is
    a product in bfloat16 where autocast has made k so."""
    dtype = matmul_dtype(k, state.matrix.dtype)
    with no_autocast(k):
        k = k.to(state.matrix.dtype)
        zk = (k @ state.normaliser[..., None]).squeeze(-1)
        return matmul(k, state.matrix, dtype), denominator(zk, k.square().sum(-1), bounded)


def denominator(zk: Tensor, kk: Tensor, bounded: bool) -> Tensor:
    """d(k), from z k and kk = |k|^2."""
    return (torch.maximum(zk, kk) if bounded else zk) + EPS


def gamma(zk: Tensor, kk: Tensor, is_first: Tensor) -> Tensor:
    """The share of a key k that is added to z, from z k and kk = |k|^2; 1 in the first write."""
    share = (1 - (zk + EPS) / (kk + EPS)).clamp(0, 1)
    return torch.where(is_first, 1.0, stop_gradient(share))


def write_together(
    state: AssociativeState, k: Keys, v: Values, b: Strengths, correction: bool, bounded: bool
) -> MatrixAndNormaliser:
    """A and z after all memory tokens, each corrected by the memory before this write."""
    kA, d = lookup(k, state, bounded)
    A = state.matrix + k.mT @ (b * (v - kA / d[..., None]))
    if correction:
        zk = (k @ state.normaliser[..., None]).squeeze(-1)
        k = gamma(zk, k.square().sum(-1), state.writes[:, None] == 0)[..., None] * k
    return A, state.normaliser + k.sum(1)


def write_in_turn_loop(
    state: AssociativeState, k: Keys, v: Values, b: Strengths, correction: bool, bounded: bool
) -> MatrixAndNormaliser:
    """A and z after the memory tokens, each corrected by the memory with the tokens before it."""
    for i in range(k.shape[1]):
        token = slice(i, i + 1)
        A, z = write_together(state, k[:, token], v[:, token], b[:, token], correction, bounded)
        state = AssociativeState(A, z, state.writes + 1)
    return state.matrix, state.normaliser


def write_in_turn(
    state: AssociativeState, k: Keys, v: Values, b: Strengths, correction: bool, bounded: bool
) -> MatrixAndNormaliser:
    """`write_in_turn_loop` by one triangular system.

    Token i adds k_i u_i to A, with u_i = b_i (v_i - (k_i A + sum_{j<i} G_ij u_j) / d_i), where G = K K^T and
    d_i is d(k_i) under z_{i-1}, the normaliser that the token before it left.
    """
    G = k @ k.mT
    kk = G.diagonal(dim1=-2, dim2=-1)
    zk = (k @ state.normaliser[..., None]).squeeze(-1)
    gammas = gammas_in_turn(zk, G, state.writes == 0) if correction else torch.ones_like(zk)
    # z_{i-1} k_i: what the tokens before i have added to z
    d = denominator(zk + (G.tril(-1) @ gammas[..., None]).squeeze(-1), kk, bounded)
    b_over_d = b / d[..., None]
    target = b * v - b_over_d * (k @ state.matrix)
    # (I + the strictly lower triangle of b/d G) u = target
    u = torch.linalg.solve_triangular(b_over_d * G, target, upper=False, unitriangular=True)
    z = state.normaliser + (gammas[..., None] * k).sum(1)
    return state.matrix + k.mT @ u, z


def gammas_in_turn(
    zk: Float[Tensor, "rows memory_tokens"],
    G: Float[Tensor, "rows memory_tokens memory_tokens"],
    is_first: Bool[Tensor, " rows"],
) -> Float[Tensor, "rows memory_tokens"]:
    """gamma of every token, each under the z that the one before it left; they have no gradient, so that
    none is recorded for the steps of this loop."""
    zk, G = stop_gradient(zk).clone(), stop_gradient(G)
    gammas = []
    for i, G_i in enumerate(G.unbind(1)):
        gammas.append(gamma(zk[:, i], G_i[:, i], is_first & (i == 0)))
        zk += gammas[i][:, None] * G_i
    return torch.stack(gammas, dim=1)
