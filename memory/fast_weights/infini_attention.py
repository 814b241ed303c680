"""Infini-attention: beside attention inside a segment, a memory of fixed size of all segments before.

Munkhdalai, Faruqui & Gopal 2024, arXiv:2404.07143, equations 5-11.  Per head, sigma(x) = ELU(x) + 1:

    A_mem = sigma(Q) M / (sigma(Q) z)                                  the memory is read before it is written
    M <- M + sigma(K)^T V                                              linear
    M <- M + sigma(K)^T (V - sigma(K) M / (sigma(K) z))                delta
    z <- z + sum_t sigma(K_t)
    A = g A_mem + (1 - g) softmax(Q' K'^T / sqrt(K)) V                 g = sigmoid(beta), Q' and K' rotated

Carried: M and z without positions, and the number of segments that each row has written.

Of many segments at once z is a sum over the earlier ones, and so is M by the linear rule; by the delta rule
M <- (I - P) M + sigma(K)^T V with P = sigma(K)^T diag(1 / (sigma(K) z)) sigma(K).  No P depends on M, so that
only the product P M, (K, K) by (K, V), is computed segment by segment.
Differs from the paper, which divides by sqrt(D) and doesn't define the empty memory: it is 0, A_mem is 0
while nothing is written, and the gate is applied nevertheless.
"""

from functools import partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.memory.attention.position_kinds import build_positions
from zoo.memory.attention.position_options import Position
from zoo.memory.mixer import Mixer, float32_zeros, matmul, matmul_dtype, no_autocast

Rule = Literal["linear", "delta"]
MIN_NORMALISER = 1e-15  # if sigma(Q) z is less, the query matches no key, and A_mem is 0 instead of 0 / 0


class MemoryState(NamedTuple):
    matrix: Float[Tensor, "rows heads head_dim value_width"]  # M
    normaliser: Float[Tensor, "rows heads head_dim"]  # z
    writes: Int[Tensor, " rows"]  # segments since the last reset


class _Sigma(torch.autograd.Function):
    """sigma; saves only its result y for backward, since the derivative is min(y, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        y = x.clamp(max=0).exp_().add_(x.relu())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return grad * y.clamp(max=1)


def sigma(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """ELU(x) + 1 = exp(x) below 0, without the rounding of adding 1 to it."""
    y: Tensor = _Sigma.apply(x)
    return y


def inverse_normaliser(
    features: Float[Tensor, "*any time head_dim"],
    normaliser: Float[Tensor, "*any head_dim"],
    writes: Int[Tensor, "*any_or_one"],
) -> Float[Tensor, "*any time 1"]:
    """1 / (sigma(Q) z), and 0 where the memory is empty."""
    sums = features @ normaliser[..., None]
    stored = (writes[..., None, None] > 0) & (sums > MIN_NORMALISER)
    return torch.where(stored, sums, torch.inf).reciprocal()


def read_and_write_loop(
    q: Float[Tensor, "rows segments heads time head_dim"],
    k: Float[Tensor, "rows segments heads time head_dim"],
    v: Float[Tensor, "rows segments heads time value_width"],
    state: MemoryState,
    rule: Rule,
) -> tuple[Float[Tensor, "rows segments heads time value_width"], MemoryState]:
    """The definition, segment by segment: A_mem, and the memory after the last segment."""
    matrix, normaliser, writes = state
    outputs = []
    for queries, keys, values in zip(sigma(q).unbind(1), sigma(k).unbind(1), v.unbind(1), strict=True):
        outputs.append(queries @ matrix * inverse_normaliser(queries, normaliser, writes[:, None]))
        if rule == "delta":
            values = values - keys @ matrix * inverse_normaliser(keys, normaliser, writes[:, None])
        matrix, normaliser, writes = matrix + keys.mT @ values, normaliser + keys.sum(-2), writes + 1
    return torch.stack(outputs, dim=1), MemoryState(matrix, normaliser, writes)


def read_and_write(
    q: Float[Tensor, "rows segments heads time head_dim"],
    k: Float[Tensor, "rows segments heads time head_dim"],
    v: Float[Tensor, "rows segments heads time value_width"],
    state: MemoryState,
    rule: Rule,
) -> tuple[Float[Tensor, "rows segments heads time value_width"], MemoryState]:
    """`read_and_write_loop` for all segments at once, in the state's dtype; under autocast only the products
    of matrices are in bfloat16."""
    segments = q.shape[1]
    product = partial(matmul, dtype=matmul_dtype(q, state.matrix.dtype))
    with no_autocast(q):
        q, k, v = (part.to(state.matrix.dtype) for part in (q, k, v))
        queries, keys = sigma(q), sigma(k)
        writes = (state.writes[:, None] + torch.arange(segments, device=q.device))[..., None]
        normalisers = list(accumulate(keys.sum(-2).unbind(1), initial=state.normaliser))
        before = torch.stack(normalisers[:-1], dim=1)
        additions = product(keys.mT, v).unbind(1)
        if rule == "linear":
            matrices = list(accumulate(additions, initial=state.matrix))
        else:
            projections = product(keys.mT, keys * inverse_normaliser(keys, before, writes)).unbind(1)  # P
            matrices = [state.matrix]
            for projection, addition in zip(projections, additions, strict=True):
                matrices.append(matrices[-1] + addition - product(projection, matrices[-1]))
        retrieved = product(queries, torch.stack(matrices[:-1], dim=1))
        outputs = retrieved * inverse_normaliser(queries, before, writes)
        return outputs, MemoryState(matrices[-1], normalisers[-1], state.writes + segments)


class CompressiveAttention(Mixer):
    """Reads one segment of any length, or several of `segment_len` tokens; no layer has a bias.

    `qk_norm` divides queries and keys by their root mean square, with a gain per feature, for the softmax and
    for the memory alike, which share them in the paper.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        segment_len: int,
        rule: Rule = "delta",
        head_dim: int | None = None,
        value_width: int | None = None,
        position: Position = "rope",
        rope_base: float = 10000.0,
        qk_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if head_dim is None and width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads, self.head_dim = heads, head_dim or width // heads
        self.value_width = value_width or self.head_dim
        self.positions = build_positions(
            position, heads, self.head_dim, context=segment_len, base=rope_base, support="rotation"
        )
        self.segment_len, self.rule = segment_len, rule
        self.parts = [heads * part for part in (self.head_dim, self.head_dim, self.value_width)]
        self.qkv = nn.Linear(width, sum(self.parts), bias=False)
        self.out_proj = nn.Linear(self.parts[-1], width, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.gate = nn.Parameter(torch.zeros(heads))  # beta
        self.dropout = nn.Dropout(dropout)

    def init_state(self, rows: int) -> MemoryState:
        weight = self.qkv.weight
        return MemoryState(
            float32_zeros(weight, rows, self.heads, self.head_dim, self.value_width),
            float32_zeros(weight, rows, self.heads, self.head_dim),
            torch.zeros(rows, dtype=torch.long, device=weight.device),
        )

    def forward(
        self, x: Float[Tensor, "rows time width"], state: MemoryState
    ) -> tuple[Float[Tensor, "rows time width"], MemoryState]:
        segments = max(1, x.shape[1] // self.segment_len)
        q, k, v = self.project(rearrange(x, "b (n s) d -> (b n) s d", n=segments))
        queries, keys, values = (
            rearrange(part, "(b n) h s k -> b n h s k", n=segments) for part in (q, k, v)
        )
        retrieved, state = read_and_write(queries, keys, values, state, self.rule)
        retrieved = rearrange(retrieved, "b n h s k -> (b n) h s k")
        y = self.mix(retrieved, self.attend(q, k, v)).to(x.dtype)
        y = self.out_proj(rearrange(y, "b h s k -> b s (h k)"))
        return rearrange(y, "(b n) s d -> b (n s) d", n=segments), state

    def project(
        self, x: Float[Tensor, "rows time width"]
    ) -> tuple[
        Float[Tensor, "rows heads time head_dim"],
        Float[Tensor, "rows heads time head_dim"],
        Float[Tensor, "rows heads time value_width"],
    ]:
        """Queries, keys and values, without positions."""
        q, k, v = (
            rearrange(part, "b s (h k) -> b h s k", h=self.heads)
            for part in self.qkv(x).split(self.parts, dim=-1)
        )
        return self.q_norm(q), self.k_norm(k), v

    def attend(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows heads time head_dim"],
        v: Float[Tensor, "rows heads time value_width"],
    ) -> Float[Tensor, "rows heads time value_width"]:
        """Causal attention inside each segment; positions are counted from its first token."""
        q, k = (self.positions.rotate(part, range(q.shape[2])) for part in (q, k))
        dropout = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)

    def mix(
        self,
        retrieved: Float[Tensor, "rows heads time value_width"],
        local: Float[Tensor, "rows heads time value_width"],
    ) -> Float[Tensor, "rows heads time value_width"]:
        """g A_mem + (1 - g) A_dot."""
        return torch.lerp(
            local.to(retrieved.dtype), retrieved, self.gate.sigmoid().to(retrieved.dtype)[:, None, None]
        )
