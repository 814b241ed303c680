"""The kNN bank against lists of tokens: what a write stores and makes anew, and what is gathered."""

import copy
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.memory.retrieval.banks import add, faiss_only, overlap, randn
from tests.memory.watch import Watch
from zoo.memory.retrieval.bank import KNNMemory, attend
from zoo.memory.retrieval.search import search_exact, search_exact_reference
from zoo.state import contents, leaves, replace_rows


@pytest.mark.parametrize(("capacity", "block_size"), [(12, None), (12, 4), (12, 1), (6, 3), (5, 5)])
def test_a_bank_stores_each_rows_last_tokens(capacity: int, block_size: int | None) -> None:
    """Token t of a row is in slot t % capacity; rows have stored different numbers of tokens."""
    knn = KNNMemory(capacity, 2, 3, 4, block_size=block_size)
    bank, history = knn.init_state(3, torch.empty(0)), [[], [], []]  # type: ignore[var-annotated]
    for step, time in enumerate((4, 1, 7, 0, 12, 3, 30, 5)):
        if step in (2, 5):  # fresh rows
            fresh = torch.tensor([step == 2, False, True])
            bank = replace_rows(bank, knn.init_state(3, torch.empty(0)), fresh)
            history = [[] if new else old for new, old in zip(fresh.tolist(), history, strict=True)]
        before = copy.deepcopy(bank)
        keys, values = randn(step, 3, 2, time, 3), randn(100 + step, 3, 2, time, 4)
        after = knn.add(bank, keys, values)
        assert_close(leaves(bank), leaves(before), rtol=0, atol=0)  # nothing is changed in place
        bank = after
        for row, tokens in enumerate(history):
            tokens += [(keys[row, :, t], values[row, :, t]) for t in range(time)]
            assert bank.length[row] == len(tokens)
            for t in range(max(0, len(tokens) - capacity), len(tokens)):
                stored = [torch.cat(blocks, dim=2)[row, :, t % capacity] for blocks in bank[:2]]
                assert_close(stored, list(tokens[t]), rtol=0, atol=0)


def test_a_bank_may_have_no_values() -> None:
    knn = KNNMemory(4, 1, 3)
    bank = add(knn, knn.init_state(2, torch.empty(0)), 3)
    assert bank.values == ()
    keys, values = knn.gather(bank, torch.tensor([[[[0, -1]]], [[[2, 1]]]]))
    assert values is None
    assert_close(keys[0, 0, 0], torch.stack([bank.keys[0][0, 0, 0], torch.zeros(3)]))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_dtype_is_the_models_or_bfloat16(dtype: Any) -> None:
    knn = KNNMemory(8, 2, 3, 3, 4, dtype=dtype)
    bank = add(knn, knn.init_state(2, torch.empty(0, dtype=torch.float64)), 6)
    expected = torch.float64 if dtype is None else torch.bfloat16
    assert {block.dtype for block in (*bank.keys, *bank.values)} == {expected}
    queries = randn(5, 2, 2, 3, 3)
    assert_close(knn.search(queries, bank), search_exact_reference(queries, bank.keys, bank.length, 4))


def test_stored_tokens_have_a_graph_only_without_detach() -> None:
    knn = KNNMemory(4, 1, 2)
    keys = randn(0, 1, 1, 3, 2).requires_grad_()
    empty = knn.init_state(1, keys.detach())
    assert not knn.add(empty, keys).keys[0].requires_grad
    knn.add(empty, keys, detach=False).keys[0].sum().backward()
    assert_close(keys.grad, torch.ones_like(keys))


def written_bytes(capacity: int) -> int:
    knn = KNNMemory(capacity, 2, 8, 8, block_size=16)
    bank = add(knn, knn.init_state(2, torch.empty(0)), 16)
    keys, values = randn(2, 2, 2, 16, 8), randn(3, 2, 2, 16, 8)
    with Watch() as watch:
        knn.add(bank, keys, values)
    return watch.nbytes


def test_writing_costs_the_same_in_any_bank() -> None:
    assert written_bytes(64) == written_bytes(4096)
    assert written_bytes(64) < 6 * 2 * (2 * 2 * 16 * 8 * 4)  # a few times the two written blocks


def test_a_new_bank_shares_all_blocks_but_those_written() -> None:
    knn = KNNMemory(64, 2, 8, 8, block_size=16)
    bank = add(knn, knn.init_state(2, torch.empty(0)), 64)
    after = add(knn, bank, 16)
    for old, new in zip(bank[:2], after[:2], strict=True):
        assert [x is y for x, y in zip(old, new, strict=True)] == [False, True, True, True]
    after = add(knn, add(knn, bank, 8), 16)  # across an edge: two blocks are written
    assert [x is y for x, y in zip(bank.keys, after.keys, strict=True)] == [False, False, True, True]


@pytest.mark.parametrize("tokens", [1, 40])  # fewer reads than the bank has slots, and more
def test_an_entry_is_gathered_by_its_slot(tokens: int) -> None:
    knn = KNNMemory(12, 2, 3, 4, block_size=4)
    bank = add(knn, knn.init_state(3, torch.empty(0)), 12)
    slots = torch.randint(-1, 12, (3, 2, tokens, 5), generator=torch.Generator().manual_seed(0))
    for gathered, blocks in zip(knn.gather(bank, slots), bank[:2], strict=True):
        assert gathered is not None
        ring = torch.cat(blocks, dim=2)
        for row, head, token, rank in torch.cartesian_prod(*map(torch.arange, slots.shape)).tolist():
            slot = int(slots[row, head, token, rank])
            expected = torch.zeros(gathered.shape[-1]) if slot < 0 else ring[row, head, slot]
            assert torch.equal(gathered[row, head, token, rank], expected)


def gathered_bytes(capacity: int) -> int:
    knn = KNNMemory(capacity, 2, 8, 8, block_size=16)
    bank = add(knn, knn.init_state(2, torch.empty(0)), 16)
    slots = torch.randint(-1, capacity, (2, 2, 16, 32), generator=torch.Generator().manual_seed(0))
    with Watch() as watch:
        knn.gather(bank, slots)
    return watch.nbytes


def test_gathering_costs_the_same_from_any_bank() -> None:
    """The bank isn't copied, though 512 slots are read in each row and head; only counts of blocks grow."""
    assert gathered_bytes(4096) < 1.1 * gathered_bytes(256)


@pytest.mark.parametrize(("capacity", "block_size", "tokens"), [(12, 4, 1), (12, 4, 40), (4, None, 2)])
def test_gathering_is_differentiable(capacity: int, block_size: int | None, tokens: int) -> None:
    knn = KNNMemory(capacity, 1, 2, block_size=block_size)
    bank = knn.init_state(2, torch.empty(0, dtype=torch.float64))
    slots = torch.randint(-1, capacity, (2, 1, tokens, 2), generator=torch.Generator().manual_seed(0))
    keys = randn(0, 2, 1, capacity, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda new: knn.gather(knn.add(bank, new, detach=False), slots)[0], (keys,), fast_mode=True
    )


def test_one_softmax_over_local_and_retrieved() -> None:
    q, keys, values = randn(0, 2, 3, 4, 5), randn(1, 2, 3, 6, 5), randn(2, 2, 3, 6, 7)
    retrieved = randn(3, 2, 3, 4, 2, 5), randn(4, 2, 3, 4, 2, 7)
    mask, retrieved_mask = randn(5, 2, 1, 4, 6) > 0, randn(6, 2, 3, 4, 2) > 0
    bias, mask[..., 0] = randn(7, 3, 4, 6), True
    y = attend(q, keys, values, mask.expand(-1, 3, -1, -1), *retrieved, retrieved_mask, 0.3, bias)
    for row, head, t in torch.cartesian_prod(*map(torch.arange, (2, 3, 4))).tolist():
        local, valid = mask[row, 0, t], retrieved_mask[row, head, t]
        retrieved_keys, retrieved_values = (part[row, head, t, valid] for part in retrieved)
        scores = torch.cat(
            [
                0.3 * keys[row, head, local] @ q[row, head, t] + bias[head, t, local],
                0.3 * retrieved_keys @ q[row, head, t],
            ]
        )
        expected = scores.softmax(0) @ torch.cat([values[row, head, local], retrieved_values])
        assert_close(y[row, head, t], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 10, "block_size": 4}, "capacity 10 is not a multiple of the block of 4 tokens"),
        ({"capacity": 0}, "capacity 0"),
        ({"neighbours": 0}, "neighbours must be at least 1, not 0"),
        ({"index": "ivf"}, "index ivf needs backend faiss"),
        ({"dtype": "float16"}, "dtype must be bfloat16, or none for the model's, not float16"),
        ({"target_recall": 0.0}, "target_recall must be above 0 and at most 1, not 0.0"),
        ({"target_recall": 1.1}, "target_recall must be above 0 and at most 1, not 1.1"),
        ({"dtype": "float32"}, "dtype must be bfloat16, or none for the model's, not float32"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KNNMemory(**{"capacity": 8, "heads": 1, "key_width": 2} | options)


def test_stamps_leave_torchs_random_numbers_alone() -> None:
    knn = KNNMemory(8, 1, 2)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    bank, twin = (add(knn, knn.init_state(2, torch.empty(0)), 3) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    stamps = torch.cat([bank.stamp, twin.stamp])
    assert len(set(stamps.tolist())) == 4
    assert (stamps > 0).all()
    assert not bank.stamp_before.any()
    assert torch.equal(add(knn, bank, 1).stamp_before, bank.stamp)
    assert_close(contents(bank), contents(twin), rtol=0, atol=0)
    assert len(contents(bank)) == len(leaves(bank)) - 2


@faiss_only
def test_recall_is_the_share_of_the_true_neighbours() -> None:
    knn = KNNMemory(512, 2, 6, 0, 8, backend="faiss", index="ivf")
    bank = add(knn, knn.init_state(2, torch.empty(0)), 600)
    assert knn.index_recall(bank) is None  # before the first search
    queries = randn(6, 2, 2, 16, 6)  # without scores that tie within SCORE_RTOL
    knn.search(queries, bank)
    recent = queries[:1].expand(2, -1, -1, -1)
    expected = search_exact(recent, bank.keys, bank.length, 8)
    for indexes in knn.index_cache.rows.values() if knn.index_cache else ():
        for index in indexes.heads:
            index.index.nprobe = 1
    recall = knn.index_recall(bank)
    assert recall == pytest.approx(overlap(expected, knn.search(recent, bank)))
    assert recall < 0.9
    assert knn.index_recall(knn.init_state(4, torch.empty(0))) is None  # an empty bank
    assert KNNMemory(8, 1, 2).index_recall(KNNMemory(8, 1, 2).init_state(1, torch.empty(0))) is None
