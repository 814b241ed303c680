"""Exact search against a sort of all scores."""

import pytest
import torch

from tests.memory.retrieval.banks import add, randn
from tests.memory.watch import Watch
from zoo.memory.retrieval import search
from zoo.memory.retrieval.bank import KNNMemory
from zoo.memory.retrieval.search import search_exact, search_exact_reference


@pytest.mark.parametrize("readable", [("cpu",), ()], ids=["", "unreadable"])
@pytest.mark.parametrize("max_scores", [1, 60, 200, 2**24])
@pytest.mark.parametrize(("capacity", "block"), [(24, 4), (24, 24), (24, 1)])
def test_exact_search_is_the_definition(
    capacity: int,
    block: int,
    max_scores: int,
    readable: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In batches of any size; small integers have many ties, of which the lowest slots come first."""
    monkeypatch.setattr("zoo.host.READABLE_DEVICES", readable)
    monkeypatch.setattr(search, "MAX_SCORES", max_scores)
    random = torch.Generator().manual_seed(0)
    blocks = torch.randint(-2, 3, (3, 2, capacity, 2), generator=random).float().split(block, dim=2)
    queries = torch.randint(-2, 3, (3, 2, 5, 2), generator=random).float()
    for length in map(torch.tensor, ([0, 3, 24], [40, 24, 30], [0, 0, 0], [1, 2, 25])):
        for count in (1, 5, 24):
            slots = search_exact(queries, blocks, length, count)
            assert torch.equal(slots, search_exact_reference(queries, blocks, length, count))
            known = int(length.min()), int(length.max())
            assert torch.equal(slots, search_exact(queries, blocks, length, count, known))
            assert torch.equal(
                slots, search_exact(queries, blocks, length, count, (known[0] // 2, known[1] + 3))
            )
            stored = length.clamp(max=min(count, capacity))
            assert torch.equal((slots >= 0).sum(-1), stored[:, None, None].expand(-1, 2, 5))


def test_the_scores_of_a_long_bank_are_never_all_in_memory() -> None:
    knn = KNNMemory(2**18, 1, 2, block_size=2**14)
    bank = add(knn, knn.init_state(1, torch.empty(0)), 2**18)
    queries = randn(1, 1, 1, 256, 2)
    with Watch() as watch:
        knn.search(queries, bank)
    all_scores = 256 * 2**18 * 4
    assert watch.largest <= all_scores / 4


def test_search_is_in_float32_at_least() -> None:
    """Also under autocast, where a product of float32 numbers is one of bf16's."""
    knn = KNNMemory(400, 1, 8)
    bank = add(knn, knn.init_state(1, torch.empty(0)), 400)
    queries = randn(1, 1, 1, 50, 8)
    with torch.autocast("cpu", torch.bfloat16):
        slots = knn.search(queries, bank)
    assert torch.equal(slots, knn.search(queries.double(), bank))
