"""Causal self-attention inside one segment: the part of a layer that mixes positions and carries nothing.

Vaswani et al. 2017, arXiv:1706.03762.  With the rotation R_i and the bias of memory/attention/positions.py:

    q, k, v = W_q x, W_k x, W_v x
    y_i = W_o sum_j softmax_j(R_i q_i R_j k_j / sqrt(K) + bias_ij) v_j      over j <= i
"""

from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from zoo.memory.attention.position_kinds import Support, build_positions
from zoo.memory.attention.position_options import Position
from zoo.memory.attention.shifted_sparse import shifted_attention
from zoo.memory.mixer import Mixer
from zoo.state import State


class AttentionOptions(TypedDict, total=False):
    """Options of `Attention`, for subclasses that pass them through."""

    kv_heads: int | None
    head_dim: int | None
    position: Position
    rope_base: float
    rotated: int | None
    context: int | None
    shifted: int | None
    qk_norm: bool
    bias: bool
    out_bias: bool | None
    dropout: float


class Attention(Mixer):
    """Multi-head causal attention within a segment; with `kv_heads` < `heads`, grouped-query attention.

    `rotated` is the number of a head's features that rotary positions rotate, all by default.  `context` is
    the length of a segment, which some settings of `position` need (position_options.py).  With `shifted`,
    training attends inside that many groups of a context (shifted_sparse.py).  `qk_norm` divides queries and
    keys by their root mean square, with a gain per feature.  `out_bias` defaults to `bias`.
    """

    support: Support = "segment"
    """The positions that a class computes exactly."""

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
        context: int | None = None,
        shifted: int | None = None,
        qk_norm: bool = False,
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
        self.groups = heads // self.kv_heads  # query heads per key head
        self.positions = build_positions(
            position,
            heads,
            self.head_dim,
            context=context,
            base=rope_base,
            rotated=rotated,
            support=self.support,
        )
        self.group = self._group(shifted, context)
        self.q_norm = nn.RMSNorm(self.head_dim) if qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_dim) if qk_norm else None
        self.dropout = nn.Dropout(dropout)
        self.qkv = nn.Linear(width, (heads + 2 * self.kv_heads) * self.head_dim, bias=bias)
        self.out_proj = nn.Linear(heads * self.head_dim, width, bias=bias if out_bias is None else out_bias)

    def _group(self, shifted: int | None, context: int | None) -> int | None:
        """The group size of shifted sparse attention, None without; ValueError where it is undefined."""
        if shifted is None:
            return None
        if context is None or not 1 < shifted <= context // 2 or self.heads < 2:
            raise ValueError(
                f"shifted: expected 2 to {(context or 0) // 2} groups of a segment and at least 2 heads, "
                f"found {shifted}"
            )
        if not self.positions.unbiased or self.support != "segment":
            raise ValueError("shifted: expected plain causal attention with rotated queries and keys")
        return context // shifted

    def project(
        self, x: Float[Tensor, "rows time width"]
    ) -> tuple[
        Float[Tensor, "rows heads time head_dim"],
        Float[Tensor, "rows kv_heads time head_dim"],
        Float[Tensor, "rows kv_heads time head_dim"],
    ]:
        """Queries, keys and values, without positions."""
        return self.split_heads(self.qkv(x))

    def split_heads(
        self, qkv: Float[Tensor, "rows time all_heads"]
    ) -> tuple[
        Float[Tensor, "rows heads time head_dim"],
        Float[Tensor, "rows kv_heads time head_dim"],
        Float[Tensor, "rows kv_heads time head_dim"],
    ]:
        """Split a projection whose features are the query heads, then the key heads, then the value heads."""
        qkv = rearrange(qkv, "b t (h k) -> b h t k", k=self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def values(self, x: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows kv_heads time head_dim"]:
        """The values alone, as `project` has them."""
        features = self.kv_heads * self.head_dim
        bias = self.qkv.bias if self.qkv.bias is None else self.qkv.bias[-features:]
        v = F.linear(x, self.qkv.weight[-features:], bias)
        return rearrange(v, "b t (h k) -> b h t k", k=self.head_dim)

    def attend(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads keys head_dim"],
        v: Float[Tensor, "rows kv_heads keys head_dim"],
        q_positions: Real[Tensor, "*q_rows time"] | range,
        k_positions: Real[Tensor, "*k_rows keys"] | range,
        mask: Bool[Tensor, "*masks time keys"] | None = None,
    ) -> Float[Tensor, "rows heads time head_dim"]:
        """Softmax attention of rotated queries and keys; causal, of the same tokens, without a mask."""
        dropout = self.dropout.p if self.training else 0.0
        return self.positions.attend(q, k, v, q_positions, k_positions, mask, dropout)

    def segment_mask(self, time: int, device: torch.device) -> Bool[Tensor, "time time"] | None:
        """True where a query of a segment may attend to a key; None: all keys up to its own."""
        return None

    def forward(
        self, x: Float[Tensor, "rows time width"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        return self.mix_segment(*self.project(x)), state

    def mix_segment(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads time head_dim"],
        v: Float[Tensor, "rows kv_heads time head_dim"],
    ) -> Float[Tensor, "rows time width"]:
        """The output of a segment, from its projections without positions."""
        positions = self.positions.in_segment(len(q), q.shape[2], q.device)
        q = self.positions.scale_queries(q, positions)
        q, k = (self.positions.rotate(part, positions) for part in (q, k))
        if self.training and self.group is not None:
            y = shifted_attention(q, k, v, self.group, self.dropout.p)
        else:
            y = self.attend(q, k, v, positions, positions, self.segment_mask(q.shape[2], q.device))
        return self.out_proj(rearrange(y, "b h t k -> b t (h k)"))

    def init_decode_cache(self, state: State) -> Any:
        return ()

    def decode(
        self, x: Float[Tensor, "rows time width"], cache: Any
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        """The cache is (rotated keys, values) of the segment so far, () at its start."""
        return self.extend(*self.project(x), cache)

    def extend(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        k: Float[Tensor, "rows kv_heads time head_dim"],
        v: Float[Tensor, "rows kv_heads time head_dim"],
        cache: Any,
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        """`decode`, from the projections of the new tokens."""
        start = cache[0].shape[2] if cache else 0
        positions = torch.arange(start + q.shape[2], device=q.device)
        new = positions[start:]
        q = self.positions.scale_queries(q, new)
        q, k = (self.positions.rotate(part, range(start, len(positions))) for part in (q, k))
        if cache:
            k, v = (torch.cat(pair, dim=2) for pair in zip(cache, (k, v), strict=True))
        y = self.attend(q, k, v, new, positions, new[:, None] >= positions)
        return self.out_proj(rearrange(y, "b h t k -> b t (h k)")), (k, v)
