"""The RG-LRU: its fast form against the loop that defines it, also in float32 where decays are extreme."""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.memory.state_space.griffin_block import RecurrentBlock
from zoo.memory.state_space.rglru import RGLRU, one_minus_a_squared, rglru, rglru_loop
from zoo.state import leaves

Form = Callable[..., tuple[Tensor, Tensor]]
WIDTH, LONG = 3, 8192
DECAYS = {  # a between exp of these
    "near 1": (-1e-5, -1e-9),
    "exactly 1": (0.0, 0.0),
    "near 0": (-80.0, -20.0),
    "all": (-200.0, -1e-8),
    "as initialised": (-0.8, -1e-3),
}


def random_inputs(
    rows: int, time: int, low: float, high: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, log decays between `low` and `high`, and an initial state, in float64."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    log_a = low + (high - low) * torch.rand(rows, time, WIDTH, generator=rng, dtype=torch.float64)
    return draw(rows, time, WIDTH), log_a, draw(rows, WIDTH)


def run(form: Form, inputs: tuple[Tensor, Tensor, Tensor], starts: Tensor) -> list[Tensor]:
    """All h, the last, and the gradients of inputs, decays and initial state."""
    x, log_a, initial = (part.clone().requires_grad_() for part in inputs)
    y, last = form(x, log_a, starts, initial)
    weights = torch.linspace(1, 2, y[0].numel(), dtype=torch.float64).view_as(y[0])  # alike for all rows
    total = (y.double() * weights).sum() + (last.double() * torch.linspace(-1, 3, WIDTH)).sum()
    return [y.detach(), last.detach(), *torch.autograd.grad(total, [x, log_a, initial])]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3),
    time=st.integers(1, 70),
    decays=st.sampled_from(list(DECAYS.values())),
    often=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_fast_form_equals_the_loop(
    rows: int, time: int, decays: tuple[float, float], often: float, seed: int
) -> None:
    inputs = random_inputs(rows, time, *decays, seed=seed)
    starts = torch.rand(rows, time, generator=torch.Generator().manual_seed(seed)) < often
    torch.testing.assert_close(
        run(rglru, inputs, starts), run(rglru_loop, inputs, starts), rtol=1e-11, atol=1e-11
    )


def error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30))


LONG_DECAYS = ("near 1", "near 0", "all")


@cache
def loop_over_long_texts() -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[Tensor], Tensor]:
    """Inputs per LONG_DECAYS; one loop with these as its rows: its results, and its outputs of bfloat16 x."""
    drawn = [random_inputs(1, LONG, *DECAYS[name]) for name in LONG_DECAYS]
    rows = [torch.cat(parts).float().double() for parts in zip(*drawn, strict=True)]
    x, log_a, initial = rows
    starts = torch.zeros(len(rows[0]), LONG, dtype=torch.bool)
    with torch.no_grad():
        rounded = rglru_loop(x.bfloat16().double(), log_a, starts, initial)[0]
    inputs = [(x[i : i + 1], log_a[i : i + 1], initial[i : i + 1]) for i in range(len(x))]
    return inputs, run(rglru_loop, (x, log_a, initial), starts), rounded


@pytest.mark.parametrize("name", LONG_DECAYS)
def test_8192_tokens_in_float32_and_bfloat16(name: str) -> None:
    """Of the largest entry, against the loop in float64: 1e-5 in float32, outputs and gradients; bfloat16
    inputs add their own rounding, 4e-3, and no more."""
    inputs, exact, rounded = loop_over_long_texts()
    row = LONG_DECAYS.index(name)
    x, log_a, initial = inputs[row]
    starts = torch.zeros(1, LONG, dtype=torch.bool)
    results = run(rglru, (x.float(), log_a.float(), initial.float()), starts)
    assert all(result.isfinite().all() for result in results)
    for result, expected in zip(results, exact, strict=True):
        assert error(result[0], expected[row]) < 1e-5

    scale = exact[0][row].abs().max()
    with torch.no_grad():
        y, last = rglru(x.bfloat16(), log_a.float(), starts, initial.float())
    assert y.dtype == last.dtype == torch.float32
    assert (y[0] - rounded[row]).abs().max() < 1e-5 * scale
    assert (y[0] - exact[0][row]).abs().max() < 4e-3 * scale


def test_the_square_root_s_gradient_is_clipped() -> None:
    """d sqrt(1 - a^2) / d log a is -2 a^2 / sqrt(max(4 (1 - a^2), 1e-6)): -2000 at a = 1."""
    log_a = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    x, h = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    y, _ = rglru(x, log_a, torch.zeros(1, 1, dtype=torch.bool), h)
    assert not y.any()
    y.sum().backward()
    assert log_a.grad is not None
    torch.testing.assert_close(log_a.grad, torch.full_like(log_a, -2000.0))


def test_1_minus_a_squared_in_float64_has_a_squared_rounded_to_nearest() -> None:
    """On every processor: exp(-1e-17) rounded to 1 - 2^-53 instead of 1 would move sqrt(1 - a^2) by 1e-8."""
    log_a = -torch.tensor([1e-17, 3e-17, 2**-54 * 1.01, 2**-52, 0.1], dtype=torch.float64)
    expected = [1 - math.exp(2 * value) for value in log_a.tolist()]
    assert one_minus_a_squared(log_a).tolist() == pytest.approx(expected, rel=1e-15, abs=0)


def test_a_text_that_starts_inside_a_row_forgets_the_one_before() -> None:
    torch.manual_seed(0)
    unit, x = RGLRU(6, 2).double(), torch.randn(2, 11, 6, dtype=torch.float64)
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[1, 4] = True
    y, last = unit(x, torch.randn(2, 6, dtype=torch.float64), starts)
    first = torch.zeros(1, 7, dtype=torch.bool)
    first[0, 0] = True
    expected, end = unit(x[1:, 4:], torch.zeros(1, 6, dtype=torch.float64), first)
    torch.testing.assert_close(y[1:, 4:], expected)
    torch.testing.assert_close(last[1:], end)


def test_the_gates_start_as_stated_and_a_squared_is_uniform() -> None:
    torch.manual_seed(0)
    unit = RGLRU(20_000, 200)
    squared = (-2 * torch.nn.functional.softplus(unit.rate.detach().double())).exp()
    assert 0.9**2 - 1e-4 < float(squared.min()) < 0.9**2 + 1e-3
    assert 0.999**2 - 1e-3 < float(squared.max()) < 0.999**2 + 1e-4
    assert abs(float(squared.mean()) - (0.9**2 + 0.999**2) / 2) < 1e-3
    for gate in (unit.input_gate, unit.decay_gate):
        assert abs(float(gate.weight.detach().var()) - 1 / 100) < 1e-3
        assert not gate.bias.any()
    with pytest.raises(ValueError, match="7 is not a multiple of blocks 2"):
        RGLRU(7, 2)


def test_the_block_counts_the_tokens_of_each_row() -> None:
    """A fresh row's first token isn't scaled, a continuing row's is, side by side."""
    torch.manual_seed(0)
    block = RecurrentBlock(4, 6, 2).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    fresh, (_, continuing) = block.init_state(1), block(x[1:, :3], block.init_state(1))
    rows = type(continuing)(*(torch.cat(pair) for pair in zip(fresh, continuing, strict=True)))
    y, state = block(x, rows)
    torch.testing.assert_close(y[:1], block(x[:1], fresh)[0])
    torch.testing.assert_close(y[1:], block(x[1:], continuing)[0])
    assert state.length.tolist() == [5, 8]


def test_under_bfloat16_the_state_keeps_its_precision() -> None:
    torch.manual_seed(0)
    block = RecurrentBlock(16, 16, 4)
    x = torch.randn(2, 300, 16)
    exact, _ = block.double()(x.double(), block.init_state(2))
    block.float()
    state = block.init_state(2)
    with torch.autocast("cpu", torch.bfloat16):
        y, after = block(x, state)
    assert [leaf.dtype for leaf in leaves(after)] == [leaf.dtype for leaf in leaves(state)]
    assert after.h.dtype == torch.float32
    assert error(y, exact) < 0.03
