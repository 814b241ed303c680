"""Retention: linear attention whose memory decays at a rate that is fixed for each head.

RetNet: Sun et al. 2023, arXiv:2307.08621; Lightning Attention-2: Qin et al. 2024, arXiv:2401.04658, in the
layer of TransNormerLLM, arXiv:2307.14995.  Per head h, with R_t the rotation by the angles of position t:

    S_t = exp(g_h) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t
    RetNet:     q, k = R_t W_q x, R_t W_k x / sqrt(K)    v = W_v x             g_h = log(1 - 2^(-5-h))
                y = W_o [silu(W_g x) * o / rms(o)]       angles t 10000^(-i / (K/2 - 1)), i = 0 .. K/2 - 1
    Lightning:  q, k, v = silu(W_qkv x)                  g_h = -2^(-8 (h+1) / H) (1 - l / (L-1) + 1e-5)
                y = W_o [LayerNorm(o) * sigmoid(G_2 G_1 x)]      in layer l of L

Carried: S.  RetNet's has its keys rotated to the next token's position, so that no position is carried.
Differs from the papers: RetNet's code divides scores by the sum of their decays and by their own sum, which
the norm cancels but for its epsilon; here the recurrence is read as it stands.  Where H is no power of two,
Lightning's slopes are ALiBi's, as in its code.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.attention.biases import alibi_exponents
from zoo.memory.attention.positions import InterleavedRope
from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import Backend, Recurrence
from zoo.memory.mixer import Mixer, float32_zeros, no_autocast

ROTARY_BASE = 10000.0
LAYER_NORM_EPS = 1e-5


class RetentionState(NamedTuple):
    matrix: Float[Tensor, "rows heads head_dim value_dim"]  # S, in float32 at least


class RetentionMixer(Mixer):
    """RetNet's multi-scale retention: `heads` of queries and keys of `head_dim`, values of `value_dim`."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_dim: int,
        value_dim: int,
        norm_eps: float = 1e-6,
        chunk_size: int = 32,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {head_dim}")
        self.heads, self.head_dim, self.value_dim = heads, head_dim, value_dim
        self.norm_eps = norm_eps
        self.recurrence = Recurrence(chunk_size, backend)
        self.parts = [heads * part for part in (head_dim, head_dim, value_dim, value_dim)]  # q, k, v, gate
        self.in_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.out_proj = nn.Linear(heads * value_dim, width, bias=False)
        half = head_dim // 2  # the last pair turns by 1/10000 a token
        self.positions = InterleavedRope(ROTARY_BASE ** (half / max(half - 1, 1)))

    def init_state(self, rows: int) -> RetentionState:
        weight = self.out_proj.weight
        return RetentionState(float32_zeros(weight, rows, self.heads, self.head_dim, self.value_dim))

    def forward(
        self, x: Float[Tensor, "rows time width"], state: RetentionState
    ) -> tuple[Float[Tensor, "rows time width"], RetentionState]:
        *qkv, gate = self.in_proj(x).split(self.parts, dim=-1)
        with no_autocast(x):
            q, k, v = (
                rearrange(part.to(state.matrix.dtype), "r t (h k) -> r t h k", h=self.heads) for part in qkv
            )
            time = x.shape[1]
            q, k = (self.rotate(part.transpose(1, 2), range(time)).transpose(1, 2) for part in (q, k))
            g = self.log_decays(q)[:, None].expand(*q.shape[:3], 1)
            inputs = Inputs(q, k * self.head_dim**-0.5, v, g, state.matrix)
        o, matrix = self.recurrence(inputs)
        with no_autocast(x):
            matrix = self.rotate(matrix.mT, range(-time, 1 - time)).mT
        o = F.rms_norm(o, o.shape[-1:], eps=self.norm_eps).to(x.dtype)
        y = F.silu(gate) * rearrange(o, "r t h v -> r t (h v)")
        return self.out_proj(y), RetentionState(matrix)

    def rotate(
        self, x: Float[Tensor, "rows heads time head_dim"], positions: range
    ) -> Float[Tensor, "rows heads time head_dim"]:
        """R_t x; one position for all of `time`, or as many."""
        return self.positions.rotate(x, positions)

    def log_decays(self, like: Tensor) -> Float[Tensor, " heads"]:
        """g, in the dtype of `like`."""
        exponents = torch.arange(self.heads, dtype=like.dtype, device=like.device) + 5
        return torch.log1p(-torch.exp2(-exponents))


class LightningMixer(Mixer):
    """Lightning Attention of layer `layer` of `depth`: later layers forget more slowly."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_dim: int,
        layer: int,
        depth: int,
        chunk_size: int = 32,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.recurrence = Recurrence(chunk_size, backend)
        self.layer, self.depth = layer, depth
        inner = heads * head_dim
        self.parts = [3 * inner, head_dim]  # q, k, v; G_1 x
        self.in_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.gate_proj = nn.Linear(head_dim, inner, bias=False)
        self.norm = nn.LayerNorm(inner, eps=LAYER_NORM_EPS)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def init_state(self, rows: int) -> RetentionState:
        weight = self.out_proj.weight
        return RetentionState(float32_zeros(weight, rows, self.heads, self.head_dim, self.head_dim))

    def forward(
        self, x: Float[Tensor, "rows time width"], state: RetentionState
    ) -> tuple[Float[Tensor, "rows time width"], RetentionState]:
        qkv, gate = self.in_proj(x).split(self.parts, dim=-1)
        q, k, v = rearrange(F.silu(qkv), "r t (p h k) -> p r t h k", p=3, h=self.heads)
        g = self.log_decays(state.matrix)[:, None].expand(*q.shape[:3], 1)
        inputs = Inputs(q, k, v, g, state.matrix)
        o, matrix = self.recurrence(inputs)
        o = self.norm(rearrange(o.to(x.dtype), "r t h v -> r t (h v)"))
        return self.out_proj(o * self.gate_proj(gate).sigmoid()), RetentionState(matrix)

    def log_decays(self, like: Tensor) -> Float[Tensor, " heads"]:
        """g, in the dtype of `like`."""
        scale = 1 - self.layer / max(self.depth - 1, 1) + 1e-5
        return torch.stack(
            [like.new_full((), -scale * 2.0**exponent) for exponent in alibi_exponents(self.heads)]
        )
