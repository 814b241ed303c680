"""Search by faiss against exact search, and the indexes that it builds, updates and evicts."""

import contextlib
import copy
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.memory.retrieval.banks import INDEX_TYPES, add, faiss_only, overlap, randn
from zoo.memory.retrieval import search
from zoo.memory.retrieval.bank import Bank, KNNMemory
from zoo.memory.retrieval.faiss_index import FlatIndex, IndexType
from zoo.memory.retrieval.search import search_exact
from zoo.state import from_leaves, leaves, replace_rows, take_rows


@faiss_only
@pytest.mark.parametrize("index", INDEX_TYPES)
def test_faiss_finds_the_banks_keys_after_any_history(index: IndexType) -> None:
    """Writes of any length with and without a search in between, fresh rows, permuted rows and earlier banks:
    always keys of the searched bank, never another row's, and of `flat` exactly the nearest."""
    knn, random = KNNMemory(160, 2, 6, 0, 8, 16, "faiss", index), torch.Generator().manual_seed(0)
    empty = knn.init_state(3, torch.empty(0))
    bank, past = empty, [empty]
    for step in range(60):
        chance = torch.rand((), generator=random)
        if chance < 0.1:
            bank = replace_rows(bank, empty, torch.rand(3, generator=random) < 0.5)
        elif chance < 0.2:
            bank = take_rows(bank, torch.randperm(3, generator=random))
        elif chance < 0.3:
            bank = past[int(torch.randint(len(past), (), generator=random))]
        bank = add(knn, bank, int(torch.randint(1, 40, (), generator=random)), seed=step)
        past.append(bank)
        if chance < 0.7:
            queries = randn(1000 + step, 3, 2, 4, 6)
            slots, expected = knn.search(queries, bank), search_exact(queries, bank.keys, bank.length, 8)
            assert torch.equal(slots >= 0, expected >= 0)
            assert (slots < bank.length[:, None, None, None]).all()
            for nearest in slots.flatten(0, 2):
                assert len(set(nearest[nearest >= 0].tolist())) == int((nearest >= 0).sum())
            assert overlap(expected, slots) >= (1.0 if index == "flat" else 0.75)
            scores = (knn.gather(bank, slots)[0] @ queries[..., None])[..., 0]
            assert (scores.masked_fill(slots < 0, -1e9).diff() <= 1e-5).all()  # the nearest first


@faiss_only
def test_an_index_is_brought_up_to_date_when_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is under the bank's stamp, extended under the previous one, built anew under any other."""
    writes: list[tuple[int, int]] = []
    put = FlatIndex.put

    def recorded_put(self: FlatIndex, first: int, keys: Tensor) -> None:
        writes.append((first, len(keys)))
        put(self, first, keys)

    monkeypatch.setattr(FlatIndex, "put", recorded_put)
    knn = KNNMemory(64, 1, 4, 0, 3, 8, "faiss")
    queries = randn(9, 1, 1, 2, 4)

    def writes_of_a_search(bank: Bank) -> list[tuple[int, int]]:
        """(first token, count) of every write to an index."""
        writes.clear()
        knn.search(queries, bank)
        return list(writes)

    first = add(knn, knn.init_state(1, queries), 10)
    assert writes == []  # writing a bank touches no index
    assert writes_of_a_search(knn.init_state(1, queries)) == []
    assert writes_of_a_search(first) == [(0, 10)]
    assert writes_of_a_search(first) == []
    second = add(knn, first, 5)
    assert writes_of_a_search(second) == [(10, 5)]
    assert writes_of_a_search(first) == [(0, 10)]  # its index became the second's
    assert writes_of_a_search(second) == []
    fourth = add(knn, add(knn, second, 1), 1)
    assert writes_of_a_search(fourth) == [(0, 17)]  # two writes without a search
    full = add(knn, fourth, 60)
    assert writes_of_a_search(full) == [(17, 60)]
    assert writes_of_a_search(add(knn, full, 64)) == [(77, 64)]
    assert writes_of_a_search(add(knn, full, 65)) == [(78, 64)]


@faiss_only
def test_results_of_flat_do_not_depend_on_the_history() -> None:
    """Bit for bit and in the same order: extended step by step, or built at once from the bank."""
    knn, twin = (KNNMemory(96, 2, 5, 0, 7, 16, "faiss") for _ in range(2))
    bank = knn.init_state(2, torch.empty(0))
    for step in range(20):
        bank = add(knn, bank, 5 + step % 9, seed=step)
        queries = randn(step, 2, 2, 30, 5)
        assert torch.equal(knn.search(queries, bank), copy.deepcopy(twin).search(queries, bank))


@faiss_only
def test_equal_scores_are_in_the_order_of_their_slots() -> None:
    knn = KNNMemory(12, 1, 2, 0, 12, backend="faiss")
    keys = torch.tensor([[1.0, 0], [2, 0], [1, 0], [2, 0]]).repeat(3, 1)[None, None]
    bank = knn.add(knn.init_state(1, keys), keys)
    expected = [1, 3, 5, 7, 9, 11, 0, 2, 4, 6, 8, 10]
    assert knn.search(torch.tensor([[[[1.0, 0]]]]), bank).flatten().tolist() == expected


@faiss_only
def test_a_copy_has_no_indexes_and_the_cache_is_limited() -> None:
    knn = KNNMemory(32, 2, 4, 4, 3, backend="faiss")
    assert knn.index_cache is not None
    for step in range(5):
        knn.search(randn(1, 3, 2, 2, 4), add(knn, knn.init_state(3, torch.empty(0)), 8, seed=step))
    assert len(knn.index_cache.rows) == 6  # two batches' rows
    for twin in (copy.deepcopy(knn), pickle.loads(pickle.dumps(knn))):
        assert twin.index_cache is not None
        assert (len(twin.index_cache.rows), twin.index_cache.recent_queries) == (0, None)
        assert (twin.index_cache.index_type, twin.index_cache.capacity) == ("flat", 32)
    assert knn.state_dict() == {}


class Stream:
    """Rows that are read segment after segment; `builds` has an entry for every index that is built."""

    def __init__(self, knn: KNNMemory, rows: int, builds: list[int]) -> None:
        self.knn, self.builds, self.steps = knn, builds, 0
        self.bank = self.empty = knn.init_state(rows, torch.empty(0))

    def read(self, fresh: list[bool] | None = None) -> int:
        """Search, then write, a segment; returns the number of indexes that the search built."""
        if fresh:
            self.bank = replace_rows(self.bank, self.empty, torch.tensor(fresh))
        self.builds.clear()
        self.knn.search(randn(1, len(self.bank.length), 1, 2, 4), self.bank)
        self.bank, self.steps = add(self.knn, self.bank, 8, seed=self.steps), self.steps + 1
        return len(self.builds)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every index that is built."""
    entries: list[int] = []
    make_index = search.make_index

    def recorded_make_index(*arguments: Any) -> Any:
        entries.append(len(entries))
        return make_index(*arguments)

    monkeypatch.setattr(search, "make_index", recorded_make_index)
    return entries


@faiss_only
@pytest.mark.parametrize("batch_sizes", [[4], [1], [1, 4, 2]], ids=str)
@pytest.mark.parametrize("all_rows", [False, True], ids=["row by row", "all rows"])
def test_training_continues_with_its_indexes_after_a_validation(
    batch_sizes: list[int], all_rows: bool, builds: list[int]
) -> None:
    """After any number of documents in the validation, one after another or in all its rows at once."""
    knn = KNNMemory(32, 1, 4, 0, 3, 8, "faiss")
    assert knn.index_cache is not None
    training = Stream(knn, 4, builds)
    assert [training.read() for _ in range(4)] == [0, 4, 0, 0]
    for rows in batch_sizes:
        validation = Stream(knn.eval(), rows, builds)
        for step in range(12):
            validation.read([step % 3 == 0 and (all_rows or step // 3 % rows == row) for row in range(rows)])
        assert len(knn.index_cache.rows) <= 4 + 2 * max(batch_sizes)
        knn.train()
        assert training.read() == 0


@faiss_only
def test_a_fresh_rows_index_replaces_that_of_the_rows_last_document(builds: list[int]) -> None:
    """Two batches in one mode, read alternately, keep their indexes."""
    knn = KNNMemory(32, 1, 4, 0, 3, 8, "faiss")
    assert knn.index_cache is not None
    steady, changing = Stream(knn, 4, builds), Stream(knn, 4, builds)
    for stream in (steady, changing):
        stream.read()
        stream.read()
    for step in range(12):  # a step builds the index of the row that was fresh in the last one
        assert changing.read([step % 4 == row for row in range(4)]) == (1 if step > 0 else 0)
        assert len(knn.index_cache.rows) <= 8
    assert steady.read() == 0


@faiss_only
def test_searching_single_rows_evicts_none_of_the_batchs_indexes(builds: list[int]) -> None:
    knn = KNNMemory(32, 1, 4, 0, 3, 8, "faiss")
    batch = Stream(knn, 4, builds)
    batch.read()
    batch.read()
    for row in range(4):
        knn.search(randn(1, 1, 1, 2, 4), take_rows(batch.bank, torch.tensor([row])))
    assert batch.read() == 0


@faiss_only
@pytest.mark.parametrize("index", INDEX_TYPES)
def test_a_checkpoint_has_the_bank_and_no_index(index: IndexType) -> None:
    knn = KNNMemory(32, 2, 4, 4, 3, 8, "faiss", index)
    bank, queries = add(knn, knn.init_state(3, torch.empty(0)), 50), randn(1, 3, 2, 5, 4)
    expected, file = knn.search(queries, bank), io.BytesIO()
    torch.save(leaves(bank), file)
    file.seek(0)
    twin = KNNMemory(32, 2, 4, 4, 3, 8, "faiss", index)
    loaded = from_leaves(twin.init_state(3, torch.empty(0)), torch.load(file, weights_only=True))
    assert torch.equal(twin.search(queries, loaded), expected)


@faiss_only
def test_threads_search_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search waits for a second one at the same time, and none comes."""
    knn = KNNMemory(64, 2, 4, 0, 3, 8, "faiss")
    banks = [add(knn, knn.init_state(2, torch.empty(0)), 20 + i, seed=i) for i in range(4)]
    queries, barrier = randn(1, 2, 2, 5, 4), threading.Barrier(2)
    search_flat: Callable[..., Any] = FlatIndex.search

    def waiting_search(self: FlatIndex, *arguments: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):  # the wait timed out, now or before
            barrier.wait(timeout=1.0)
            pytest.fail("two searches at once")
        return search_flat(self, *arguments)

    monkeypatch.setattr(FlatIndex, "search", waiting_search)

    def is_exact(bank: Bank) -> bool:
        expected = search_exact(queries, bank.keys, bank.length, 3)
        return all(torch.equal(knn.search(queries, bank), expected) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(is_exact, banks)) == [True] * 4
