"""Rotary positions in other forms: with a decay (xPos), collinear with the query (CoCA), with learned
frequencies (CLEX).

    xPos    score_ij = sum_m zeta_m^((i-j)/L) <q_m rotated, k_m rotated>     zeta_m = (2m/K + 0.4) / 1.4
                                                                Sun et al. 2023, arXiv:2212.10554
    CoCA    score_ij = (q_i * rotate(q_i, i)) rotate([t_j; t_j], j)          t = relu(mean of k's halves)
                                                                Zhu et al. 2024, arXiv:2309.08646
    CLEX    log w(t) solves dy/dt = f(y + log n(t)) + n'(t)/n(t), y(1) = log w0, where w0 n(t) is NTK's w
                                                                Chen et al. 2024, arXiv:2310.16450

xPos and CoCA cache keys without positions.  CoCA's scores depend on positions and not on distances alone, as
in its code.
Differs from the papers: L of xPos is the trained context (there 512), and CLEX has a network in each layer
(there one for all).
"""

import math
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from zoo.memory.attention.position_draws import clex_positions, clex_time
from zoo.memory.attention.positions import InterleavedRope, Positions, Rope
from zoo.memory.attention.rotary import rotate_pairs, stored_rates
from zoo.memory.attention.rotary_scaling import Frequencies, plain_rates
from zoo.memory.mixer import no_autocast


class XPos(Positions):
    """Rotary positions with a decay by distance in every pair; for causal attention only."""

    fused: ClassVar[bool] = False

    def __init__(self, base: float = 10000.0, scale_base: float = 512.0) -> None:
        super().__init__()
        self.rope, self.scale_base = InterleavedRope(base), scale_base

    def scores(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads keys head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        mask: Bool[Tensor, "*masks time keys"],
    ) -> Float[Tensor, "rows heads time keys"]:
        centre = k_positions[..., k.shape[2] // 2, None]  # any: powers stay small around it
        q = self.rope.rotate(q, q_positions) * self.decay(q_positions - centre, q)
        k = self.rope.rotate(k, k_positions) * self.decay(centre - k_positions, k)
        return super().scores(q, k, q_positions, k_positions, mask)

    def decay(
        self, positions: Real[Tensor, "*rows time"], like: Float[Tensor, "*any_rows time head_dim"]
    ) -> Float[Tensor, "*rows time head_dim"]:
        """zeta^(position / L) of every feature."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        width = like.shape[-1]
        pairs = torch.arange(0, width, 2, device=like.device, dtype=dtype)
        zeta = ((pairs / width + 0.4) / 1.4).repeat_interleave(2)
        return (zeta ** (positions.to(dtype)[..., None] / self.scale_base)).to(like.dtype)


class Coca(Rope):
    """Keys that are collinear with every query; an attention's key projection makes t's two halves."""

    fused: ClassVar[bool] = False
    absolute = True

    def rotate(
        self, x: Float[Tensor, "*rows time head_dim"], positions: Real[Tensor, "*rows_or_none time"] | range
    ) -> Float[Tensor, "*rows time head_dim"]:
        return x

    def scores(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads keys head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        mask: Bool[Tensor, "*masks time keys"],
    ) -> Float[Tensor, "rows heads time keys"]:
        t = rearrange(k, "... (half k) -> ... half k", half=2).mean(-2).relu()
        k = self.rotate_all(torch.cat([t, t], dim=-1), k_positions)
        return super().scores(q * self.rotate_all(q, q_positions), k, q_positions, k_positions, mask)


class ClexRope(Rope):
    """Frequencies that a small network moves along t = context / trained; t is drawn in training."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("up", "down")
    NTK_BASE = 10000.0  # in the published code whatever the model's base

    def __init__(
        self,
        d: int,
        *,
        base: float = 10000.0,
        rotated: int | None = None,
        trained: int,
        context: int,
        max_factor: int = 16,
        expand: int = 1,
        step_size: float = 0.5,
    ) -> None:
        super().__init__(base, rotated)
        if d < 4:
            raise ValueError(f"scaling clex needs at least 4 rotated features, not {d}")
        self.trained, self.max_factor, self.step_size = trained, max_factor, step_size
        self.time = min(-(-context // trained), max_factor)
        self.plain = Frequencies(tuple(plain_rates(d, base)))
        self.up = nn.Parameter(torch.empty(d // 2, expand * d))
        self.down = nn.Parameter(torch.zeros(expand * d, d // 2))
        nn.init.kaiming_uniform_(self.up, a=math.sqrt(5))

    def in_segment(self, rows: int, time: int, device: torch.device) -> range | Real[Tensor, "rows 1 time"]:
        if self.step is None or not self.training:
            return range(time)
        return clex_positions(self.step, self.current_time(), self.trained, time, device)

    def current_time(self) -> int:
        """t: drawn for each step in training, that of the context otherwise."""
        drawn = self.training and self.step is not None
        return clex_time(self.step, self.max_factor) if drawn and self.step is not None else self.time

    def rotate_all(
        self, x: Float[Tensor, "*rows time rotated"], positions: Real[Tensor, "*rows_or_none time"] | range
    ) -> Float[Tensor, "*rows time rotated"]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        if isinstance(positions, range):
            positions = torch.arange(positions.start, positions.stop, device=x.device)
        angles = positions.to(dtype)[..., None] * self.rates(float(self.current_time())).to(dtype)
        return rotate_pairs(x, angles.cos(), angles.sin())

    def rates(self, t: float) -> Float[Tensor, " half"]:
        """w(t), by the fourth-order Runge-Kutta method in its 3/8 form; w0 at t = 1."""
        with no_autocast(self.up):  # an error of a rate grows with the position
            return self._rates(t)

    def _rates(self, t: float) -> Float[Tensor, " half"]:
        weight = self.up
        w0 = stored_rates(self.plain, weight.device, weight.dtype)
        y, steps = w0.log(), round((t - 1) / self.step_size)
        for index in range(steps):
            h, at = (t - 1) / steps, 1 + index * (t - 1) / steps
            k1 = self.slope(at, y)
            k2 = self.slope(at + h / 3, y + h * k1 / 3)
            k3 = self.slope(at + 2 * h / 3, y + h * (k2 - k1 / 3))
            k4 = self.slope(at + h, y + h * (k1 - k2 + k3))
            y = y + h * (k1 + 3 * k2 + 3 * k3 + k4) / 8
        return y.exp()

    def slope(self, t: float, y: Float[Tensor, " half"]) -> Float[Tensor, " half"]:
        """dy/dt."""
        half, weight = len(y), self.up
        d, alpha = 2 * half, max(2 * t - 1, 1)
        m = torch.arange(half, dtype=weight.dtype, device=weight.device)
        log_n = -(2 * m / d) * (math.log(self.NTK_BASE) + d / (d - 2) * math.log(alpha))
        network = nn.functional.silu((y + log_n) @ self.up) @ self.down
        return network - (2 * m / (d - 2)) * 2 / alpha
