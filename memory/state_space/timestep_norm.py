"""Timestep normalisation: every group of features is normalised by all its values so far in the text.

Ma et al. 2024, arXiv:2404.08801, section 3.2, equation 4.  For a group of features with mean mu_t and biased
variance s_t at token t, and running count, mean and variance n, m, v:

    n_t = n_{t-1} + 1        d_t = mu_t - m_{t-1}
    m_t = m_{t-1} + d_t / n_t        v_t = (n_{t-1} v_{t-1} + s_t + (n_{t-1} / n_t) d_t^2) / n_t
    y_t = (x_t - m_t) / sqrt(v_t + eps) (1 + w) + b

Carried: n, m and v of every group, in float64: a late token moves m by less than float32 can represent.
Differs from the paper, as its code does: the statistics may start with `prior_count` tokens of a learned mean
and variance, and a padding token yields 0 and leaves them unchanged.

`timestep_norm_loop` is the definition.  `timestep_norm` takes two cumulative sums: of mu_t - m_0, and, with
the means known from it, of s_t + (n_{t-1} / n_t) d_t^2.  The second has no negative terms, so that v suffers
no cancellation, however large the mean is or however far it drifts.  In float64 both sums are exact to about
time * 1e-16, relative to max |mu_t - m_0| and to v.  The rounding of float32 inputs shows in y: about
2^-23 |m| / sqrt(v).
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.memory.mixer import Mixer, no_autocast


class TimestepState(NamedTuple):
    tokens: Int[Tensor, " rows"]  # n
    mean: Float[Tensor, "rows groups"]  # m
    var: Float[Tensor, "rows groups"]  # v


def timestep_norm_loop(
    x: Float[Tensor, "rows time width"],
    state: TimestepState,
    eps: float,
    padded: Bool[Tensor, "rows time"] | None = None,
) -> tuple[Float[Tensor, "rows time width"], TimestepState]:
    """The definition, token by token, without w and b."""
    n, m, v = state
    groups, outputs = m.shape[1], []
    for t in range(x.shape[1]):
        x_t = rearrange(x[:, t], "b (g k) -> b g k", g=groups).to(m.dtype)
        mu, s = x_t.mean(-1), x_t.var(-1, correction=0)
        share = (n.to(m.dtype) / (n + 1))[:, None]
        d = mu - m
        m_new, v_new = m + (1 - share) * d, share * v + (1 - share) * s + share * (1 - share) * d.square()
        padding = torch.zeros_like(n, dtype=torch.bool) if padded is None else padded[:, t]
        n = torch.where(padding, n, n + 1)
        m, v = torch.where(padding[:, None], m, m_new), torch.where(padding[:, None], v, v_new)
        y = (x_t - m[..., None]) / (v[..., None] + eps).sqrt()
        outputs.append(rearrange(y.masked_fill(padding[:, None, None], 0), "b g k -> b (g k)"))
    return torch.stack(outputs, dim=1).to(x.dtype), TimestepState(n, m, v)


def timestep_norm(
    x: Float[Tensor, "rows time width"],
    state: TimestepState,
    eps: float,
    padded: Bool[Tensor, "rows time"] | None = None,
) -> tuple[Float[Tensor, "rows time width"], TimestepState]:
    """`timestep_norm_loop` for all tokens at once; the statistics keep their dtype."""
    n, m, v = state
    dtype = m.dtype
    grouped = rearrange(x, "b t (g k) -> b t g k", g=m.shape[1])
    grouped = grouped.to(torch.promote_types(x.dtype, torch.float32))
    s, mu = (part.to(dtype) for part in torch.var_mean(grouped, dim=-1, correction=0))
    counted = (
        torch.ones(1, x.shape[1], 1, dtype=dtype, device=x.device) if padded is None else (~padded)[..., None]
    )
    n_t = n[:, None, None] + counted.cumsum(1).to(dtype)
    divisor = n_t.clamp(min=1)  # only padding so far: the sums are 0
    m_t = m[:, None] + ((mu - m[:, None]) * counted).cumsum(1) / divisor
    d = mu - torch.cat([m[:, None], m_t[:, :-1]], dim=1)
    increments = (s + (n_t - 1) / divisor * d.square()) * counted
    previous_sum = n[:, None].to(dtype) * v
    v_t = (previous_sum[:, None] + increments.cumsum(1)) / divisor
    if padded is not None:
        v_t = torch.where(n_t > 0, v_t, v[:, None])
    centre, scale = (part.to(grouped.dtype)[..., None] for part in (m_t, (v_t + eps).rsqrt()))
    y = (grouped - centre) * scale
    if padded is not None:
        y = y.masked_fill(padded[..., None, None], 0)
    tokens = n_t[:, -1, 0].long().expand_as(n)
    return rearrange(y, "b t g k -> b t (g k)").to(x.dtype), TimestepState(tokens, m_t[:, -1], v_t[:, -1])


class TimestepNorm(Mixer):
    """Normalises each of `groups` groups of features by the mean and variance of the text up to the token."""

    def __init__(self, width: int, groups: int, *, eps: float = 1e-5, prior_count: int = 0) -> None:
        super().__init__()
        if width % groups:
            raise ValueError(f"width {width} is not a multiple of norm groups {groups}")
        if groups == width and prior_count < 2:
            raise ValueError(
                f"a group of one feature has no variance at its first token: with {groups} norm groups for a "
                f"width of {width}, prior_count must be at least 2, not {prior_count}"
            )
        self.groups, self.eps, self.prior_count = groups, eps, prior_count
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))
        if prior_count:
            self.prior_mean = nn.Parameter(torch.zeros(groups))
            self.prior_logv = nn.Parameter(torch.zeros(groups))

    def init_state(self, rows: int) -> TimestepState:
        count = torch.full((rows,), self.prior_count, device=self.weight.device)
        mean = self.weight.new_zeros(self.groups, dtype=torch.float64)
        var = torch.ones_like(mean)
        if self.prior_count:
            mean, var = self.prior_mean.double(), self.prior_logv.double().exp()
        return TimestepState(count, *(repeat(part, "g -> b g", b=rows) for part in (mean, var)))

    def forward(
        self,
        x: Float[Tensor, "rows time width"],
        state: TimestepState,
        padded: Bool[Tensor, "rows time"] | None = None,
    ) -> tuple[Float[Tensor, "rows time width"], TimestepState]:
        """`padded` marks the tokens that are padding."""
        with no_autocast(x):
            y, state = timestep_norm(x, state, self.eps, padded)
            y = y * (1 + self.weight) + self.bias
            return (y if padded is None else y.masked_fill(padded[..., None], 0)), state
