"""The bank of Landmark attention: its blocks, what a write makes anew, and what is gathered."""

import pytest
import torch
from torch import Tensor

from tests.memory.retrieval.landmarks import (
    BLOCK,
    HEADS,
    SEGMENT,
    WIDTH,
    make_layer,
    random_state,
    random_stream,
)
from tests.memory.watch import Watch
from zoo.memory.retrieval.landmark_attention import (
    LandmarkAttention,
)
from zoo.memory.retrieval.landmark_bank import BankState, append, gather_blocks, local_context
from zoo.state import from_leaves, leaves, nbytes, tree_map


@torch.no_grad()
def test_the_bank_stores_the_last_blocks_without_positions() -> None:
    layer = make_layer(blocks=4)
    x = random_stream(9 + 9 + 4 + 6)
    state = layer.init_state(2)
    for piece in x.split([9, 9, 4, 6], dim=1):
        _, state = layer(piece, state)
    _, k, v = layer.project(x)
    for closed, open_block, stream in (
        (state.keys, state.open_keys, k),
        (state.values, state.open_values, v),
    ):
        torch.testing.assert_close(closed, stream[:, :, :27].unflatten(2, (9, BLOCK))[:, :, -4:])
        torch.testing.assert_close(open_block[:, :, :1], stream[:, :, 27:])
        assert not open_block[:, :, 1:].any()
    assert state.length.tolist() == [28, 28]


def test_an_empty_bank_takes_no_memory() -> None:
    state = make_layer(blocks=1000).init_state(64)
    assert nbytes(state) > 2 * 64 * 1000 * BLOCK * WIDTH * 8
    assert sum(storages(state).values()) < 1000


def storages(state: BankState) -> dict[int, int]:
    """Address and bytes of all storage of a state."""
    tensors = [leaf.untyped_storage() for leaf in leaves(state)]
    return {storage.data_ptr(): storage.nbytes() for storage in tensors}


@torch.no_grad()
def new_bytes(blocks: int) -> tuple[int, int, int]:
    """With a full bank: bytes that the state after a segment doesn't share with the one before it, bytes of
    storage that a short segment allocates, and bytes of the state."""
    layer = LandmarkAttention(WIDTH, HEADS, segment_len=34, block_len=17, num_blocks=blocks, topk=2)
    layer.double().eval()
    state, x = random_state(layer, [17 * blocks] * 2), random_stream(2)
    with Watch() as watch:
        _, after = layer(x, state)
    old, new = storages(state), storages(layer(random_stream(34), state)[1])
    assert storages(after).keys() - old.keys() == {leaf.untyped_storage().data_ptr() for leaf in after[2:]}
    return sum(new[address] for address in new.keys() - old.keys()), watch.nbytes, nbytes(state)


def test_a_segment_costs_what_it_reads_and_writes_in_any_bank() -> None:
    """Only the search grows: by the landmarks and their scores, which are less than the bank."""
    (few, short, small), (many, long, large) = (new_bytes(blocks) for blocks in (32, 512))
    assert few == many
    assert few < 2 * 2 * 2 * 34 * WIDTH * 8  # keys and values of two rows' two blocks, and the open ones
    assert long - short < (large - small) / 2


@torch.no_grad()
def test_a_new_state_shares_all_ring_blocks_but_the_written_ones() -> None:
    layer = make_layer(blocks=12)
    state = random_state(layer, [12 * BLOCK] * 2)
    for time, written in ((2, []), (3, [0]), (9, [0]), (13, [0, 1]), (30, [0, 1, 2, 3])):
        _, k, v = layer.project(random_stream(time))
        after = append(state, local_context(state, k, v), time)
        for old, new in ((state.closed_keys, after.closed_keys), (state.closed_values, after.closed_values)):
            changed = [index for index, (x, y) in enumerate(zip(old, new, strict=True)) if x is not y]
            assert changed == written
    layer(random_stream(SEGMENT), tree_map(Tensor.clone, state))


@torch.no_grad()
def test_each_selected_block_is_gathered_once() -> None:
    layer = make_layer(blocks=12)
    state = random_state(layer, [14 * BLOCK + 1, 40 * BLOCK])
    ids = torch.randint(-1, 12, (2, HEADS, 30, 4), generator=torch.Generator().manual_seed(0))
    keys, values, indices = gather_blocks(state, ids)
    rows, heads = torch.arange(2).view(2, 1, 1, 1), torch.arange(HEADS).view(HEADS, 1, 1)
    for selected, stored in ((keys, state.keys), (values, state.values)):
        assert torch.equal(selected[indices][ids >= 0], stored[rows, heads, ids.clamp(min=0)][ids >= 0])
        assert len(selected) == 2 * HEADS * 12 == len(selected.unique(dim=0))
    keys, _, indices = gather_blocks(state, ids[:, :, :1, :1])
    assert len(keys) == indices.numel() == 2 * HEADS


def test_a_state_of_another_bank_is_refused() -> None:
    """Such as that of earlier versions, whose bank was one tensor."""
    state = make_layer(blocks=12).init_state(2)
    with pytest.raises(ValueError, match="expected 11 tensors for this state, found 5"):
        from_leaves(state, [state.keys, state.values, *leaves(state)[-3:]])
