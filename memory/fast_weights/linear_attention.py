"""Linear attention: softmax's exp(q k) replaced by a product of features, so that a matrix holds all keys.

Katharopoulos et al. 2020, arXiv:2006.16236; random features (FAVOR+): Choromanski et al. 2020,
arXiv:2009.14794; Taylor features: Arora et al. 2024, arXiv:2402.18668.  Per head:

    S_t = S_{t-1} + phi(k_t) v_t^T        z_t = z_{t-1} + phi(k_t)
    o_t = S_t^T phi(q_t) / (z_t phi(q_t) + eps)        y = W_o o
    elu:     phi(x) = elu(x) + 1
    favor:   phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(features)        x' = x K^(-1/4)
             W has orthogonal rows in blocks of K, with the lengths of Gaussian vectors
    taylor:  phi(x) = [1, x / K^(1/4), (x outer x) / (sqrt(2) K^(1/2))]

E[phi(q) phi(k)] = exp(q k / sqrt(K)) in `favor`, and 1 + s + s^2/2 with s = q k / sqrt(K) in `taylor`.

Carried: S and z, side by side in one matrix.
Differs from the papers: `favor` subtracts the largest entry of a query's exponent, which cancels, and nothing
of the keys', whose largest entry over the text would look ahead; its W is uniform, in the published code not.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import fast_weights
from zoo.memory.mixer import Mixer, float32_zeros, no_autocast

FeatureMap = Literal["elu", "favor", "taylor"]


class LinearAttentionState(NamedTuple):
    matrix: Float[Tensor, "rows heads features values"]  # [S | z], in float32 at least


def linear_attention(
    q: Float[Tensor, "rows time heads features"],
    k: Float[Tensor, "rows time heads features"],
    v: Float[Tensor, "rows time heads value_dim"],
    state: LinearAttentionState,
    eps: float,
    *,
    chunk_size: int = 32,
) -> tuple[Float[Tensor, "rows time heads value_dim"], LinearAttentionState]:
    """o from phi(q), phi(k) and v, in the dtype of the state, and the state after them."""
    v = F.pad(v, (0, 1), value=1.0)  # [v, 1]
    o, matrix = fast_weights(Inputs(q, k, v, None, state.matrix), chunk_size=chunk_size)
    return o[..., :-1] / (o[..., -1:] + eps), LinearAttentionState(matrix)


class Features(nn.Module):
    """phi, of vectors of `head_dim`; `num_features` is that of `favor`, K log K by default."""

    projection: Float[Tensor, "features head_dim"] | None

    def __init__(self, feature_map: FeatureMap, head_dim: int, num_features: int | None = None) -> None:
        super().__init__()
        if feature_map not in get_args(FeatureMap):
            raise ValueError(f"feature_map must be {', '.join(get_args(FeatureMap))}, not {feature_map}")
        if num_features is not None and (feature_map != "favor" or num_features < 1):
            raise ValueError(
                f"num_features of at least 1 are for favor, not {num_features} for {feature_map}"
            )
        self.feature_map: FeatureMap = feature_map
        self.head_dim = head_dim
        sizes = {"elu": head_dim, "favor": num_features or favor_size(head_dim)}
        self.size = sizes.get(feature_map, 1 + head_dim + head_dim**2)
        projection = orthogonal_rows(self.size, head_dim) if feature_map == "favor" else None
        self.register_buffer("projection", projection)

    def redraw(self) -> None:
        """A new W for `favor`; a state of before has no meaning with it."""
        if self.projection is not None:
            self.projection.copy_(orthogonal_rows(*self.projection.shape))

    def forward(self, x: Float[Tensor, "*rows head_dim"], is_query: bool) -> Float[Tensor, "*rows features"]:
        """phi(x); of a query up to a factor, which its normaliser has as well."""
        if self.feature_map == "elu":
            return F.elu(x) + 1
        x = x * self.head_dim**-0.25
        if self.projection is None:
            pairs = (x[..., :, None] * x[..., None, :]).flatten(-2) * 0.5**0.5
            return torch.cat([torch.ones_like(x[..., :1]), x, pairs], dim=-1)
        exponent = x @ self.projection.to(x.dtype).T - x.square().sum(-1, keepdim=True) / 2
        if is_query:
            exponent = exponent - exponent.amax(-1, keepdim=True)
        return exponent.exp() * self.size**-0.5


def favor_size(head_dim: int) -> int:
    """K log K, rounded down, as in the published code."""
    return max(1, int(head_dim * math.log(head_dim)))


def orthogonal_rows(rows: int, channels: int) -> Float[Tensor, "rows channels"]:
    """Rows that are orthogonal in blocks of `channels`, each distributed as a Gaussian vector.

    The signs of R's diagonal make Q uniform: LAPACK's alone prefers one sign of an entry of each row.
    """
    blocks = []
    for _ in range(-(-rows // channels)):
        Q, R = torch.linalg.qr(torch.randn(channels, channels))
        blocks.append((Q * R.diagonal().sign()).T)
    lengths = torch.randn(rows, channels).norm(dim=1, keepdim=True)
    return lengths * torch.cat(blocks)[:rows]


class LinearAttention(Mixer):
    """`heads` of queries and keys of `head_dim`, values of `value_dim`; no layer has a bias."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        feature_map: FeatureMap,
        head_dim: int,
        value_dim: int,
        num_features: int | None = None,
        eps: float = 1e-6,
        chunk_size: int = 32,
    ) -> None:
        super().__init__()
        self.heads, self.value_dim, self.eps, self.chunk_size = heads, value_dim, eps, chunk_size
        self.parts = [heads * part for part in (head_dim, head_dim, value_dim)]
        self.in_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.features = Features(feature_map, head_dim, num_features)
        self.out_proj = nn.Linear(heads * value_dim, width, bias=False)

    def init_state(self, rows: int) -> LinearAttentionState:
        shape = (rows, self.heads, self.features.size, self.value_dim + 1)
        return LinearAttentionState(float32_zeros(self.out_proj.weight, *shape))

    def forward(
        self, x: Float[Tensor, "rows time width"], state: LinearAttentionState
    ) -> tuple[Float[Tensor, "rows time width"], LinearAttentionState]:
        qkv = self.in_proj(x)
        with no_autocast(x):
            q, k, v = (
                rearrange(part, "r t (h k) -> r t h k", h=self.heads)
                for part in qkv.to(state.matrix.dtype).split(self.parts, dim=-1)
            )
            q, k = self.features(q, is_query=True), self.features(k, is_query=False)
            o, state = linear_attention(q, k, v, state, self.eps, chunk_size=self.chunk_size)
        return self.out_proj(rearrange(o.to(x.dtype), "r t h v -> r t (h v)")), state
