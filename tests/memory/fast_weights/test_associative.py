"""The associative memory against loops over memory tokens and features."""

import pytest
import torch
from torch import Tensor

from zoo.memory.fast_weights.associative import (
    AssociativeMemory,
    AssociativeState,
    Write,
    dpfp,
    lookup,
    write_in_turn,
    write_in_turn_loop,
    write_together,
)

EPS = 1e-5


def features(x: Tensor, nu: int) -> Tensor:
    """DPFP of one vector: y_i y_(i-j) with y = relu of x and -x, for every j = 1 .. nu, then every i."""
    y = [max(float(value), 0.0) for value in x] + [max(-float(value), 0.0) for value in x]
    return torch.tensor([y[i] * y[i - j] for j in range(1, nu + 1) for i in range(len(y))], dtype=x.dtype)


def recall(k: Tensor, matrix: Tensor, normaliser: Tensor, bounded: bool) -> Tensor:
    total = sum(float(k[i]) * float(normaliser[i]) for i in range(len(k)))
    total = (max(total, float(k @ k)) if bounded else total) + EPS
    return sum((float(k[i]) / total * matrix[i] for i in range(len(k))), start=torch.zeros_like(matrix[0]))


def inputs(memory: AssociativeMemory, x: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-6).sqrt() if memory.bounded else x


def write(
    memory: AssociativeMemory, x: Tensor, matrix: Tensor, normaliser: Tensor, first: bool
) -> tuple[Tensor, Tensor]:
    """Equations 2-4 for one row's memory tokens, all against the old matrix."""
    new_matrix, new_normaliser = matrix.clone(), normaliser.clone()
    for token in x:
        token = inputs(memory, token)
        k, v = features(memory.key.weight @ token, memory.nu), memory.value.weight @ token
        strength = torch.sigmoid(memory.strength.weight[0] @ token + memory.strength.bias[0])
        new_matrix += strength * torch.outer(k, v - recall(k, matrix, normaliser, memory.bounded))
        gamma = min(1.0, max(0.0, 1 - float(k @ normaliser + EPS) / float(k @ k + EPS)))
        new_normaliser += (1.0 if first or not memory.correction else gamma) * k
    return new_matrix, new_normaliser


def build(
    nu: int = 2, correction: bool = True, write: Write = "together", bounded: bool = False
) -> AssociativeMemory:
    torch.manual_seed(nu)
    memory = AssociativeMemory(
        width=5, key_width=3, nu=nu, correction=correction, write=write, bounded=bounded
    )
    return memory.double()


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
@pytest.mark.parametrize("order", ["together", "in_turn"])
@pytest.mark.parametrize("bounded", [True, False])
@torch.no_grad()
def test_three_writes_and_reads_against_loops(nu: int, correction: bool, order: Write, bounded: bool) -> None:
    memory, state = build(nu, correction, order, bounded), None
    matrix = torch.zeros(2, 6 * nu, 5, dtype=torch.float64)
    normaliser = torch.zeros(2, 6 * nu, dtype=torch.float64)
    state = memory.init_state(2)
    for step in range(3):
        x = torch.randn(2, 4, 5, dtype=torch.float64)
        state = memory.write(x, state)
        for row in range(2):
            for i, tokens in enumerate(x[row].split(1 if order == "in_turn" else 4)):
                first = step == 0 and i == 0
                matrix[row], normaliser[row] = write(memory, tokens, matrix[row], normaliser[row], first)
        torch.testing.assert_close(state.matrix, matrix)
        torch.testing.assert_close(state.normaliser, normaliser)
        queries = torch.randn(2, 3, 5, dtype=torch.float64)
        values = memory.read(queries, state)
        for row in range(2):
            for time in range(3):
                q = features(memory.query.weight @ inputs(memory, queries[row, time]), nu)
                torch.testing.assert_close(
                    values[row, time], recall(q, matrix[row], normaliser[row], memory.bounded)
                )
    assert state.writes.tolist() == [3, 3]


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("bounded", [True, False])
def test_in_turn_is_its_loop(correction: bool, bounded: bool) -> None:
    """From an empty row beside a written one, with gradients in the state as well."""
    torch.manual_seed(0)
    keys = torch.rand(2, 5, 12, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    strength = torch.rand(2, 5, 1, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(2, 12, 4, dtype=torch.float64).mul(torch.tensor([0.0, 1.0])[:, None, None])
    normaliser = torch.rand(2, 12, dtype=torch.float64) * torch.tensor([0.0, 0.3])[:, None]
    start = matrix.requires_grad_(), normaliser.requires_grad_()
    inputs = [keys, values, strength, *start]
    results = []
    for form in (write_in_turn, write_in_turn_loop):
        state = AssociativeState(*start, torch.tensor([0, 2]))
        written = form(state, keys, values, strength, correction, bounded)
        loss = sum((part * torch.arange(part.numel()).view_as(part)).sum() for part in written)
        results.append([*written, *torch.autograd.grad(loss, inputs)])
    for fast, loop in zip(*results, strict=True):
        torch.testing.assert_close(fast, loop, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("correction", "expected"), [(True, [0, 1]), (False, [7.5 / 17, 1 / 17])])
@pytest.mark.parametrize("bounded", [True, False])
@torch.no_grad()
def test_what_is_written_again_is_replaced(correction: bool, expected: list[float], bounded: bool) -> None:
    """A pair is written 16 times, then once with another value, all with b = 1.

    With gamma z k stays |k|^2, and the new value alone is read.  Without it z k is n |k|^2 after n writes, so
    that k A / |k|^2, which grows by v - k A / (z k), is 7.5 old + new after 17 of them.
    """
    torch.manual_seed(0)
    key, values = torch.rand(1, 1, 6).double(), torch.eye(2).double().view(2, 1, 1, 2)
    state = AssociativeState(torch.zeros(1, 6, 2).double(), torch.zeros(1, 6).double(), torch.zeros(1).long())
    for value in [values[0]] * 16 + [values[1]]:
        A, z = write_in_turn(state, key, value, torch.ones(1, 1, 1).double(), correction, bounded)
        state = AssociativeState(A, z, state.writes + 1)
    numerator, total = lookup(key, state, bounded)
    read = (numerator / total[..., None])[0, 0]
    torch.testing.assert_close(read, torch.tensor(expected).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("bounded", "total"), [(False, 1e-6 + 1e-5), (True, 1 + 1e-5)])
@torch.no_grad()
def test_a_query_beside_all_weight_divides_by_its_own_square_at_least(bounded: bool, total: float) -> None:
    """(1, 0) is written with value 0, (1, 0.01) with 1, with b = 1: gamma is 1e-4, z = (1, 1e-6), and A has
    0.01 in its second row.  The query (0, 1) reads 0.01 over z q + eps, or over |q|^2 + eps."""
    state = AssociativeState(torch.zeros(1, 2, 1).double(), torch.zeros(1, 2).double(), torch.zeros(1).long())
    for key, value in (([1.0, 0.0], 0.0), ([1.0, 0.01], 1.0)):
        keys, values = torch.tensor([[key]]).double(), torch.tensor([[[value]]]).double()
        written = write_together(state, keys, values, torch.ones(1, 1, 1).double(), True, bounded)
        state = AssociativeState(*written, state.writes + 1)
    numerator, denominator = lookup(torch.tensor([[[0.0, 1.0]]]).double(), state, bounded)
    assert numerator.item() == pytest.approx(0.01, rel=1e-4)
    assert denominator.item() == pytest.approx(total, rel=0.1)


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


def test_one_feature_of_one_shift_is_refused() -> None:
    """x and -x are never both above 0: all features would be 0."""
    with pytest.raises(ValueError, match="nu: expected at least 2 with a key_width of 1"):
        AssociativeMemory(8, key_width=1, nu=1)
    assert dpfp(torch.tensor([[2.0]]), 2).any()
