"""Causal self-attention inside one segment: the part of a layer that mixes positions and carries nothing.

Vaswani et al. 2017, arXiv:1706.03762; rotary positions: Su et al. 2021, arXiv:2104.09864; linear biases
(ALiBi): Press et al. 2022, arXiv:2108.12409; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.

    q, k, v = W_q x, W_k x, W_v x
    y_i = W_o sum_j softmax_j(q_i k_j / sqrt(K) + bias_ij) v_j      over j <= i
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.memory.mixer import Mixer
from zoo.state import State

Position = Literal["rope", "alibi", "none"]


def rotary(
    x: Float[Tensor, "*rows time head_dim"], positions: Int[Tensor, "*rows_or_none time"], base: float
) -> Float[Tensor, "*rows time head_dim"]:
    """Turn the pairs (i, i + K/2) by the angle position * base^(-2i/K) (arXiv:2104.09864, eq. 34).

    `positions` are the same for all rows, (time), or differ between them, (rows, 1, time).
    """
    half = x.shape[-1] // 2
    exact = torch.promote_types(
        x.dtype, torch.float32
    )  # an angle in bf16 is noise after a few hundred positions
    rates = base ** -(torch.arange(half, device=x.device, dtype=exact) / half)
    angles = positions.to(exact)[..., None] * rates
    cos, sin = angles.cos(), angles.sin()
    left, right = x.to(exact).chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)


def alibi_slopes(heads: int, like: Tensor) -> Float[Tensor, " heads"]:
    """Slopes 2^(-8h/H) for h = 1..H (arXiv:2108.12409, section 3)."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=like.device, dtype=like.dtype) / heads)


class Attention(Mixer):
    """Multi-head causal attention within a segment, `kv_heads` shared by groups of queries' heads.

    Rotary positions turn the first `rotated` features of a head (all by default); `out_bias` is `bias` by
    default.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Position = "rope",
        rope_base: float = 10000.0,
        rotated: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.head_dim = head_dim or width // heads
        if head_dim is None and width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        if heads % self.kv_heads:
            raise ValueError(f"heads {heads} is not a multiple of kv_heads {kv_heads}")
        self.rotated = self.head_dim if rotated is None else rotated
        if position == "rope" and (self.rotated % 2 or not 0 < self.rotated <= self.head_dim):
            raise ValueError(
                f"rotary positions need an even head width, not {self.rotated} of {self.head_dim}"
            )
        self.position, self.rope_base, self.dropout = position, rope_base, nn.Dropout(dropout)
        self.qkv = nn.Linear(width, (heads + 2 * self.kv_heads) * self.head_dim, bias=bias)
        self.out = nn.Linear(heads * self.head_dim, width, bias=bias if out_bias is None else out_bias)

    def project(
        self, x: Float[Tensor, "rows time width"]
    ) -> tuple[
        Float[Tensor, "rows heads time head_dim"],
        Float[Tensor, "rows kv_heads time head_dim"],
        Float[Tensor, "rows kv_heads time head_dim"],
    ]:
        """Queries, keys and values, without positions."""
        return self.separate(self.qkv(x))

    def separate(
        self, qkv: Float[Tensor, "rows time all_heads"]
    ) -> tuple[
        Float[Tensor, "rows heads time head_dim"],
        Float[Tensor, "rows kv_heads time head_dim"],
        Float[Tensor, "rows kv_heads time head_dim"],
    ]:
        """All queries' heads, then the keys', then the values'."""
        qkv = rearrange(qkv, "b t (h k) -> b h t k", k=self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return q, k, v

    def turn(
        self,
        x: Float[Tensor, "*rows time head_dim"],
        positions: Int[Tensor, "*rows_or_none time"],
    ) -> Float[Tensor, "*rows time head_dim"]:
        """Queries or keys with rotary positions; the features that aren't `rotated` stay."""
        if self.rotated == self.head_dim:
            return rotary(x, positions, self.rope_base)
        turned, rest = x.tensor_split([self.rotated], dim=-1)
        return torch.cat([rotary(turned, positions, self.rope_base), rest], dim=-1)

    def attend(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads keys head_dim"],
        v: Float[Tensor, "rows kv_heads keys head_dim"],
        allowed: Bool[Tensor, "*masks time keys"],
        distance: Int[Tensor, "time keys"],
    ) -> Float[Tensor, "rows heads time head_dim"]:
        """Softmax attention over the allowed pairs; `distance` (query - key) feeds the linear biases.

        A query that may see nothing (padding) reads zeros.
        """
        groups = self.heads // self.kv_heads
        k, v = (repeat(part, "b h t k -> b (h g) t k", g=groups) if groups > 1 else part for part in (k, v))
        mask: Tensor = allowed
        if self.position == "alibi":
            bias = -alibi_slopes(self.heads, q)[:, None, None] * distance
            mask = bias.masked_fill(~allowed, -torch.inf)
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=self.dropout.p if self.training else 0.0
        )

    def visible(self, time: int, device: torch.device) -> Bool[Tensor, "time time"]:
        """Which keys each query of a segment may see; a memory with other rules overrides this."""
        return torch.ones(time, time, dtype=torch.bool, device=device).tril()

    def forward(
        self, x: Float[Tensor, "rows time width"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        q, k, v = self.project(x)
        positions = torch.arange(x.shape[1], device=x.device)
        if self.position == "rope":
            q, k = (self.turn(part, positions) for part in (q, k))
        distance = positions[:, None] - positions
        y = self.attend(q, k, v, self.visible(x.shape[1], x.device), distance)
        return self.out(rearrange(y, "b h t k -> b t (h k)")), state

    def init_decode_cache(self, state: State) -> Any:
        return ()

    def decode(
        self, x: Float[Tensor, "rows time width"], cache: Any
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        """From the keys (with their positions) and values of the segment so far."""
        q, k, v = self.project(x)
        before = cache[0].shape[2] if cache else 0
        places = torch.arange(before + x.shape[1], device=x.device)
        if self.position == "rope":
            q, k = (self.turn(part, places[before:]) for part in (q, k))
        if cache:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(cache, (k, v), strict=True))
        distance = places[before:, None] - places
        y = self.attend(q, k, v, distance >= 0, distance)
        return self.out(rearrange(y, "b h t k -> b t (h k)")), (k, v)
