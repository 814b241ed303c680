"""Position encodings: how attention scores depend on the positions of queries and keys.

Rotary positions (RoPE): Su et al. 2021, arXiv:2104.09864; linear biases (ALiBi): Press et al. 2022,
arXiv:2108.12409; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.

    score_ij = rotate(q_i, i) rotate(k_j, j) / sqrt(K) + bias_ij
    y_i = sum_j softmax_j(score_ij) v_j      over the unmasked j

An attention layer first calls `rotate` on queries and keys, so that rotated keys can be cached.  It then
passes them with their positions to `attend`, or to `scores` if its softmax includes further keys.  Encodings
are modules since they may have weights.
"""

from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Position = Literal["rope", "alibi", "learned", "none"]
"""`learned` positions are added to the embeddings by the decoder; attention then has none."""


class Positions(nn.Module):
    """No position encoding, and the interface of all encodings.

    An encoding overrides `rotate`, or `bias` if the bias depends only on queries and positions.  One whose
    bias depends on the scores, or whose scores aren't products of rotated queries and keys, overrides `bias`
    or `scores` and sets `fused = False`.
    """

    fused: ClassVar[bool] = True
    """True if `bias` doesn't depend on scores, so that `attend` can use one fused kernel."""

    @property
    def unbiased(self) -> bool:
        """True if scores are the products of rotated queries and keys alone."""
        return self.fused and type(self).bias is Positions.bias

    def rotate(
        self, x: Float[Tensor, "*rows time head_dim"], positions: Int[Tensor, "*rows_or_none time"] | range
    ) -> Float[Tensor, "*rows time head_dim"]:
        """Queries or keys at these positions: (time) or a range for all rows, or (rows, 1, time).

        Of a range the angles are computed once, not in every layer and call.
        """
        return x

    def bias(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_positions: Int[Tensor, "*q_rows time"],
        k_positions: Int[Tensor, "*k_rows keys"],
        scores: Float[Tensor, "rows heads time keys"] | None = None,
    ) -> Float[Tensor, "*bias_rows heads time keys"] | None:
        """A term added to the scores, None for none.  `scores` are -inf where masked; None if `fused`."""
        return None

    def scores(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads keys head_dim"],
        q_positions: Int[Tensor, "*q_rows time"],
        k_positions: Int[Tensor, "*k_rows keys"],
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
        q_positions: Int[Tensor, "*q_rows time"] | range,
        k_positions: Int[Tensor, "*k_rows keys"] | range,
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
        if mask is None:
            mask = q_positions[..., :, None] >= k_positions[..., None, :]
        if self.fused:
            bias = self.bias(q, q_positions, k_positions)
            attn_mask = mask if bias is None else bias.masked_fill(~mask, -torch.inf)
            return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p=dropout, enable_gqa=grouped)
        scores = self.scores(q, k, q_positions, k_positions, mask)
        weights = scores.softmax(-1).masked_fill(~mask.any(-1, keepdim=True), 0)
        return F.dropout(weights, dropout) @ repeat_kv(v, q.shape[1] // v.shape[1])


class Rope(Positions):
    """Rotary positions on the first `rotated` features of a head, all by default."""

    def __init__(self, base: float = 10000.0, rotated: int | None = None) -> None:
        super().__init__()
        self.base, self.rotated = base, rotated

    def rotate(
        self, x: Float[Tensor, "*rows time head_dim"], positions: Int[Tensor, "*rows_or_none time"] | range
    ) -> Float[Tensor, "*rows time head_dim"]:
        if self.rotated is None or self.rotated == x.shape[-1]:
            return rotary(x, positions, self.base)
        rotated, rest = x.tensor_split([self.rotated], dim=-1)
        return torch.cat([rotary(rotated, positions, self.base), rest], dim=-1)


class InterleavedRope(Positions):
    """Rotary positions on the pairs (2i, 2i + 1), as in the paper, instead of (i, i + K/2)."""

    def __init__(self, base: float = 10000.0) -> None:
        super().__init__()
        self.base = base

    def rotate(
        self, x: Float[Tensor, "*rows time head_dim"], positions: Int[Tensor, "*rows_or_none time"] | range
    ) -> Float[Tensor, "*rows time head_dim"]:
        halves = rotary(rearrange(x, "... (k pair) -> ... (pair k)", pair=2), positions, self.base)
        return rearrange(halves, "... (pair k) -> ... (k pair)", pair=2)


class Alibi(Positions):
    """bias_ij = -m_h (i - j), with the slopes m_h of `alibi_exponents`.

    The logarithms of the slopes to base 2 are stored with the weights, since earlier versions had others.
    """

    log2_slopes: Float[Tensor, " heads"]

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("log2_slopes", torch.tensor(alibi_exponents(heads)))

    def legacy_buffers(self) -> dict[str, Tensor]:
        """What checkpoints of versions that stored no slopes were trained with: the formula of the paper's
        text, which the published code follows only where the number of heads is a power of two."""
        heads = len(self.log2_slopes)
        return {"log2_slopes": torch.tensor([-8.0 * h / heads for h in range(1, heads + 1)])}

    def bias(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_positions: Int[Tensor, "*q_rows time"],
        k_positions: Int[Tensor, "*k_rows keys"],
        scores: Float[Tensor, "rows heads time keys"] | None = None,
    ) -> Float[Tensor, "*bias_rows heads time keys"]:
        distance = q_positions[..., :, None] - k_positions[..., None, :]
        slopes = 2.0 ** self.log2_slopes.to(q.dtype)
        return -slopes[:, None, None] * distance


def build_positions(
    position: Position, heads: int, head_dim: int, *, base: float = 10000.0, rotated: int | None = None
) -> Positions:
    """The encoding for a configuration's `position`; `base` and `rotated` apply to `rope` only, the number of
    query heads to `alibi`.

    Raises ValueError if the number of features that `rope` rotates isn't even, or exceeds head_dim.
    """
    if position in ("none", "learned"):
        return Positions()
    if position == "alibi":
        return Alibi(heads)
    rotated = head_dim if rotated is None else rotated
    if rotated % 2 or not 0 < rotated <= head_dim:
        raise ValueError(f"rotary positions need an even head width, not {rotated} of {head_dim}")
    return Rope(base, rotated)


def rotary(
    x: Float[Tensor, "*rows time head_dim"], positions: Int[Tensor, "*rows_or_none time"] | range, base: float
) -> Float[Tensor, "*rows time head_dim"]:
    """Rotate the pairs (i, i + K/2) by the angle position * base^(-2i/K) (arXiv:2104.09864, eq. 34)."""
    half = x.shape[-1] // 2
    # in bf16 an angle would be pure rounding error after a few hundred positions
    dtype = torch.promote_types(x.dtype, torch.float32)
    if isinstance(positions, range):
        # a compiled graph computes its own table: it may not hold tensors from outside
        table = rotary_table if torch.compiler.is_compiling() else stored_rotary_table
        cos, sin = table(positions, half, base, x.device, dtype)
    else:
        frequencies = base ** -(torch.arange(half, device=x.device, dtype=dtype) / half)
        angles = positions.to(dtype)[..., None] * frequencies
        cos, sin = angles.cos(), angles.sin()
    if torch.compiler.is_compiling():
        left, right = x.to(dtype).chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)
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
        return _rotate_halves(grad, *ctx.saved_tensors, -1), None, None


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    y = torch.empty_like(x)
    (left, right), (y_left, y_right) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(left, cos, out=y_left).addcmul_(right, sin, value=-sign)
    torch.mul(right, cos, out=y_right).addcmul_(left, sin, value=sign)
    return y


def rotary_table(
    positions: range, half: int, base: float, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "time half"], Float[Tensor, "time half"]]:
    """cos and sin of the angles position * base^(-k / half), k = 0 .. half - 1.

    The angles are float64, so that those of a long text's last positions are as exact as the first ones';
    MPS devices have no float64.
    """
    exact = dtype if device.type == "mps" else torch.float64
    frequencies = base ** -(torch.arange(half, device=device, dtype=exact) / half)
    steps = torch.arange(positions.start, positions.stop, positions.step, device=device, dtype=exact)
    angles = steps[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


@lru_cache(maxsize=64)
def stored_rotary_table(
    positions: range, half: int, base: float, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "time half"], Float[Tensor, "time half"]]:
    """`rotary_table`, computed once: all layers and calls share it."""
    with torch.inference_mode(False), torch.no_grad():  # a later call may need gradients through a product
        return rotary_table(positions, half, base, device, dtype)


def alibi_exponents(heads: int) -> list[float]:
    """log2 of ALiBi's slopes, as in the published code (ofirpress/attention_with_linear_biases).

    For a power of two, -8h/H for h = 1..H (arXiv:2108.12409, section 3).  Otherwise those of the next lower
    power of two P, then every second one of those of 2P, beginning with the first.
    """
    power = 2 ** (heads.bit_length() - 1)
    between = range(1, 2 * (heads - power), 2)
    return [-8 * h / power for h in range(1, power + 1)] + [-4 * h / power for h in between]


def repeat_kv(x: Float[Tensor, "*axes"], groups: int, dim: int = 1) -> Float[Tensor, "*repeated"]:
    """Repeat each key or value head along `dim` once per query head of its group."""
    return x if groups == 1 else x.repeat_interleave(groups, dim)
