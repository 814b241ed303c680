"""Timestep normalisation: every group of features is normalised by all it has been so far in the text.

Ma et al. 2024, arXiv:2404.08801, section 3.2, equation 4.  For a group of features with mean mu_t and biased
variance s_t at token t, and running count, mean and variance n, m, v:

    n_t = n_{t-1} + 1        d_t = mu_t - m_{t-1}
    m_t = m_{t-1} + d_t / n_t        v_t = (n_{t-1} v_{t-1} + s_t + (n_{t-1} / n_t) d_t^2) / n_t
    y_t = (x_t - m_t) / sqrt(v_t + eps) (1 + w) + b

Carried: n, m and v of every group, in float64: a late token moves m by less than float32 can say.
Differs from the paper, as its code does: the statistics may begin with `prior_count` tokens of a learned mean
and variance, and a padded token says 0 and leaves them as they are.

`timestep_norm_loop` is what it means.  `timestep_norm` takes two cumulative sums: of mu_t - m_0, and, with
the means known from it, of s_t + (n_{t-1} / n_t) d_t^2.  Nothing of the second is negative, so v cancels
nothing, however far the mean lies or drifts; in float64 both sums are exact to about time * 1e-16, relative
to max |mu_t - m_0| and to v.  What float32 inputs cost is in y: about 2^-23 |m| / sqrt(v).
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.memory.mixer import Mixer


class TimestepState(NamedTuple):
    tokens: Int[Tensor, " rows"]  # n
    mean: Float[Tensor, "rows groups"]
    var: Float[Tensor, "rows groups"]


def timestep_norm_loop(
    x: Float[Tensor, "rows time width"],
    state: TimestepState,
    eps: float,
    padded: Bool[Tensor, "rows time"] | None = None,
) -> tuple[Float[Tensor, "rows time width"], TimestepState]:
    """The recurrence token by token, without w and b: the definition."""
    n, m, v = state
    groups, said = m.shape[1], []
    for t in range(x.shape[1]):
        token = rearrange(x[:, t], "b (g k) -> b g k", g=groups).to(m.dtype)
        mu, s = token.mean(-1), token.var(-1, correction=0)
        share = (n.to(m.dtype) / (n + 1))[:, None]
        d = mu - m
        m_new, v_new = m + (1 - share) * d, share * v + (1 - share) * s + share * (1 - share) * d.square()
        kept = torch.zeros_like(n, dtype=torch.bool) if padded is None else padded[:, t]
        n = torch.where(kept, n, n + 1)
        m, v = torch.where(kept[:, None], m, m_new), torch.where(kept[:, None], v, v_new)
        y = (token - m[..., None]) / (v[..., None] + eps).sqrt()
        said.append(rearrange(y.masked_fill(kept[:, None, None], 0), "b g k -> b (g k)"))
    return torch.stack(said, dim=1).to(x.dtype), TimestepState(n, m, v)


def timestep_norm(
    x: Float[Tensor, "rows time width"],
    state: TimestepState,
    eps: float,
    padded: Bool[Tensor, "rows time"] | None = None,
) -> tuple[Float[Tensor, "rows time width"], TimestepState]:
    """What `timestep_norm_loop` says, all at once; the statistics at their own precision."""
    n, m, v = state
    exact = m.dtype
    tokens = rearrange(x, "b t (g k) -> b t g k", g=m.shape[1]).to(
        torch.promote_types(x.dtype, torch.float32)
    )
    s, mu = (part.to(exact) for part in torch.var_mean(tokens, dim=-1, correction=0))
    real = (
        torch.ones(1, x.shape[1], 1, dtype=exact, device=x.device) if padded is None else (~padded)[..., None]
    )
    counts = n[:, None, None] + real.cumsum(1).to(exact)  # n_t
    divisor = counts.clamp(min=1)  # nothing but padding so far: the sums are 0
    means = m[:, None] + ((mu - m[:, None]) * real).cumsum(1) / divisor
    d = mu - torch.cat([m[:, None], means[:, :-1]], dim=1)
    news = (s + (counts - 1) / divisor * d.square()) * real
    kept = n[:, None].to(exact) * v
    variances = (kept[:, None] + news.cumsum(1)) / divisor
    if padded is not None:
        variances = torch.where(counts > 0, variances, v[:, None])
    centre, scale = (part.to(tokens.dtype)[..., None] for part in (means, (variances + eps).rsqrt()))
    y = (tokens - centre) * scale
    if padded is not None:
        y = y.masked_fill(padded[..., None, None], 0)
    counted = counts[:, -1, 0].long().expand_as(n)
    after = TimestepState(counted, means[:, -1], variances[:, -1])
    return rearrange(y, "b t g k -> b t (g k)").to(x.dtype), after


class TimestepNorm(Mixer):
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
        """`padded` marks the tokens that aren't there."""
        with torch.autocast(x.device.type, enabled=False):
            y, state = timestep_norm(x, state, self.eps, padded)
            y = y * (1 + self.weight) + self.bias
            return (y if padded is None else y.masked_fill(padded[..., None], 0)), state
