"""Position encodings: how attention scores depend on the positions of queries and keys.

Rotary positions (RoPE): Su et al. 2021, arXiv:2104.09864; grouped queries: Ainslie et al. 2023,
arXiv:2305.13245.  The other kinds: rotary_scaling.py, rotary_forms.py, far_distances.py, biases.py and
contextual_biases.py, all of them built by position_kinds.py; docs/positions.md has them in one table.

    score_ij = rotate(q_i, i) rotate(k_j, j) / sqrt(K) + bias_ij
    y_i = sum_j softmax_j(score_ij) v_j      over the unmasked j

An attention layer first calls `rotate` on queries and keys, so that rotated keys can be cached.  It then
passes them with their positions to `attend`, or to `scores` if its softmax includes further keys.  An
encoding whose scores aren't products of rotated vectors rotates nothing in `rotate` and all in `scores`.
Encodings are modules since they may have weights.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from zoo.memory.attention.log_n import log_n_scaled
from zoo.memory.attention.position_draws import Draw, draw_positions
from zoo.memory.attention.rotary import rotary
from zoo.memory.attention.rotary_scaling import Frequencies

QUERIES_AT_ONCE = 128
"""Queries of a causal segment whose scores are held at once where no fused kernel can compute them."""


class Positions(nn.Module):
    """No position encoding, and the interface of all encodings.

    An encoding overrides `rotate`, or `bias` if the bias depends only on queries and positions.  One whose
    bias depends on the scores, or whose scores aren't products of rotated queries and keys, overrides `bias`
    or `scores` and sets `fused = False`.
    """

    fused: ClassVar[bool] = True
    """True if `bias` doesn't depend on scores, so that `attend` can use one fused kernel."""
    absolute: bool = False
    """True if biases or scores depend on positions in the text and not on distances alone."""
    log_n: int | None = None
    """The trained context, if `scale_queries` is to scale by log-n."""
    draw: Draw | None = None
    lengths: Mapping[str, Any] = MappingProxyType({})
    """The settings that were derived from the model's context, by key; empty if none has an effect."""
    step: int | None = None
    """The training step, which positions are drawn for; None before training, where none are drawn."""

    @property
    def unbiased(self) -> bool:
        """True if scores are the products of rotated queries and keys alone."""
        return self.fused and type(self).bias is Positions.bias

    def rotate(
        self, x: Float[Tensor, "*rows time head_dim"], positions: Real[Tensor, "*rows_or_none time"] | range
    ) -> Float[Tensor, "*rows time head_dim"]:
        """Queries or keys at these positions: (time) or a range for all rows, or (rows, 1, time).

        Of a range the angles are computed once, not in every layer and call.
        """
        return x

    def at_start(self, x: Float[Tensor, "*rows time head_dim"]) -> Float[Tensor, "*rows time head_dim"]:
        """Queries or keys at position 0, as `rotate` has them there: no angle, but a factor with yarn and
        longrope, which retrieved keys need as much as local ones to be weighed against them."""
        return x

    def in_segment(
        self, rows: int, time: int, device: torch.device
    ) -> range | Real[Tensor, "rows_or_1 1 time"]:
        """The positions of a segment's tokens: 0 .. time - 1 unless others are drawn in training."""
        if self.draw is None or self.step is None or not self.training:
            return range(time)
        return draw_positions(self.draw, self.step, rows, time, device)

    def scale_queries(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        positions: Real[Tensor, "*rows_or_none time"] | range,
    ) -> Float[Tensor, "rows heads time head_dim"]:
        """Queries that aren't rotated yet, times max(1, log(i + 1) / log L) with log-n (far_distances.py)."""
        return q if self.log_n is None else log_n_scaled(q, positions, self.log_n)

    def bias(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        scores: Float[Tensor, "rows heads time keys"] | None = None,
    ) -> Float[Tensor, "*bias_rows heads time keys"] | None:
        """A term added to the scores, None for none.  `scores` are -inf where masked; None if `fused`."""
        return None

    def scores(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads keys head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        mask: Bool[Tensor, "*masks time keys"],
    ) -> Float[Tensor, "rows heads time keys"]:
        """Inputs of the softmax, from rotated queries and keys; -inf where masked."""
        scores = q @ repeat_kv(k, q.shape[1] // k.shape[1]).mT * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~mask, -torch.inf)
        bias = self.bias(q, q_positions, k_positions, None if self.fused else scores)
        return scores if bias is None else scores + bias

    def attend(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads keys head_dim"],
        v: Float[Tensor, "rows kv_heads keys value_width"],
        q_positions: Real[Tensor, "*q_rows time"] | range,
        k_positions: Real[Tensor, "*k_rows keys"] | range,
        mask: Bool[Tensor, "*masks time keys"] | None = None,
        dropout: float = 0.0,
    ) -> Float[Tensor, "rows heads time value_width"]:
        """Softmax attention of rotated queries and keys; 0 for a query whose keys are all masked.

        Without a mask, queries and keys are those of the same tokens, and attention is causal.
        """
        grouped = q.shape[1] != k.shape[1]
        if mask is None and self.unbiased:  # a mask would shut out the kernels that skip later keys
            return F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=grouped
            )
        q_positions, k_positions = (
            torch.arange(positions.start, positions.stop, device=q.device)
            if isinstance(positions, range)
            else positions
            for positions in (q_positions, k_positions)
        )
        if not self.fused and mask is None:
            return self._attend_in_blocks(q, k, v, q_positions, k_positions, dropout)
        if mask is None:
            mask = q_positions[..., :, None] >= k_positions[..., None, :]
        if not self.fused:
            scores = self.scores(q, k, q_positions, k_positions, mask)
            weights = scores.softmax(-1).masked_fill(~mask.any(-1, keepdim=True), 0)
            return F.dropout(weights, dropout) @ repeat_kv(v, q.shape[1] // v.shape[1])
        bias = self.bias(q, q_positions, k_positions)
        attn_mask = mask if bias is None else bias.masked_fill(~mask, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p=dropout, enable_gqa=grouped)

    def _attend_in_blocks(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads time head_dim"],
        v: Float[Tensor, "rows kv_heads time value_width"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows time"],
        dropout: float,
    ) -> Float[Tensor, "rows heads time value_width"]:
        """Causal `attend` of blocks of queries one after another, each over the keys up to its last query."""
        blocks = []
        for start in range(0, max(q.shape[2], 1), QUERIES_AT_ONCE):
            end = start + QUERIES_AT_ONCE
            at_q, at_k = q_positions[..., start:end], k_positions[..., :end]
            mask = at_q[..., :, None] >= at_k[..., None, :]
            blocks.append(
                self.attend(q[:, :, start:end], k[:, :, :end], v[:, :, :end], at_q, at_k, mask, dropout)
            )
        return torch.cat(blocks, dim=2)


class Rope(Positions):
    """Rotary positions on the first `rotated` features of a head, all by default, with the frequencies of
    `base` or those given."""

    def __init__(
        self, base: float = 10000.0, rotated: int | None = None, frequencies: Frequencies | None = None
    ) -> None:
        super().__init__()
        self.base, self.rotated, self.frequencies = base, rotated, frequencies

    def rotate(
        self, x: Float[Tensor, "*rows time head_dim"], positions: Real[Tensor, "*rows_or_none time"] | range
    ) -> Float[Tensor, "*rows time head_dim"]:
        if self.rotated is None or self.rotated == x.shape[-1]:
            return self.rotate_all(x, positions)
        rotated, rest = x.tensor_split([self.rotated], dim=-1)
        return torch.cat([self.rotate_all(rotated, positions), rest], dim=-1)

    def at_start(self, x: Float[Tensor, "*rows time head_dim"]) -> Float[Tensor, "*rows time head_dim"]:
        has_factor = self.frequencies is not None and self.frequencies.factor != 1
        return self.rotate(x, range(1)) if has_factor else x

    def rotate_all(
        self, x: Float[Tensor, "*rows time rotated"], positions: Real[Tensor, "*rows_or_none time"] | range
    ) -> Float[Tensor, "*rows time rotated"]:
        """The rotated features, rotated."""
        return rotary(x, positions, self.base, self.frequencies)


class InterleavedRope(Rope):
    """Rotary positions on the pairs (2i, 2i + 1), as in the paper, instead of (i, i + K/2)."""

    def rotate_all(
        self, x: Float[Tensor, "*rows time rotated"], positions: Real[Tensor, "*rows_or_none time"] | range
    ) -> Float[Tensor, "*rows time rotated"]:
        halves = rotary(
            rearrange(x, "... (k pair) -> ... (pair k)", pair=2), positions, self.base, self.frequencies
        )
        return rearrange(halves, "... (pair k) -> ... (k pair)", pair=2)


def repeat_kv(x: Float[Tensor, "*axes"], groups: int, dim: int = 1) -> Float[Tensor, "*repeated"]:
    """Repeat each key or value head along `dim` once per query head of its group."""
    return x if groups == 1 else x.repeat_interleave(groups, dim)
