"""Distances that a model meets at test time, kept within those of its training: two rotations of each pair.

With a boundary n (`near`), a group g and the rotations of the layer:

    score_ij = rotate(q_i, i) rotate(k_j, j)            if i - j < n
               rotate(q_i, A(i)) rotate(k_j, C(j))      otherwise

    capped    A = n                         C = 0       ReRoPE: Su 2023, bojone/rerope; with sinks in a window
                                                        LM-Infinite: Han et al. 2024, arXiv:2308.16137
    leaky     A = i/g + n (1 - 1/g)         C = j/g     leaky ReRoPE: the same
    grouped   A = i//g + n - n//g           C = j//g    SelfExtend: Jin et al. 2024, arXiv:2401.01325

Nothing is carried or trained; keys are cached without positions.  log-n (log_n.py) is an option of each.
Differs from the papers: LM-Infinite's top-k, for generation, is left out.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from zoo.memory.attention.positions import Rope
from zoo.memory.attention.rotary_scaling import Frequencies


class FarRope(Rope):
    """Rotary positions with other distances from `near` on."""

    fused: ClassVar[bool] = False

    def __init__(
        self,
        far: Literal["capped", "leaky", "grouped"],
        near: int,
        group: int = 1,
        *,
        base: float = 10000.0,
        rotated: int | None = None,
        frequencies: Frequencies | None = None,
    ) -> None:
        super().__init__(base, rotated, frequencies)
        self.far, self.near, self.group = far, near, group
        self.absolute = far == "grouped"  # whose groups are counted from the text's start

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
        if self.absolute:  # small angles, however long the text
            start = k_positions[..., :1] // self.group * self.group
            q_positions, k_positions = q_positions - start, k_positions - start
        distance = q_positions[..., :, None] - k_positions[..., None, :]
        dtype = torch.promote_types(q.dtype, torch.float32)
        turn = super().rotate
        near, far = (
            super(FarRope, self).scores(turn(q, at_q), turn(k, at_k), q_positions, k_positions, mask)
            for at_q, at_k in (
                (q_positions, k_positions),
                (self.far_queries(q_positions, dtype), self.far_keys(k_positions, dtype)),
            )
        )
        return torch.where(distance < self.near, near, far)

    def far_queries(
        self, positions: Real[Tensor, "*rows time"], dtype: torch.dtype
    ) -> Real[Tensor, "*rows time"]:
        """A."""
        n, g = self.near, self.group
        if self.far == "capped":
            return torch.full_like(positions, n)
        if self.far == "leaky":
            return positions.to(dtype) / g + n * (1 - 1 / g)
        return positions // g + n - n // g

    def far_keys(
        self, positions: Real[Tensor, "*rows keys"], dtype: torch.dtype
    ) -> Real[Tensor, "*rows keys"]:
        """C."""
        if self.far == "capped":
            return torch.zeros_like(positions)
        return positions.to(dtype) / self.group if self.far == "leaky" else positions // self.group
