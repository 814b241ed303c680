"""The kNN bank against lists of tokens; its searches against a sort of all scores; how faiss is used."""

import contextlib
import copy
import importlib
import importlib.metadata
import io
import pickle
import threading
import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.testing import assert_close

from tests.memory.watch import Watch
from zoo.errors import UserError
from zoo.memory.retrieval import faiss_index, search
from zoo.memory.retrieval.bank import Bank, KNNMemory, attend
from zoo.memory.retrieval.faiss_index import Flat, Graph, Kind, Lists, list_count, load_faiss
from zoo.memory.retrieval.search import search_exact, search_exact_reference
from zoo.models.memorizing import Memorizing
from zoo.state import contents, detach, from_leaves, leaves, replace_rows, take_rows


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def add(knn: KNNMemory, bank: Bank, time: int, seed: int = 0) -> Bank:
    rows = len(bank.length)
    values = draw(seed + 1, rows, knn.heads, time, knn.value_width) if knn.value_width else None
    return knn.add(bank, draw(seed, rows, knn.heads, time, knn.key_width), values)


# -- the bank


@pytest.mark.parametrize(("capacity", "block"), [(12, None), (12, 4), (12, 1), (6, 3), (5, 5)])
def test_a_bank_keeps_each_rows_last_tokens(capacity: int, block: int | None) -> None:
    """Token t of a row lies at slot t % capacity; rows stand at places of their own."""
    knn = KNNMemory(capacity, 2, 3, 4, block=block)
    bank, told = knn.init_state(3, torch.empty(0)), [[], [], []]  # type: ignore[var-annotated]
    for step, time in enumerate((4, 1, 7, 0, 12, 3, 30, 5)):
        if step in (2, 5):  # rows that begin anew
            fresh = torch.tensor([step == 2, False, True])
            bank = replace_rows(bank, knn.init_state(3, torch.empty(0)), fresh)
            told = [[] if new else old for new, old in zip(fresh.tolist(), told, strict=True)]
        before = copy.deepcopy(bank)
        keys, values = draw(step, 3, 2, time, 3), draw(100 + step, 3, 2, time, 4)
        after = knn.add(bank, keys, values)
        assert_close(leaves(bank), leaves(before), rtol=0, atol=0)  # nothing is changed in place
        bank = after
        for row, tokens in enumerate(told):
            tokens += [(keys[row, :, t], values[row, :, t]) for t in range(time)]
            assert bank.length[row] == len(tokens)
            for t in range(max(0, len(tokens) - capacity), len(tokens)):
                found = [torch.cat(blocks, dim=2)[row, :, t % capacity] for blocks in bank[:2]]
                assert_close(found, list(tokens[t]), rtol=0, atol=0)


def test_a_bank_may_have_no_values() -> None:
    knn = KNNMemory(4, 1, 3)
    bank = add(knn, knn.init_state(2, torch.empty(0)), 3)
    assert bank.values == ()
    keys, values = knn.gather(bank, torch.tensor([[[[0, -1]]], [[[2, 1]]]]))
    assert values is None
    assert_close(keys[0, 0, 0], torch.stack([bank.keys[0][0, 0, 0], torch.zeros(3)]))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_dtype_is_the_models_or_bf16(dtype: Any) -> None:
    knn = KNNMemory(8, 2, 3, 3, 4, dtype=dtype)
    bank = add(knn, knn.init_state(2, torch.empty(0, dtype=torch.float64)), 6)
    expected = torch.float64 if dtype is None else torch.bfloat16
    assert {block.dtype for block in (*bank.keys, *bank.values)} == {expected}
    queries = draw(5, 2, 2, 3, 3)
    assert_close(knn.search(queries, bank), search_exact_reference(queries, bank.keys, bank.length, 4))


def test_what_is_written_keeps_its_graph_only_when_told() -> None:
    knn = KNNMemory(4, 1, 2)
    keys = draw(0, 1, 1, 3, 2).requires_grad_()
    empty = knn.init_state(1, keys.detach())
    assert not knn.add(empty, keys).keys[0].requires_grad
    knn.add(empty, keys, detach=False).keys[0].sum().backward()
    assert_close(keys.grad, torch.ones_like(keys))


def written_bytes(capacity: int) -> int:
    knn = KNNMemory(capacity, 2, 8, 8, block=16)
    bank = add(knn, knn.init_state(2, torch.empty(0)), 16)
    keys, values = draw(2, 2, 2, 16, 8), draw(3, 2, 2, 16, 8)
    with Watch() as watch:
        knn.add(bank, keys, values)
    return watch.nbytes


def test_writing_costs_the_same_in_any_bank() -> None:
    assert written_bytes(64) == written_bytes(4096)
    assert written_bytes(64) < 6 * 2 * (2 * 2 * 16 * 8 * 4)  # a few times the two blocks that are written


def test_a_new_bank_shares_all_blocks_but_those_written() -> None:
    knn = KNNMemory(64, 2, 8, 8, block=16)
    bank = add(knn, knn.init_state(2, torch.empty(0)), 64)
    after = add(knn, bank, 16)
    for old, new in zip(bank[:2], after[:2], strict=True):
        assert [x is y for x, y in zip(old, new, strict=True)] == [False, True, True, True]
    after = add(knn, add(knn, bank, 8), 16)  # over an edge: two are written
    assert [x is y for x, y in zip(bank.keys, after.keys, strict=True)] == [False, False, True, True]


@pytest.mark.parametrize("tokens", [1, 40])  # more is read than the bank has, and less
def test_what_is_gathered(tokens: int) -> None:
    knn = KNNMemory(12, 2, 3, 4, block=4)
    bank = add(knn, knn.init_state(3, torch.empty(0)), 12)
    ids = torch.randint(-1, 12, (3, 2, tokens, 5), generator=torch.Generator().manual_seed(0))
    for got, blocks in zip(knn.gather(bank, ids), bank[:2], strict=True):
        assert got is not None
        whole = torch.cat(blocks, dim=2)
        for place in torch.cartesian_prod(*map(torch.arange, ids.shape)).tolist():
            row, head, token, rank = place
            slot = int(ids[row, head, token, rank])
            expected = torch.zeros(got.shape[-1]) if slot < 0 else whole[row, head, slot]
            assert torch.equal(got[row, head, token, rank], expected)


def gathered_bytes(capacity: int) -> int:
    knn = KNNMemory(capacity, 2, 8, 8, block=16)
    bank = add(knn, knn.init_state(2, torch.empty(0)), 16)
    ids = torch.randint(-1, capacity, (2, 2, 16, 32), generator=torch.Generator().manual_seed(0))
    with Watch() as watch:
        knn.gather(bank, ids)
    return watch.nbytes


def test_gathering_costs_the_same_from_any_bank() -> None:
    """It isn't copied, though 512 ids are read in each row and head; only the counts of blocks are more."""
    assert gathered_bytes(4096) < 1.1 * gathered_bytes(256)


@pytest.mark.parametrize(("capacity", "block", "tokens"), [(12, 4, 1), (12, 4, 40), (4, None, 2)])
def test_gathering_is_differentiable(capacity: int, block: int | None, tokens: int) -> None:
    knn = KNNMemory(capacity, 1, 2, block=block)
    bank = knn.init_state(2, torch.empty(0, dtype=torch.float64))
    ids = torch.randint(-1, capacity, (2, 1, tokens, 2), generator=torch.Generator().manual_seed(0))
    keys = draw(0, 2, 1, capacity, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda new: knn.gather(knn.add(bank, new, detach=False), ids)[0], (keys,), fast_mode=True
    )


def test_one_softmax_over_local_and_retrieved() -> None:
    q, keys, values = draw(0, 2, 3, 4, 5), draw(1, 2, 3, 6, 5), draw(2, 2, 3, 6, 7)
    far_k, far_v = draw(3, 2, 3, 4, 2, 5), draw(4, 2, 3, 4, 2, 7)
    allowed, found = draw(5, 2, 1, 4, 6) > 0, draw(6, 2, 3, 4, 2) > 0
    bias, allowed[..., 0] = draw(7, 3, 4, 6), True
    said = attend(q, keys, values, allowed.expand(-1, 3, -1, -1), far_k, far_v, found, 0.3, bias)
    for row, head, t in torch.cartesian_prod(*map(torch.arange, (2, 3, 4))).tolist():
        near, there = allowed[row, 0, t], found[row, head, t]
        scores = torch.cat(
            [
                0.3 * keys[row, head, near] @ q[row, head, t] + bias[head, t, near],
                0.3 * far_k[row, head, t, there] @ q[row, head, t],
            ]
        )
        expected = scores.softmax(0) @ torch.cat([values[row, head, near], far_v[row, head, t, there]])
        assert_close(said[row, head, t], expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"capacity": 10, "block": 4}, "capacity 10 is not a multiple of the block of 4 tokens"),
        ({"capacity": 0}, "capacity 0"),
        ({"neighbours": 0}, "neighbours must be at least 1, not 0"),
        ({"index": "ivf"}, "index ivf needs backend faiss"),
        ({"dtype": "float16"}, "dtype must be bfloat16, or none for the model's, not float16"),
        ({"dtype": "float32"}, "dtype must be bfloat16, or none for the model's, not float32"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KNNMemory(**{"capacity": 8, "heads": 1, "key_width": 2} | options)


# -- exact search


@pytest.mark.parametrize("at_once", [1, 60, 200, 2**24])
@pytest.mark.parametrize(("capacity", "block"), [(24, 4), (24, 24), (24, 1)])
def test_exact_search_is_the_definition(
    capacity: int, block: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is cut; small whole numbers have many ties, of which the lowest slots are taken."""
    monkeypatch.setattr(search, "MAX_SCORES", at_once)
    random = torch.Generator().manual_seed(0)
    blocks = torch.randint(-2, 3, (3, 2, capacity, 2), generator=random).float().split(block, dim=2)
    queries = torch.randint(-2, 3, (3, 2, 5, 2), generator=random).float()
    for written in ([0, 3, 24], [40, 24, 30], [0, 0, 0], [1, 2, 25]):
        for count in (1, 5, 24):
            found = search_exact(queries, blocks, torch.tensor(written), count)
            assert torch.equal(found, search_exact_reference(queries, blocks, torch.tensor(written), count))
            alive = torch.tensor(written).clamp(max=min(count, capacity))
            assert torch.equal((found >= 0).sum(-1), alive[:, None, None].expand(-1, 2, 5))


def test_a_long_banks_scores_are_never_held() -> None:
    knn = KNNMemory(2**18, 1, 2, block=2**14)
    bank = add(knn, knn.init_state(1, torch.empty(0)), 2**18)
    queries = draw(1, 1, 1, 256, 2)
    with Watch() as watch:
        knn.search(queries, bank)
    whole = 256 * 2**18 * 4
    assert watch.largest <= whole / 4


def test_search_is_in_float32_at_least() -> None:
    """Also under autocast, where a product of float32 numbers is one of bf16's."""
    knn = KNNMemory(400, 1, 8)
    bank = add(knn, knn.init_state(1, torch.empty(0)), 400)
    queries = draw(1, 1, 1, 50, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = knn.search(queries, bank)
    assert torch.equal(found, knn.search(queries.double(), bank))


# -- faiss


KINDS: tuple[Kind, ...] = ("flat", "ivf", "hnsw")
faiss_only = pytest.mark.usefixtures("faiss")


@pytest.fixture
def faiss() -> Any:
    return load_faiss()


def share(wanted: Tensor, found: Tensor) -> float:
    hits = ((wanted[..., None] == found[..., None, :]) & (wanted >= 0)[..., None]).any(-1)
    return hits.sum().item() / max(1, int((wanted >= 0).sum()))


@faiss_only
@pytest.mark.parametrize("index", KINDS)
def test_faiss_through_a_history(index: Kind) -> None:
    """Writes of any length with and without a search between, rows that begin anew or change places, and
    banks of long ago: always what the bank itself holds, never another row's, and `flat` exactly that."""
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
            queries = draw(1000 + step, 3, 2, 4, 6)
            found, wanted = knn.search(queries, bank), search_exact(queries, bank.keys, bank.length, 8)
            assert torch.equal(found >= 0, wanted >= 0)
            assert (found < bank.length[:, None, None, None]).all()
            for ids in found.flatten(0, 2):
                assert len(set(ids[ids >= 0].tolist())) == int((ids >= 0).sum())
            assert share(wanted, found) >= (1.0 if index == "flat" else 0.75)
            scores = (knn.gather(bank, found)[0] @ queries[..., None])[..., 0]
            assert (scores.masked_fill(found < 0, -1e9).diff() <= 1e-5).all()  # the nearest first


@faiss_only
def test_an_index_is_brought_up_to_date_when_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own stamp used, with the one before given what is new, with any other made anew."""
    put: list[tuple[int, int]] = []
    true_put = Flat.put

    def noted(self: Flat, first: int, keys: Tensor) -> None:
        put.append((first, len(keys)))
        true_put(self, first, keys)

    monkeypatch.setattr(Flat, "put", noted)
    knn = KNNMemory(64, 1, 4, 0, 3, 8, "faiss")
    queries = draw(9, 1, 1, 2, 4)

    def searched(bank: Bank) -> list[tuple[int, int]]:
        put.clear()
        knn.search(queries, bank)
        return list(put)

    one = add(knn, knn.init_state(1, queries), 10)
    assert put == []  # writing touches no index
    assert searched(knn.init_state(1, queries)) == []
    assert searched(one) == [(0, 10)]
    assert searched(one) == []
    two = add(knn, one, 5)
    assert searched(two) == [(10, 5)]
    assert searched(one) == [(0, 10)]  # the index went on with two
    assert searched(two) == []
    four = add(knn, add(knn, two, 1), 1)
    assert searched(four) == [(0, 17)]  # two writes without a search
    full = add(knn, four, 60)
    assert searched(full) == [(17, 60)]
    assert searched(add(knn, full, 64)) == [(77, 64)]
    assert searched(add(knn, full, 65)) == [(78, 64)]


@faiss_only
def test_flat_finds_the_same_by_any_history() -> None:
    """Bit for bit and in the same order: written piece by piece, or made at once from the bank."""
    knn, twin = (KNNMemory(96, 2, 5, 0, 7, 16, "faiss") for _ in range(2))
    bank = knn.init_state(2, torch.empty(0))
    for step in range(20):
        bank = add(knn, bank, 5 + step % 9, seed=step)
        queries = draw(step, 2, 2, 30, 5)
        assert torch.equal(knn.search(queries, bank), copy.deepcopy(twin).search(queries, bank))


@faiss_only
def test_equals_are_in_the_order_of_their_slots() -> None:
    knn = KNNMemory(12, 1, 2, 0, 12, backend="faiss")
    keys = torch.tensor([[1.0, 0], [2, 0], [1, 0], [2, 0]]).repeat(3, 1)[None, None]
    bank = knn.add(knn.init_state(1, keys), keys)
    expected = [1, 3, 5, 7, 9, 11, 0, 2, 4, 6, 8, 10]
    assert knn.search(torch.tensor([[[[1.0, 0]]]]), bank).flatten().tolist() == expected


@faiss_only
@pytest.mark.parametrize("index", KINDS)
def test_it_is_the_inner_product(index: Kind) -> None:
    """A long key far away beats a short one near by."""
    knn = KNNMemory(200, 1, 4, 0, 1, backend="faiss", index=index)
    keys = torch.nn.functional.normalize(draw(0, 1, 1, 200, 4), dim=-1)
    keys[0, 0, 123] = torch.tensor([50.0, 20, 20, 20])
    bank = knn.add(knn.init_state(1, keys), keys)
    query = torch.tensor([1.0, 0.1, 0.1, 0.1])
    assert knn.search(query.expand(1, 1, 1, 4), bank).item() == 123
    assert knn.index_cache is not None
    metric = load_faiss().METRIC_INNER_PRODUCT
    assert [kept.heads[0].index.metric_type for kept in knn.index_cache.rows.values()] == [metric]


def only_index(knn: KNNMemory) -> Any:
    assert knn.index_cache is not None
    return next(reversed(knn.index_cache.rows.values())).heads[0]


@faiss_only
def test_ivf_is_exact_until_it_can_train_and_trains_again() -> None:
    knn = KNNMemory(256, 1, 4, 0, 8, 16, "faiss", "ivf")  # 6 lists, trained from 234 keys on
    bank, queries, found = knn.init_state(1, torch.empty(0)), draw(1, 1, 1, 20, 4), []
    for step in range(40):
        bank = add(knn, bank, 16, seed=step)
        ids, wanted = knn.search(queries, bank), search_exact(queries, bank.keys, bank.length, 8)
        found.append(only_index(knn))
        assert isinstance(found[-1], Flat if bank.length < 234 else Lists)
        assert isinstance(found[-1], Lists) or torch.equal(ids, wanted)
        assert found[-1].index.ntotal == min(256, int(bank.length))
    kinds = [id(index) for index in found[14:]]
    assert len(dict.fromkeys(kinds)) == 2  # trained at 240 tokens, and again at 496
    assert found[30] is not found[29]


@faiss_only
def test_hnsw_passes_over_what_is_gone_and_is_built_anew() -> None:
    knn = KNNMemory(64, 1, 4, 0, 64, 16, "faiss", "hnsw")
    bank, queries, sizes = knn.init_state(1, torch.empty(0)), draw(1, 1, 1, 5, 4), []
    for step in range(12):
        bank = add(knn, bank, 16, seed=step)
        ids = knn.search(queries, bank)
        alive = min(64, int(bank.length))
        assert all(sorted(row.tolist()) == [-1] * (64 - alive) + list(range(alive)) for row in ids[0, 0])
        assert isinstance(only_index(knn), Graph)
        sizes.append(only_index(knn).index.ntotal)
    assert sizes == [16, 32, 48, 64, 80, 96, 112, 128, 64, 80, 96, 112]


@faiss_only
def test_a_copy_has_no_indexes_and_few_are_kept() -> None:
    knn = KNNMemory(32, 2, 4, 4, 3, backend="faiss")
    assert knn.index_cache is not None
    for step in range(5):
        knn.search(draw(1, 3, 2, 2, 4), add(knn, knn.init_state(3, torch.empty(0)), 8, seed=step))
    assert len(knn.index_cache.rows) == 6  # two batches' rows
    for other in (copy.deepcopy(knn), pickle.loads(pickle.dumps(knn))):
        assert other.index_cache is not None
        assert (len(other.index_cache.rows), other.index_cache.recent_queries) == (0, None)
        assert (other.index_cache.kind, other.index_cache.capacity) == ("flat", 32)
    assert knn.state_dict() == {}


class Stream:
    """Rows that are read segment after segment, and how many indexes the last search made anew."""

    def __init__(self, knn: KNNMemory, rows: int, made: list[int]) -> None:
        self.knn, self.made, self.steps = knn, made, 0
        self.bank = self.empty = knn.init_state(rows, torch.empty(0))

    def read(self, fresh: list[bool] | None = None) -> int:
        if fresh:
            self.bank = replace_rows(self.bank, self.empty, torch.tensor(fresh))
        self.made.clear()
        self.knn.search(draw(1, len(self.bank.length), 1, 2, 4), self.bank)
        self.bank, self.steps = add(self.knn, self.bank, 8, seed=self.steps), self.steps + 1
        return len(self.made)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every index that is made."""
    found: list[int] = []
    true_make = search.make_index

    def noted(*asked: Any) -> Any:
        found.append(len(found))
        return true_make(*asked)

    monkeypatch.setattr(search, "make_index", noted)
    return found


@faiss_only
@pytest.mark.parametrize("others", [[4], [1], [1, 4, 2]], ids=str)
@pytest.mark.parametrize("whole", [False, True], ids=["row by row", "all rows"])
def test_training_goes_on_with_its_indexes_after_a_validation(
    others: list[int], whole: bool, made: list[int]
) -> None:
    """However many documents began in it, one after another or in all its rows at once."""
    knn = KNNMemory(32, 1, 4, 0, 3, 8, "faiss")
    assert knn.index_cache is not None
    training = Stream(knn, 4, made)
    assert [training.read() for _ in range(4)] == [0, 4, 0, 0]
    for count in others:
        validation = Stream(knn.eval(), count, made)
        for step in range(12):
            validation.read([step % 3 == 0 and (whole or step // 3 % count == row) for row in range(count)])
        assert len(knn.index_cache.rows) <= 4 + 2 * max(others)
        knn.train()
        assert training.read() == 0


@faiss_only
def test_what_began_anew_in_a_row_takes_its_indexs_place(made: list[int]) -> None:
    """With nobody told what is training: two batches that are read by turns keep their indexes."""
    knn = KNNMemory(32, 1, 4, 0, 3, 8, "faiss")
    assert knn.index_cache is not None
    one, two = Stream(knn, 4, made), Stream(knn, 4, made)
    for stream in (one, two):
        stream.read()
        stream.read()
    for step in range(12):
        assert two.read([step % 4 == row for row in range(4)]) == (step > 0)  # the row that began before
        assert len(knn.index_cache.rows) <= 8
    assert one.read() == 0


@faiss_only
def test_a_row_alone_leaves_the_batch_its_indexes(made: list[int]) -> None:
    knn = KNNMemory(32, 1, 4, 0, 3, 8, "faiss")
    batch = Stream(knn, 4, made)
    batch.read()
    batch.read()
    for row in range(4):
        knn.search(draw(1, 1, 1, 2, 4), take_rows(batch.bank, torch.tensor([row])))
    assert batch.read() == 0


@faiss_only
@pytest.mark.parametrize("index", KINDS)
def test_a_checkpoint_carries_the_bank_alone(index: Kind) -> None:
    knn = KNNMemory(32, 2, 4, 4, 3, 8, "faiss", index)
    bank, queries = add(knn, knn.init_state(3, torch.empty(0)), 50), draw(1, 3, 2, 5, 4)
    found, file = knn.search(queries, bank), io.BytesIO()
    torch.save(leaves(bank), file)
    file.seek(0)
    twin = KNNMemory(32, 2, 4, 4, 3, 8, "faiss", index)
    kept = from_leaves(twin.init_state(3, torch.empty(0)), torch.load(file, weights_only=True))
    assert torch.equal(twin.search(queries, kept), found)


@faiss_only
def test_threads_search_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another: each search waits for a second one to come in, and none does."""
    knn = KNNMemory(64, 2, 4, 0, 3, 8, "faiss")
    banks = [add(knn, knn.init_state(2, torch.empty(0)), 20 + i, seed=i) for i in range(4)]
    queries, met = draw(1, 2, 2, 5, 4), threading.Barrier(2)
    true_search: Callable[..., Any] = Flat.search

    def waits(self: Flat, *asked: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):  # nobody came, now or before
            met.wait(timeout=1.0)
            pytest.fail("two searches at once")
        return true_search(self, *asked)

    monkeypatch.setattr(Flat, "search", waits)

    def reads(i: int) -> bool:
        wanted = search_exact(queries, banks[i].keys, banks[i].length, 3)
        return all(torch.equal(knn.search(queries, banks[i]), wanted) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reads, range(4))) == [True] * 4


def test_stamps_leave_torchs_random_numbers_alone() -> None:
    knn = KNNMemory(8, 1, 2)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, two = (add(knn, knn.init_state(2, torch.empty(0)), 3) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    stamps = torch.cat([one.stamp, two.stamp])
    assert len(set(stamps.tolist())) == 4
    assert (stamps > 0).all()
    assert not one.stamp_before.any()
    assert torch.equal(add(knn, one, 1).stamp_before, one.stamp)
    assert_close(contents(one), contents(two), rtol=0, atol=0)
    assert len(contents(one)) == len(leaves(one)) - 2


# -- how much is found


@faiss_only
def test_recall_is_the_share_of_the_true_neighbours() -> None:
    knn = KNNMemory(512, 2, 6, 0, 8, backend="faiss", index="ivf")
    bank = add(knn, knn.init_state(2, torch.empty(0)), 600)
    assert knn.recall(bank) is None  # nobody has asked yet
    queries = draw(5, 2, 2, 16, 6)
    knn.search(queries, bank)
    only = queries[:1].expand(2, -1, -1, -1)
    wanted = search_exact(only, bank.keys, bank.length, 8)
    for kept in knn.index_cache.rows.values() if knn.index_cache else ():
        for index in kept.heads:
            index.index.nprobe = 1
    recall = knn.recall(bank)
    assert recall == pytest.approx(share(wanted, knn.search(only, bank)))
    assert recall < 0.9
    assert knn.recall(knn.init_state(4, torch.empty(0))) is None  # nothing to find
    assert KNNMemory(8, 1, 2).recall(KNNMemory(8, 1, 2).init_state(1, torch.empty(0))) is None


@pytest.fixture(scope="module")
def trained() -> tuple[Tensor, Tensor]:
    """Queries and keys (1, heads, tokens, width) of a model that has learned a little of the standard
    library's sources, reading more of them."""
    torch.manual_seed(0)
    text = torch.tensor(list(Path(typing.__file__).read_bytes()[:60_000]))
    model = Memorizing(256, 64, 2, 32, 2, 64, capacity=2048, neighbours=32, block=64)
    optimizer, lanes, state = torch.optim.AdamW(model.parameters(), 1e-2), text[:40_960].view(8, -1), None
    for step in range(30):
        window = lanes[:, step * 128 : step * 128 + 129]
        logits, state = model(window[:, :-1], state)
        state = detach(state)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.mT, window[:, 1:]).backward()
        optimizer.step()
    (memory,), heard = model.eval().memories(), []
    memory.qkv.register_forward_hook(lambda _module, _read, said: heard.append(memory.separate(said)[:2]))
    with torch.no_grad():
        for piece in text[41_000 : 41_000 + 16_384 + 256].split(1664):
            model(piece[None])
    queries, keys = (
        torch.cat([rearrange(part, "s h t k -> 1 h (s t) k") for part in parts], dim=2)
        for parts in zip(*heard, strict=True)
    )
    return torch.nn.functional.normalize(queries, dim=-1), torch.nn.functional.normalize(keys, dim=-1)


@faiss_only
@pytest.mark.parametrize(
    ("index", "capacity"), [("flat", 4096), ("hnsw", 4096), ("ivf", 2048), ("ivf", 4096), ("ivf", 16_384)]
)
def test_faiss_finds_most_of_a_trained_models_neighbours(
    index: Kind, capacity: int, trained: tuple[Tensor, Tensor]
) -> None:
    queries, keys = trained[0][:, :, capacity : capacity + 256], trained[1][:, :, :capacity]
    knn = KNNMemory(capacity, 2, 16, 0, 32, 64, "faiss", index)
    bank = knn.add(knn.init_state(1, keys), keys)
    found = knn.search(queries, bank)
    recall = share(search_exact(queries, bank.keys, bank.length, 32), found)
    assert recall > (0.998 if index == "flat" else 0.96)  # of equal keys either may be found


@faiss_only
@pytest.mark.parametrize(("capacity", "share"), [(4096, 0.3), (16_384, 0.2), (65_536, 0.14)])
def test_an_ivf_search_reads_a_small_part(capacity: int, share: float) -> None:
    index = Lists(8, capacity).index
    assert index.nprobe <= share * index.nlist


@faiss_only
def test_ivf_reads_as_few_lists_as_find_most(trained: tuple[Tensor, Tensor]) -> None:
    """Keys of a model need many lists, far-apart ones few; few queries tune nothing."""
    random = torch.Generator().manual_seed(0)
    capacity = 4096
    queries, keys = trained[0][0, 0, capacity:], trained[1][0, 0, :capacity].contiguous()
    apart = 20 * torch.nn.functional.one_hot(torch.arange(capacity) % 16, 16).float()
    apart += torch.randn(capacity, 16, generator=random)
    probes = []
    for held, asked in ((keys, queries), (apart, apart)):
        made = Lists(16, capacity)
        untuned = made.index.nprobe
        made.put(0, held)
        made.search(asked[:31], 32)
        assert made.index.nprobe == untuned
        made.search(asked[:128].contiguous(), 32)
        probes.append(made.index.nprobe)
        bank = (held[None, None],)
        wanted = search_exact(asked[None, None, 128:256], bank, torch.tensor([capacity]), 32)
        found = made.search(asked[128:256].contiguous(), 32)[1][None, None]
        assert share(wanted, found) > 0.95
    assert probes[1] < probes[0] < list_count(capacity)


@faiss_only
def test_ivf_is_tuned_again_as_keys_are_written() -> None:
    keys = torch.randn(8192, 8, generator=torch.Generator().manual_seed(0))
    made, untuned = Lists(8, 4096), []
    for first in range(0, 8192, 256):
        made.put(first, keys[first : first + 256])
        made.search(keys[:32].contiguous(), 4)
        untuned.append(made.untuned)
    assert untuned == [256, 512, 768, 0] * 8


@faiss_only
def test_ivf_keeps_up_with_a_text_that_turns_to_other_things() -> None:
    """Key by key, all that lay far apart is replaced by keys that lie close together."""
    random = torch.Generator().manual_seed(0)
    apart = 20 * torch.nn.functional.one_hot(torch.arange(4096) % 16, 16).float()
    apart += torch.randn(4096, 16, generator=random)
    close = torch.randn(4096, 16, generator=random)
    knn = KNNMemory(4096, 1, 16, 0, 32, 256, "faiss", "ivf")
    bank = knn.add(knn.init_state(1, apart), apart[None, None])
    knn.search(apart[None, None, :256], bank)
    for first in range(0, 4096, 256):
        bank = knn.add(bank, close[None, None, first : first + 256])
        queries = torch.randn(1, 1, 256, 16, generator=random)
        found = knn.search(queries, bank)  # else the index would be made anew
        if first % 1024 == 768:
            wanted = search_exact(queries, bank.keys, bank.length, 32)
            assert share(wanted, found) > 0.9  # noise is the hardest


# -- the package


@pytest.fixture
def unloaded() -> Any:
    load_faiss.cache_clear()
    yield
    load_faiss.cache_clear()


@pytest.mark.usefixtures("unloaded")
def test_without_faiss_it_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", missing)
    KNNMemory(8, 1, 2)  # torch needs none
    with pytest.raises(
        UserError, match=r"expected the package faiss-cpu: pip install faiss-cpu .* No module"
    ):
        KNNMemory(8, 1, 2, backend="faiss")


@pytest.mark.usefixtures("unloaded")
def test_two_packages_of_faiss_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("faiss-cpu", "faiss-gpu"):
            return "1.15.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    says = "found faiss-cpu and faiss-gpu, which share a folder: pip uninstall -y faiss-cpu faiss-gpu, then"
    with pytest.raises(UserError, match=says):
        KNNMemory(8, 1, 2, backend="faiss")


@pytest.mark.usefixtures("unloaded")
def test_flat_on_a_gpu_needs_faiss_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    package = type("faiss", (), {"IndexFlatIP": lambda width: None})
    monkeypatch.setattr(faiss_index, "load_faiss", lambda: package)
    with pytest.raises(UserError, match="expected faiss-gpu for a bank on cuda:0, found faiss-cpu"):
        Flat(4, 8, torch.device("cuda:0"))


@pytest.mark.gpu
@faiss_only
@pytest.mark.parametrize("index", KINDS)
def test_on_a_gpu(index: Kind) -> None:
    """Needs faiss-gpu."""
    knn = KNNMemory(96, 2, 5, 0, 7, 16, "faiss", index)
    bank = knn.init_state(2, torch.empty(0, device="cuda"))
    for step in range(20):
        bank = knn.add(bank, draw(step, 2, 2, 5 + step % 9, 5).cuda())
        queries = draw(step, 2, 2, 30, 5).cuda()
        found, wanted = knn.search(queries, bank), search_exact(queries, bank.keys, bank.length, 7)
        assert found.is_cuda
        assert share(wanted, found) >= (1.0 if index == "flat" else 0.75)
