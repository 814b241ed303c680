"""Biases that depend on the scores or on queries, not on positions alone; for an explicit softmax.

    DAPE    S = A + B + f([A ; B])            A scores, B a bias by distance, f over heads for each pair:
                                              linear, leaky ReLU, linear: Zheng et al. 2024, arXiv:2405.14722
    v2      the same, f convolutions over k keys: Zheng et al. 2024, arXiv:2410.04798
    CoPE    S_ij = A_ij + q_i E[p_ij]         p_ij = sum_{k=j..i} sigmoid(A_ik), E between two rows
                                              interpolated: Golovneva et al. 2024, arXiv:2405.18719

Differs from the papers: DAPE v2's convolutions are computed as if the text went on after the last key, so
that a query's output doesn't depend on whether it does.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor, nn

from zoo.memory.attention.positions import Positions


class Dape(Positions):
    """Scores and a bias, and what a network over the heads makes of both.

    `inner` is the encoding whose rotation and bias are used; `convolution` the number of keys that the
    network sees.
    """

    fused: ClassVar[bool] = False

    def __init__(self, heads: int, inner: Positions | None, hidden: int = 32, convolution: int = 1) -> None:
        super().__init__()
        self.inner, self.convolution = inner, convolution
        self.adds_bias = inner is not None and type(inner).bias is not Positions.bias
        features = heads * (2 if self.adds_bias else 1)
        if convolution == 1:
            first, last = nn.Linear(features, hidden), nn.Linear(hidden, heads)
            self.mlp2 = nn.Sequential(first, nn.LeakyReLU(), last)
        else:
            shape, padding = (1, convolution), (0, convolution // 2)
            over_keys = nn.Conv2d(features, hidden, shape, padding=padding)
            self.mlp2 = nn.Sequential(
                over_keys, nn.LeakyReLU(), nn.Conv2d(hidden, heads, shape, padding=padding)
            )
        self.absolute = inner is not None and inner.absolute

    def rotate(
        self, x: Float[Tensor, "*rows time head_dim"], positions: Real[Tensor, "*rows_or_none time"] | range
    ) -> Float[Tensor, "*rows time head_dim"]:
        return x if self.inner is None else self.inner.rotate(x, positions)

    def bias(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        scores: Float[Tensor, "rows heads time keys"] | None = None,
    ) -> Float[Tensor, "rows heads time keys"]:
        assert scores is not None
        inner = None if self.inner is None else self.inner.bias(q, q_positions, k_positions)
        return self.combine(scores, inner, going_on=True)

    def combine(
        self,
        scores: Float[Tensor, "rows heads time keys"],
        bias: Float[Tensor, "*bias_rows heads time keys"] | None,
        going_on: bool,
    ) -> Float[Tensor, "rows heads time keys"]:
        """B + f([A ; B]) for scores that are -inf where masked; with `going_on` as if keys followed."""
        masked = scores == -torch.inf
        visible = scores.masked_fill(masked, 0)
        parts = visible if bias is None else torch.cat([visible, bias.expand_as(scores)], dim=1)
        if self.convolution == 1:
            mixed = self.mlp2(parts.movedim(1, -1)).movedim(-1, 1)
        else:
            parts = parts.masked_fill(masked if bias is None else masked.repeat(1, 2, 1, 1), 0)
            keys, following = parts.shape[-1], self.convolution // 2 if going_on else 0
            mixed = self.mlp2(F.pad(parts, (0, following)))[..., :keys]
        return mixed if bias is None else mixed + bias


class Cope(Positions):
    """Contextual positions: keys are counted by gates, and the query chooses by the count."""

    fused: ClassVar[bool] = False
    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_emb",)

    def __init__(self, head_dim: int, positions: int = 64) -> None:
        super().__init__()
        self.pos_emb = nn.Parameter(torch.zeros(1, head_dim, positions))  # E

    def bias(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        scores: Float[Tensor, "rows heads time keys"] | None = None,
    ) -> Float[Tensor, "rows heads time keys"]:
        assert scores is not None
        counts = scores.sigmoid().flip(-1).cumsum(-1).flip(-1).clamp(max=self.pos_emb.shape[2] - 1)
        by_position = q @ self.pos_emb.to(q.dtype)  # z
        below = counts.detach().floor()
        weight = counts - below
        index = below.long()
        above = torch.where(weight.detach() > 0, index + 1, index)
        return by_position.gather(-1, index) * (1 - weight) + by_position.gather(-1, above) * weight
