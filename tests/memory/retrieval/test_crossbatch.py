"""Attention among other rows: equal to its loop; each row sees its contexts, and no others."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from zoo.memory.retrieval.crossbatch import (
    Contexts,
    Segments,
    context_rows,
    crossbatch,
    crossbatch_loop,
    earlier_rows,
)

CPU = torch.device("cpu")


def random_inputs(rows: int, time: int, segment: int, heads: int = 2, width: int = 4) -> list[Tensor]:
    """Queries, keys and values of segments, keys and values of contexts."""
    random = torch.Generator().manual_seed(rows * 100 + time * 10 + segment)
    shapes = [(rows, heads, length, width) for length in (time, time, time, segment, segment)]
    return [torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes]


def test_each_row_sees_itself_and_the_next_rows_around_the_end() -> None:
    assert context_rows(4, 3, CPU).tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]]
    assert context_rows(3, 1, CPU).tolist() == [[0], [1], [2]]


def test_packs_have_the_positives_and_negatives_of_the_3b_model() -> None:
    """Appendix A.2: (0, 0), (1, 1), (2, 1), (3, 0) contexts of the same document, and of others."""
    seen_rows = earlier_rows(8, 3, packing=4, stepping=True)
    counts = [
        (sum(seen // 4 == row // 4 for seen in contexts), sum(-1 < seen // 4 < row // 4 for seen in contexts))
        for row, (_, *contexts) in enumerate(seen_rows.tolist())
        if row >= 4
    ]
    assert counts == [(0, 0), (1, 1), (2, 1), (3, 0)]
    assert seen_rows[:, 0].tolist() == list(range(8))


@pytest.mark.parametrize(("rows", "time", "segment"), [(3, 5, 5), (4, 1, 3), (2, 3, 7), (1, 4, 2)])
@pytest.mark.parametrize("contexts", [1, 2, 4])
def test_equals_its_loop_with_gradients(rows: int, time: int, segment: int, contexts: int) -> None:
    seen_rows = context_rows(rows, min(contexts, rows), CPU)
    if contexts > 1:
        seen_rows[-1, -1] = -1
    length = torch.tensor([segment, 0, 1, segment // 2][:rows])
    results = []
    for form in (crossbatch, crossbatch_loop):
        inputs = random_inputs(rows, time, segment)
        y = form(Segments(*inputs[:3]), Contexts(*inputs[3:], length), seen_rows)
        (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        grads = [torch.zeros_like(part) if part.grad is None else part.grad for part in inputs]
        results.append([y.detach(), *grads])
    assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


def test_tokens_past_a_contexts_length_are_neither_read_nor_trained() -> None:
    """A row without a previous segment is no context of any row."""
    q, k, v, keys, values = random_inputs(3, 4, 4)
    segments, seen_rows, length = Segments(q, k, v), context_rows(3, 2, CPU), torch.tensor([4, 0, 2])
    y = crossbatch(segments, Contexts(keys, values, length), seen_rows)
    padding = torch.arange(4) >= length[:, None]
    change = 9.0 * padding[:, None, :, None]
    assert_close(crossbatch(segments, Contexts(keys + change, values + change, length), seen_rows), y)
    y.sum().backward()
    for part in (keys, values):
        assert part.grad is not None
        trained = part.grad.abs().sum((1, 3)) > 0
        assert torch.equal(trained, ~padding)


def test_half_precision() -> None:
    inputs = [part.detach().bfloat16() for part in random_inputs(2, 3, 3)]
    contexts = Contexts(*inputs[3:], torch.tensor([3, 0]))
    y = crossbatch(Segments(*inputs[:3]), contexts, context_rows(2, 2, CPU))
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()
