"""The timestep norm by sums against its loop and the paper's definition."""

import pytest
import torch
from torch import Tensor

from zoo.memory.state_space.timestep_norm import (
    TimestepNorm,
    TimestepState,
    timestep_norm,
    timestep_norm_loop,
)

EPS = 1e-5


def random_state(rows: int, groups: int, seed: int = 0) -> TimestepState:
    """Row i has read 3 i tokens: the first none."""
    torch.manual_seed(seed)
    count = 3 * torch.arange(rows)
    mean, var = torch.randn(rows, groups), torch.rand(rows, groups) + 0.1
    return TimestepState(count, mean.double().requires_grad_(), var.double().requires_grad_())


@pytest.mark.parametrize("time", [1, 2, 17, 64])
@pytest.mark.parametrize("padding", ["none", "some", "first", "all"])
@pytest.mark.parametrize(("rows", "width", "groups"), [(1, 4, 1), (3, 12, 4), (2, 6, 6)])
def test_sums_equal_the_loop_in_values_and_gradients(
    time: int, padding: str, rows: int, width: int, groups: int
) -> None:
    state = random_state(rows, groups)
    if groups == width:  # a group of one feature needs a past
        state = state._replace(tokens=state.tokens + 2)
    padded = None
    if padding != "none":
        padded = torch.rand(rows, time) < 0.4
        padded[:, : max(1, time // 4)] |= padding == "first"
        padded |= padding == "all"
    results = []
    for form in (timestep_norm_loop, timestep_norm):
        torch.manual_seed(1)
        x = torch.randn(rows, time, width, dtype=torch.float64, requires_grad=True)
        y, after = form(x, state, EPS, padded)
        weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view_as(y)
        total = (y * weights).sum() + after.mean.sin().sum() + after.var.square().sum()
        grads = torch.autograd.grad(total, [x, state.mean, state.var])
        results.append([y, *after, *grads])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    y, count = results[1][:2]
    if padded is not None:
        assert not y[padded].any()
        assert torch.equal(count, state.tokens + (~padded).sum(1))


@torch.no_grad()
def test_a_token_is_normalised_by_all_features_of_all_tokens_so_far() -> None:
    """Equation 4 of the paper."""
    x = torch.randn(2, 9, 12, dtype=torch.float64) * 3 + 5
    norm = TimestepNorm(12, 3, eps=1e-3).double()
    norm.weight.normal_()
    norm.bias.normal_()
    y, state = norm(x, norm.init_state(2))
    for row in range(2):
        for t in range(9):
            for group in range(3):
                features = slice(4 * group, 4 * group + 4)
                past = x[row, : t + 1, features].flatten()
                expected = (x[row, t, features] - past.mean()) / (past.var(correction=0) + 1e-3).sqrt()
                expected = expected * (1 + norm.weight[features]) + norm.bias[features]
                torch.testing.assert_close(y[row, t, features], expected, rtol=1e-10, atol=1e-10)
    groups = x.unflatten(2, (3, 4)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(state.mean, groups.mean(-1))
    torch.testing.assert_close(state.var, groups.var(-1, correction=0))
    assert state.tokens.tolist() == [9, 9]


@torch.no_grad()
def test_a_prior_counts_as_tokens_already_read() -> None:
    norm = TimestepNorm(6, 6, prior_count=5).double()
    norm.prior_mean.normal_()
    norm.prior_logv.normal_()
    state = norm.init_state(2)
    assert state.tokens.tolist() == [5, 5]
    torch.testing.assert_close(state.var[1], norm.prior_logv.exp())
    x = torch.randn(2, 1, 6, dtype=torch.float64)
    y, after = norm(x, state)
    mean = (5 * norm.prior_mean + x[:, 0]) / 6
    square = (5 * (norm.prior_logv.exp() + norm.prior_mean.square()) + x[:, 0].square()) / 6
    torch.testing.assert_close(after.mean, mean)
    torch.testing.assert_close(after.var, square - mean.square())
    torch.testing.assert_close(y[:, 0], (x[:, 0] - mean) / (square - mean.square() + EPS).sqrt())


def test_the_prior_is_learned() -> None:
    norm = TimestepNorm(6, 3, prior_count=2)
    norm(torch.randn(1, 3, 6), norm.init_state(1))[0].square().sum().backward()
    for prior in (norm.prior_mean, norm.prior_logv):
        assert prior.grad is not None
        assert prior.grad.all()


def text_with_mean(mean: float, drift: float) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3000, 64) + mean + drift * torch.arange(3000)[:, None]


@pytest.mark.parametrize(("mean", "drift"), [(0, 0), (100, 0), (1e4, 0), (0, 0.1), (1e4, 1.0), (-1e4, 100.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_means_far_away_and_drifting(mean: float, drift: float, dtype: torch.dtype) -> None:
    """3000 float32 tokens against the float64 loop.  float32 rounds a mean m: y is within
    2e-6 + 2 * 2^-23 |m| / sqrt(v), and the variance within that share of itself."""
    x = text_with_mean(mean, drift).to(dtype)
    state = TimestepNorm(64, 4).init_state(2)
    expected, end = timestep_norm_loop(x.double(), state, EPS)
    y, after = timestep_norm(x, state, EPS)
    assert after.mean.dtype == torch.float64
    groups = x.double().unflatten(2, (4, 16))
    offset, deviation = groups.mean(-1).abs().max(), groups.var(-1, correction=0).sqrt().median()
    share = 2e-6 + 2 * 2**-23 * offset / deviation.clamp(min=0.5)
    rounding = 2**-8 * expected.abs() if dtype == torch.bfloat16 else 0
    assert ((y - expected).abs() <= share + rounding).all()
    assert ((after.var - end.var).abs() <= share * end.var + 1e-12).all()
    assert ((after.mean - end.mean).abs() <= 2**-23 * offset).all()


@torch.no_grad()
def test_a_hundred_thousand_tokens_one_at_a_time_and_at_once() -> None:
    """The statistics are carried at float64: a late token still counts."""
    norm = TimestepNorm(4, 1)
    x = torch.randn(1, 20_000, 4) + 50
    state = norm.init_state(1)._replace(tokens=torch.tensor([10**6]), mean=torch.full((1, 1), 50.0).double())
    at_once = norm(x, state)[1]
    for piece in x.split(7, dim=1):
        state = norm(piece, state)[1]
    torch.testing.assert_close(state, at_once, rtol=1e-10, atol=0)


def test_a_constant_text_has_gradients() -> None:
    """No variance at all: divided by sqrt(eps)."""
    norm, x = TimestepNorm(8, 2), torch.full((1, 20, 8), 3.0, requires_grad=True)
    y, state = norm(x, norm.init_state(1))
    assert not y.any()
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not state.var.any()


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of norm groups 4"):
        TimestepNorm(10, 4)
    with pytest.raises(ValueError, match="prior_count must be at least 2, not 1"):
        TimestepNorm(4, 4, prior_count=1)
