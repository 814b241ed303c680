"""The associative memory against loops over memory tokens and features."""

import pytest
import torch
from torch import Tensor

from zoo.memory.fast_weights.associative import AssociativeMemory, AssociativeState, dpfp

EPS = 1e-5


def features(x: Tensor, nu: int) -> Tensor:
    """DPFP of one vector: y_i y_(i-j) with y = relu of x and -x, for every j = 1 .. nu, then every i."""
    y = [max(float(value), 0.0) for value in x] + [max(-float(value), 0.0) for value in x]
    return torch.tensor([y[i] * y[i - j] for j in range(1, nu + 1) for i in range(len(y))], dtype=x.dtype)


def recall(k: Tensor, matrix: Tensor, normaliser: Tensor) -> Tensor:
    total = sum(float(k[i]) * float(normaliser[i]) for i in range(len(k))) + EPS
    return sum((float(k[i]) / total * matrix[i] for i in range(len(k))), start=torch.zeros_like(matrix[0]))


def write(
    memory: AssociativeMemory, x: Tensor, matrix: Tensor, normaliser: Tensor, first: bool
) -> tuple[Tensor, Tensor]:
    """Equations 2-4 for one row's memory tokens, all against the old matrix."""
    new_matrix, new_normaliser = matrix.clone(), normaliser.clone()
    for token in x:
        k, v = features(memory.key.weight @ token, memory.nu), memory.value.weight @ token
        strength = torch.sigmoid(memory.strength.weight[0] @ token + memory.strength.bias[0])
        new_matrix += strength * torch.outer(k, v - recall(k, matrix, normaliser))
        gamma = min(1.0, max(0.0, 1 - float(k @ normaliser + EPS) / float(k @ k + EPS)))
        new_normaliser += (1.0 if first or not memory.correction else gamma) * k
    return new_matrix, new_normaliser


def build(nu: int = 2, correction: bool = True) -> AssociativeMemory:
    torch.manual_seed(nu)
    return AssociativeMemory(width=5, key_width=3, nu=nu, correction=correction).double()


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_dpfp_against_loops(nu: int) -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    result = dpfp(x, nu)
    assert result.shape == (2, 4, 2 * nu * 3)
    assert (result >= 0).all()
    for row in range(2):
        for time in range(4):
            torch.testing.assert_close(result[row, time], features(x[row, time], nu))


@pytest.mark.parametrize("nu", [1, 3])
@pytest.mark.parametrize("correction", [True, False])
@torch.no_grad()
def test_three_writes_and_reads_against_loops(nu: int, correction: bool) -> None:
    memory, state = build(nu, correction), None
    matrix = torch.zeros(2, 6 * nu, 5, dtype=torch.float64)
    normaliser = torch.zeros(2, 6 * nu, dtype=torch.float64)
    state = memory.init_state(2)
    for step in range(3):
        x = torch.randn(2, 4, 5, dtype=torch.float64)
        state = memory.write(x, state)
        for row in range(2):
            matrix[row], normaliser[row] = write(memory, x[row], matrix[row], normaliser[row], step == 0)
        torch.testing.assert_close(state.matrix, matrix)
        torch.testing.assert_close(state.normaliser, normaliser)
        queries = torch.randn(2, 3, 5, dtype=torch.float64)
        values = memory.read(queries, state)
        for row in range(2):
            for time in range(3):
                q = features(memory.query.weight @ queries[row, time], nu)
                torch.testing.assert_close(values[row, time], recall(q, matrix[row], normaliser[row]))
    assert state.writes.tolist() == [3, 3]


@torch.no_grad()
def test_an_empty_memory_returns_0() -> None:
    memory = build()
    assert not memory.read(torch.randn(2, 4, 5, dtype=torch.float64), memory.init_state(2)).any()


@torch.no_grad()
def test_the_first_write_is_counted_per_row() -> None:
    """gamma = 1 at each row's first write, not at the batch's."""
    memory, x = build(), torch.randn(2, 4, 5, dtype=torch.float64)
    once = memory.write(torch.randn(2, 4, 5, dtype=torch.float64), memory.init_state(2))
    fresh = memory.init_state(2)
    mixed = AssociativeState(*(torch.stack([old[0], new[1]]) for old, new in zip(once, fresh, strict=True)))
    after = memory.write(x, mixed)
    torch.testing.assert_close(after.matrix[0], memory.write(x, once).matrix[0])
    torch.testing.assert_close(after.normaliser[0], memory.write(x, once).normaliser[0])
    torch.testing.assert_close(after.normaliser[1], memory.write(x, fresh).normaliser[1])
    assert after.writes.tolist() == [2, 1]


def test_the_correction_has_no_gradient() -> None:
    """d z' / d W_k is that of sum gamma_i k_i with every gamma a number."""
    memory, x = build(), torch.randn(1, 4, 5, dtype=torch.float64)
    once = memory.write(torch.randn(1, 4, 5, dtype=torch.float64), memory.init_state(1))
    state = AssociativeState(*(part.detach() for part in once))
    after = memory.write(x, state)
    (grad,) = torch.autograd.grad(after.normaliser.square().sum(), memory.key.weight)
    keys = dpfp(memory.key(x), memory.nu)[0]
    total = state.normaliser[0].clone()
    for k in keys:
        fixed = k.detach()
        gamma = 1 - float(fixed @ state.normaliser[0] + EPS) / float(fixed @ fixed + EPS)
        total = total + min(1.0, max(0.0, gamma)) * k
    (expected,) = torch.autograd.grad(total.square().sum(), memory.key.weight)
    torch.testing.assert_close(grad, expected)
    assert grad.any()


@pytest.mark.parametrize(
    ("weights", "sums"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
@torch.no_grad()
def test_sums_over_a_text_have_float32_at_least(weights: torch.dtype, sums: torch.dtype) -> None:
    memory = build().to(weights)
    state = memory.write(torch.randn(2, 4, 5, dtype=weights), memory.init_state(2))
    assert state.matrix.dtype == state.normaliser.dtype == sums
    assert memory.read(torch.randn(2, 4, 5, dtype=weights), state).dtype == weights


@torch.no_grad()
def test_small_writes_add_up_under_autocast() -> None:
    """1,024 writes of one memory token: in bfloat16 the sum would stop growing at 256 times the first."""
    memory, token = build(correction=False).float(), torch.randn(1, 1, 5)
    with torch.autocast("cpu", torch.bfloat16):
        first = memory.write(token, memory.init_state(1))
        state = first
        for _ in range(1023):
            state = memory.write(token, state)
    torch.testing.assert_close(state.normaliser, 1024 * first.normaliser, rtol=1e-4, atol=0.0)
