"""Biases that attention adds to its scores by the distance d = i - j of query and key.

    ALiBi        -m_h d                                       Press et al. 2022, arXiv:2108.12409
    T5           table[bucket(d), h]                          Raffel et al. 2020, arXiv:1910.10683
    KERPLE       -p_h log(1 + a_h d), or -a_h d^p_h           Chi et al. 2022, arXiv:2205.09921
    Sandwich     (sum_m cos(d 10000^(-2m/n)) - n/2) H / 8h    m = 1 .. n/2: Chi et al. 2023, arXiv:2212.10356
    FIRE         f(psi(d) / (psi(max(i, M L0)) + 1e-6))_h     psi(x) = log(|c x| + 1): Li et al. 2024,
                                                              arXiv:2310.04418

h = 1 .. H are heads; the biases aren't divided by sqrt(K).  Those of keys after the query are masked.
Differs from the papers: ALiBi's slopes are those of its code; T5 has a table in each layer (there one for
all), and KERPLE's weights are clamped in the forward pass, not in place.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from zoo.memory.attention.positions import Positions


def distances(
    q_positions: Real[Tensor, "*q_rows time"], k_positions: Real[Tensor, "*k_rows keys"]
) -> Real[Tensor, "*rows time keys"]:
    """i - j, 0 for later keys."""
    return (q_positions[..., :, None] - k_positions[..., None, :]).clamp(min=0)


def heads_first(x: Float[Tensor, "*rows time keys heads"]) -> Float[Tensor, "*rows_and_heads time keys"]:
    """Features as heads, in place of an axis of length 1 if there are rows."""
    x = x.movedim(-1, -3)
    return x if x.ndim == 3 else x.squeeze(1)


class Alibi(Positions):
    """bias_ij = -m_h (i - j), with the slopes m_h of `alibi_exponents`, divided by `factor` (interpolated).

    The logarithms of the slopes to base 2 are stored with the weights, since earlier versions had others.
    """

    log2_slopes: Float[Tensor, " heads"]

    def __init__(self, heads: int, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("log2_slopes", torch.tensor(alibi_exponents(heads)))

    def legacy_buffers(self) -> dict[str, Tensor]:
        """What checkpoints of versions that stored no slopes were trained with: the formula of the paper's
        text, which the published code follows only where the number of heads is a power of two."""
        heads = len(self.log2_slopes)
        return {"log2_slopes": torch.tensor([-8.0 * h / heads for h in range(1, heads + 1)])}

    def bias(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        scores: Float[Tensor, "rows heads time keys"] | None = None,
    ) -> Float[Tensor, "*bias_rows heads time keys"]:
        distance = q_positions[..., :, None] - k_positions[..., None, :]
        slopes = 2.0 ** self.log2_slopes.to(q.dtype)
        if self.factor != 1:
            slopes = slopes / self.factor
        return -slopes[:, None, None] * distance


def alibi_exponents(heads: int) -> list[float]:
    """log2 of ALiBi's slopes, as in the published code (ofirpress/attention_with_linear_biases).

    For a power of two, -8h/H for h = 1..H (arXiv:2108.12409, section 3).  Otherwise those of the next lower
    power of two P, then every second one of those of 2P, beginning with the first.
    """
    power = 2 ** (heads.bit_length() - 1)
    between = range(1, 2 * (heads - power), 2)
    return [-8 * h / power for h in range(1, power + 1)] + [-4 * h / power for h in between]


class T5Bias(Positions):
    """A learned bias for each bucket of distances and each head, 0 at first.

    Half the buckets hold one distance each, the others grow logarithmically up to `farthest`.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("table",)
    bucket_of: Int[Tensor, " distances"]

    def __init__(self, heads: int, buckets: int = 32, farthest: int = 128) -> None:
        super().__init__()
        if buckets // 2 >= farthest:
            raise ValueError(f"position.farthest: expected more than {buckets // 2}, found {farthest}")
        self.table = nn.Parameter(torch.zeros(buckets, heads))
        self.register_buffer("bucket_of", t5_buckets(buckets, farthest), persistent=False)

    def bias(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        scores: Float[Tensor, "rows heads time keys"] | None = None,
    ) -> Float[Tensor, "*bias_rows heads time keys"]:
        distance = distances(q_positions, k_positions).clamp(max=len(self.bucket_of) - 1)
        return heads_first(F.embedding(self.bucket_of[distance], self.table.to(q.dtype)))


def t5_buckets(buckets: int, farthest: int) -> Int[Tensor, " distances"]:
    """The bucket of each distance from 0 to `farthest`, computed in float64 once."""
    exact = buckets // 2
    scale = (buckets - exact) / math.log(farthest / exact)
    logarithmic = (exact + int(math.log(d / exact) * scale) for d in range(exact, farthest))
    return torch.tensor([*range(exact), *(min(bucket, buckets - 1) for bucket in logarithmic), buckets - 1])


class Kerple(Positions):
    """A logarithmic or a power kernel of the distance, with two learned weights for each head."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("bias_p", "bias_a")
    LEAST = 0.01
    LARGEST_POWER = 2.0

    def __init__(self, heads: int, kernel: Literal["log", "power"] = "log") -> None:
        super().__init__()
        self.kernel = kernel
        self.bias_p = nn.Parameter(2 * torch.rand(heads, 1, 1))
        self.bias_a = nn.Parameter(torch.rand(heads, 1, 1))

    def bias(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        scores: Float[Tensor, "rows heads time keys"] | None = None,
    ) -> Float[Tensor, "*bias_rows heads time keys"]:
        distance = distances(q_positions, k_positions).to(torch.promote_types(q.dtype, torch.float32))
        a = self._clamped(self.bias_a)
        if self.kernel == "log":
            return (-self._clamped(self.bias_p) * (a * distance).log1p()).to(q.dtype)
        # 0^p has no derivative by p that isn't nan
        power = distance.clamp(min=1) ** self._clamped(self.bias_p, self.LARGEST_POWER)
        return (-a * torch.where(distance > 0, power, 0)).to(q.dtype)

    def _clamped(self, weight: Tensor, largest: float | None = None) -> Tensor:
        """The weight within its bounds, with the gradient of the weight itself."""
        return weight + (weight.clamp(self.LEAST, largest) - weight).detach()


class Sandwich(Positions):
    """The inner products of sinusoidal positions, compressed by head; no weights."""

    by_distance: Float[Tensor, " distances"]

    def __init__(self, heads: int, terms: int = 128, longest: int = 1024) -> None:
        super().__init__()
        self.register_buffer("by_distance", sandwich_sums(terms, longest), persistent=False)
        heads_from_1 = torch.arange(1, heads + 1, dtype=torch.float64)
        self.register_buffer("compression", heads / (8 * heads_from_1), persistent=False)

    def bias(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        scores: Float[Tensor, "rows heads time keys"] | None = None,
    ) -> Float[Tensor, "*bias_rows heads time keys"]:
        distance = distances(q_positions, k_positions).clamp(max=len(self.by_distance) - 1)
        compression: Tensor = self.get_buffer("compression")
        return (self.by_distance[distance] * compression[:, None, None]).to(q.dtype)


def sandwich_sums(terms: int, longest: int) -> Float[Tensor, " distances"]:
    """sum_{m=1..n/2} cos(d 10000^(-2m/n)) - n/2 for d = 0 .. longest - 1."""
    rates = 10000.0 ** (-2 * torch.arange(1, terms // 2 + 1, dtype=torch.float64) / terms)
    return (torch.arange(longest, dtype=torch.float64)[:, None] * rates).cos().sum(1) - terms // 2


class Fire(Positions):
    """A network of the distance relative to the query's position, both on a learned logarithmic scale.

    Positions count from the text's start, in a window up to `context` - 1.
    """

    absolute = True

    def __init__(
        self,
        heads: int,
        threshold: float,
        context: int | None = None,
        hidden: int = 32,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.threshold, self.context = threshold, context  # L0
        self.c = nn.Parameter(torch.tensor(0.1))
        self.L_multiplier = nn.Parameter(torch.tensor(1.0))  # M
        self.mlp = nn.Sequential(nn.Linear(1, hidden), activation or nn.ReLU(), nn.Linear(hidden, heads))

    def bias(
        self,
        q: Float[Tensor, "rows heads time head_dim"],
        q_positions: Real[Tensor, "*q_rows time"],
        k_positions: Real[Tensor, "*k_rows keys"],
        scores: Float[Tensor, "rows heads time keys"] | None = None,
    ) -> Float[Tensor, "*bias_rows heads time keys"]:
        i = q_positions if self.context is None else q_positions.clamp(max=self.context - 1)
        dtype = torch.promote_types(self.c.dtype, torch.float32)  # bf16 has no whole numbers beyond 256
        threshold = (self.L_multiplier.to(dtype) * self.threshold).abs()
        scale = self._psi(torch.maximum(i.to(dtype), threshold)) + 1e-6
        relative = self._psi(distances(q_positions, k_positions).to(dtype)) / scale[..., None]
        return heads_first(self.mlp(relative[..., None].to(self.c.dtype))).to(q.dtype)

    def _psi(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (self.c * x).abs().log1p()
