"""Attention among other rows: equal to its loop; each row sees what it should, and nothing else."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from zoo.memory.retrieval.crossbatch import context_rows, crossbatch, crossbatch_loop, earlier_rows

CPU = torch.device("cpu")


def drawn(rows: int, time: int, segment: int, heads: int = 2, width: int = 4) -> list[Tensor]:
    """q, k, v, other keys, other values."""
    random = torch.Generator().manual_seed(rows * 100 + time * 10 + segment)
    shapes = [(rows, heads, length, width) for length in (time, time, time, segment, segment)]
    return [torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes]


def test_each_row_sees_itself_and_the_next_ones_around_the_end() -> None:
    assert context_rows(4, 3, CPU).tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]]
    assert context_rows(3, 1, CPU).tolist() == [[0], [1], [2]]


def test_packs_have_the_positives_and_negatives_of_the_3b_model() -> None:
    """Appendix A.2: (0, 0), (1, 1), (2, 1), (3, 0) contexts of the same document, and of others."""
    seen = earlier_rows(8, 3, packing=4, stepping=True)
    counts = [
        (sum(other // 4 == row // 4 for other in others), sum(-1 < other // 4 < row // 4 for other in others))
        for row, (_, *others) in enumerate(seen.tolist())
        if row >= 4
    ]
    assert counts == [(0, 0), (1, 1), (2, 1), (3, 0)]
    assert seen[:, 0].tolist() == list(range(8))


@pytest.mark.parametrize(("rows", "time", "segment"), [(3, 5, 5), (4, 1, 3), (2, 3, 7), (1, 4, 2)])
@pytest.mark.parametrize("contexts", [1, 2, 4])
def test_equals_its_loop_with_gradients(rows: int, time: int, segment: int, contexts: int) -> None:
    seen = context_rows(rows, min(contexts, rows), CPU)
    if contexts > 1:
        seen[-1, -1] = -1
    filled = torch.tensor([segment, 0, 1, segment // 2][:rows])
    results = []
    for form in (crossbatch, crossbatch_loop):
        inputs = drawn(rows, time, segment)
        y = form(*inputs, filled, seen)
        (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        grads = [torch.zeros_like(part) if part.grad is None else part.grad for part in inputs]
        results.append([y.detach(), *grads])
    assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


def test_what_isnt_there_is_neither_read_nor_taught() -> None:
    """A row without a previous segment shows nothing to any row."""
    q, k, v, other_keys, other_values = drawn(3, 4, 4)
    seen, filled = context_rows(3, 2, CPU), torch.tensor([4, 0, 2])
    y = crossbatch(q, k, v, other_keys, other_values, filled, seen)
    hidden = torch.arange(4) >= filled[:, None]
    far = other_values + 9.0 * hidden[:, None, :, None]
    assert_close(crossbatch(q, k, v, other_keys + far - other_values, far, filled, seen), y)
    y.sum().backward()
    for part in (other_keys, other_values):
        assert part.grad is not None
        taught = part.grad.abs().sum((1, 3)) > 0
        assert torch.equal(taught, ~hidden)


def test_half_precision() -> None:
    inputs = [part.detach().bfloat16() for part in drawn(2, 3, 3)]
    y = crossbatch(*inputs, torch.tensor([3, 0]), context_rows(2, 2, CPU))
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()
