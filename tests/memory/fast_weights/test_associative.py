"""The associative memory against loops, one slot and one feature at a time."""

import pytest
import torch
from torch import Tensor

from zoo.memory.fast_weights.associative import AssociativeMemory, AssociativeState, dpfp

EPS = 1e-5


def features(x: Tensor, nu: int) -> Tensor:
    """DPFP of one vector: y_i y_(i-j) with y = relu of x and -x, for every j = 1 .. nu, then every i."""
    y = [max(float(value), 0.0) for value in x] + [max(-float(value), 0.0) for value in x]
    return torch.tensor([y[i] * y[i - j] for j in range(1, nu + 1) for i in range(len(y))], dtype=x.dtype)


def answer(k: Tensor, matrix: Tensor, normaliser: Tensor) -> Tensor:
    total = sum(float(k[i]) * float(normaliser[i]) for i in range(len(k))) + EPS
    return sum((float(k[i]) / total * matrix[i] for i in range(len(k))), start=torch.zeros_like(matrix[0]))


def write(
    memory: AssociativeMemory, x: Tensor, matrix: Tensor, normaliser: Tensor, first: bool
) -> tuple[Tensor, Tensor]:
    """Equations 2-4 for one row's slots, all against the old matrix."""
    new_matrix, new_normaliser = matrix.clone(), normaliser.clone()
    for slot in x:
        k, v = features(memory.key.weight @ slot, memory.nu), memory.value.weight @ slot
        strength = torch.sigmoid(memory.strength.weight[0] @ slot + memory.strength.bias[0])
        new_matrix += strength * torch.outer(k, v - answer(k, matrix, normaliser))
        gamma = min(1.0, max(0.0, 1 - float(k @ normaliser + EPS) / float(k @ k + EPS)))
        new_normaliser += (1.0 if first or not memory.correction else gamma) * k
    return new_matrix, new_normaliser


def made(nu: int = 2, correction: bool = True) -> AssociativeMemory:
    torch.manual_seed(nu)
    return AssociativeMemory(width=5, key_width=3, nu=nu, correction=correction).double()


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_dpfp_against_loops(nu: int) -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    found = dpfp(x, nu)
    assert found.shape == (2, 4, 2 * nu * 3)
    assert (found >= 0).all()
    for row in range(2):
        for time in range(4):
            torch.testing.assert_close(found[row, time], features(x[row, time], nu))


@pytest.mark.parametrize("nu", [1, 3])
@pytest.mark.parametrize("correction", [True, False])
@torch.no_grad()
def test_three_writes_and_reads_against_loops(nu: int, correction: bool) -> None:
    memory, state = made(nu, correction), None
    matrix = torch.zeros(2, 6 * nu, 5, dtype=torch.float64)
    normaliser = torch.zeros(2, 6 * nu, dtype=torch.float64)
    state = memory.init_state(2)
    for turn in range(3):
        x = torch.randn(2, 4, 5, dtype=torch.float64)
        state = memory.write(x, state)
        for row in range(2):
            matrix[row], normaliser[row] = write(memory, x[row], matrix[row], normaliser[row], turn == 0)
        torch.testing.assert_close(state.matrix, matrix)
        torch.testing.assert_close(state.normaliser, normaliser)
        asked = torch.randn(2, 3, 5, dtype=torch.float64)
        said = memory.read(asked, state)
        for row in range(2):
            for time in range(3):
                q = features(memory.query.weight @ asked[row, time], nu)
                torch.testing.assert_close(said[row, time], answer(q, matrix[row], normaliser[row]))
    assert state.writes.tolist() == [3, 3]


@torch.no_grad()
def test_an_empty_memory_says_nothing_at_all() -> None:
    memory = made()
    assert not memory.read(torch.randn(2, 4, 5, dtype=torch.float64), memory.init_state(2)).any()


@torch.no_grad()
def test_a_fresh_row_writes_its_first_time_amid_others() -> None:
    """gamma = 1 is each row's own first write, not the batch's."""
    memory, x = made(), torch.randn(2, 4, 5, dtype=torch.float64)
    once = memory.write(torch.randn(2, 4, 5, dtype=torch.float64), memory.init_state(2))
    born = memory.init_state(2)
    mixed = AssociativeState(*(torch.stack([old[0], new[1]]) for old, new in zip(once, born, strict=True)))
    found = memory.write(x, mixed)
    torch.testing.assert_close(found.matrix[0], memory.write(x, once).matrix[0])
    torch.testing.assert_close(found.normaliser[0], memory.write(x, once).normaliser[0])
    torch.testing.assert_close(found.normaliser[1], memory.write(x, born).normaliser[1])
    assert found.writes.tolist() == [2, 1]


def test_the_correction_has_no_gradient() -> None:
    """d z' / d W_k is that of sum gamma_i k_i with every gamma a number."""
    memory, x = made(), torch.randn(1, 4, 5, dtype=torch.float64)
    once = memory.write(torch.randn(1, 4, 5, dtype=torch.float64), memory.init_state(1))
    state = AssociativeState(*(part.detach() for part in once))
    after = memory.write(x, state)
    (found,) = torch.autograd.grad(after.normaliser.square().sum(), memory.key.weight)
    keys = dpfp(memory.key(x), memory.nu)[0]
    total = state.normaliser[0].clone()
    for k in keys:
        fixed = k.detach()
        gamma = 1 - float(fixed @ state.normaliser[0] + EPS) / float(fixed @ fixed + EPS)
        total = total + min(1.0, max(0.0, gamma)) * k
    (expected,) = torch.autograd.grad(total.square().sum(), memory.key.weight)
    torch.testing.assert_close(found, expected)
    assert found.any()


@pytest.mark.parametrize(
    ("weights", "kept"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
@torch.no_grad()
def test_sums_over_a_whole_text_are_kept_in_float32_at_least(weights: torch.dtype, kept: torch.dtype) -> None:
    memory = made().to(weights)
    state = memory.write(torch.randn(2, 4, 5, dtype=weights), memory.init_state(2))
    assert state.matrix.dtype == state.normaliser.dtype == kept
    assert memory.read(torch.randn(2, 4, 5, dtype=weights), state).dtype == weights


@torch.no_grad()
def test_small_writes_add_up_under_autocast() -> None:
    """1,024 writes of the same slot: in bfloat16 the sum would stop growing at 256 times the first."""
    memory, slot = made(correction=False).float(), torch.randn(1, 1, 5)
    with torch.autocast("cpu", torch.bfloat16):
        first = memory.write(slot, memory.init_state(1))
        state = first
        for _ in range(1023):
            state = memory.write(slot, state)
    torch.testing.assert_close(state.normaliser, 1024 * first.normaliser, rtol=1e-4, atol=0.0)
