"""Landmark attention: the softmax by blocks against its definition, the choice of blocks, the bank, the rows.

Reading against loops is in tests/golden/test_landmark.py.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.memory.watch import Watch
from zoo.memory.retrieval import landmark_attention
from zoo.memory.retrieval.landmark_attention import (
    LandmarkAttention,
    grouped_softmax,
    grouped_softmax_reference,
)
from zoo.memory.retrieval.landmark_bank import BankState, append, gather_blocks, local_context
from zoo.state import from_leaves, leaves, nbytes, replace_rows, reset_rows, take_rows, tree_map

WIDTH, HEADS, BLOCK, SEGMENT = 8, 2, 3, 9


def made(blocks: int = 7, topk: int = 2, **more: Any) -> LandmarkAttention:
    torch.manual_seed(0)
    layer = LandmarkAttention(WIDTH, HEADS, segment=SEGMENT, block=BLOCK, blocks=blocks, topk=topk, **more)
    return layer.double().eval()


def text(slots: int, rows: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, slots, WIDTH, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize(("begin", "time", "spare"), [(0, 12, 0), (0, 7, 5), (5, 6, 1), (11, 1, 4)])
def test_softmax_by_blocks_is_the_definition(block: int, begin: int, time: int, spare: int) -> None:
    """The queries stand behind `begin` keys; `spare` places behind them are empty."""
    end, blocks = begin + time, -(-(begin + time + spare) // block)
    line = blocks * block
    scores = 5 * torch.randn(2, 3, time, line, dtype=torch.float64)
    weigh = torch.randn(2, 3, time, line, dtype=torch.float64)
    landmarks = torch.arange(end) % block == block - 1
    asked = scores[..., :end].clone().requires_grad_()
    expected, _ = grouped_softmax_reference(asked, landmarks)
    (slope,) = torch.autograd.grad((expected * weigh[..., :end]).sum(), [asked])

    scores.requires_grad_()
    places = begin + torch.arange(time)
    visible = (torch.arange(line) <= places[:, None]).unflatten(-1, (blocks, block))
    found = grouped_softmax(scores.unflatten(-1, (blocks, block)), visible, places // block).flatten(-2)
    (grad,) = torch.autograd.grad((found * weigh).sum(), [scores])
    for one, two in ((found, expected), (grad, slope)):
        torch.testing.assert_close(one[..., :end], two)
        assert not one[..., end:].any()
    assert not found[..., :end][..., landmarks].any()
    whole = found.sum(-1)
    if block > 1:
        torch.testing.assert_close(whole, torch.ones_like(whole))


def test_softmax_of_nothing_is_nothing_and_has_a_gradient() -> None:
    """A window that begins with a landmark; huge scores that one softmax over all would lose."""
    scores = torch.tensor([[-800.0, 3.0, -801.0, 900.0, 800.0]], dtype=torch.float64).expand(5, 5).clone()
    scores.requires_grad_()
    landmarks = torch.tensor([True, False, False, True, False])
    weights, _ = grouped_softmax_reference(scores, landmarks)
    assert not weights[0].any()
    assert not weights[:, landmarks].any()
    assert weights[4, 1].item() == pytest.approx(1)
    (grad,) = torch.autograd.grad(weights.sum(), [scores])
    assert grad.isfinite().all()


def bank(layer: LandmarkAttention, read: list[int], seed: int = 2) -> BankState:
    """A state full of noise, of which `read` tells how much is real."""
    generator = torch.Generator().manual_seed(seed)
    state = tree_map(
        lambda leaf: torch.randn(leaf.shape, generator=generator, dtype=torch.float64),
        layer.init_state(len(read))[:4],
    )
    return BankState(*state, torch.tensor(read))


@torch.no_grad()
def test_of_equal_blocks_the_newest_are_chosen() -> None:
    layer = made(blocks=8, topk=3)
    state = bank(layer, [8 * BLOCK, 20 * BLOCK + 1, 2 * BLOCK + 2, 0])
    alike = state._replace(closed_keys=tree_map(torch.zeros_like, state.closed_keys))
    q = torch.randn(4, HEADS, 5, WIDTH // HEADS, dtype=torch.float64)
    for selection in ("token_and_head", "token", "head"):
        layer.selection = selection
        chosen = layer.choose_blocks(q, alike)
        assert chosen.shape == (4, HEADS, 5, 3)
        for row, expected in enumerate([[5, 6, 7], [5, 6, 7], [-1, 6, 7], [-1, -1, -1]]):
            assert (chosen[row] == torch.tensor(expected)).all()


@torch.no_grad()
def test_the_bank_of_old_blocks_is_searched_by_their_landmarks() -> None:
    """Whatever else a block holds; and a bfloat16 query finds the block that is best by a hair."""
    layer = made(blocks=40, topk=1)
    state = bank(layer, [40 * BLOCK])
    q = torch.randn(1, HEADS, 6, WIDTH // HEADS, dtype=torch.float64)
    other = tree_map(
        lambda piece: torch.cat([piece[..., :-1, :] + 1, piece[..., -1:, :]], 3), state.closed_keys
    )
    assert torch.equal(
        layer.choose_blocks(q, state._replace(closed_keys=other)), layer.choose_blocks(q, state)
    )

    near = torch.ones(1, HEADS, 40, BLOCK, WIDTH // HEADS)
    near[:, :, 7] += 1e-4
    layer.float()
    layer.rope_base = 1e30  # hardly turned: all scores nearly alike
    state = bank(layer, [120])._replace(closed_keys=near.split(1, dim=2))
    ones = torch.ones(1, HEADS, 1, WIDTH // HEADS)
    with torch.autocast("cpu", torch.bfloat16):
        said = layer.choose_blocks(ones.bfloat16(), state)
    old = layer.choose_blocks(ones, state)
    assert torch.equal(said, old)


@torch.no_grad()
def test_chosen_for_each_query_each_head_or_each_token() -> None:
    layer, q = made(blocks=30), torch.randn(2, HEADS, 9, WIDTH // HEADS, dtype=torch.float64)
    state = bank(layer, [90, 90])
    each_one = layer.choose_blocks(q, state)
    assert not (each_one == each_one[:, :1]).all()
    assert not (each_one == each_one[:, :, :1]).all()
    layer.selection = "token"
    chosen = layer.choose_blocks(q, state)
    assert (chosen == chosen[:, :1]).all()
    assert not (chosen == chosen[:, :, :1]).all()
    layer.selection = "head"
    chosen = layer.choose_blocks(q, state)
    assert (chosen == chosen[:, :, :1]).all()
    assert not (chosen == chosen[:, :1]).all()


@torch.no_grad()
def test_only_the_choice_by_head_looks_ahead() -> None:
    for selection in ("token_and_head", "token", "head"):
        layer = made(blocks=30, topk=1, selection=selection)
        state, x = bank(layer, [90, 90]), text(SEGMENT)
        changed = x.clone()
        changed[:, -1] = 40 * changed[:, -2]
        before, after = (layer(some, state)[0][:, :-1] for some in (x, changed))
        assert torch.equal(before, after) == (selection != "head")


@pytest.mark.parametrize("pieces", [1, 30, 10**6])
@torch.no_grad()
def test_queries_are_read_in_pieces(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = made(), text(SEGMENT)
    state = bank(layer, [40, 5])
    expected, _ = layer(x, state)
    monkeypatch.setattr(landmark_attention, "MAX_GATHERED", pieces * HEADS * BLOCK)
    torch.testing.assert_close(layer(x, state)[0], expected)


@pytest.mark.parametrize("blocks", [0, 1, 4, 50])
@pytest.mark.parametrize("begun", [0, 1, 2])
def test_many_segments_at_once_are_one_after_another(blocks: int, begun: int) -> None:
    """Gradients and the state included; `begun` slots of a block are open."""
    layer = made(blocks=blocks)
    start = (
        tree_map(Tensor.detach, layer(text(begun), layer.init_state(2))[1]) if begun else layer.init_state(2)
    )
    x, results = text(3 * SEGMENT, seed=3), []
    for pieces in (1, 3):
        given, state, said = x.clone().requires_grad_(), start, []
        for piece in given.chunk(pieces, dim=1):
            y, state = layer(piece, state)
            said.append(y)
        grads = torch.autograd.grad(torch.cat(said, dim=1).square().sum(), [given, *layer.parameters()])
        results.append([torch.cat(said, dim=1), *leaves(state), *grads])
    torch.testing.assert_close(results[0], results[1])
    assert results[0][-1].any()


@torch.no_grad()
def test_rows_stand_where_they_stand() -> None:
    """Blocks open at different places, banks filled differently: each row says what it says alone."""
    layer = made(topk=3)
    states = [layer.init_state(1)]
    for length in (4, 9, 2, 8, 9):
        states.append(layer(text(length, rows=1, seed=length), states[-1])[1])
    together = tree_map(lambda *leaf: torch.cat(leaf), states[0], *states[1:])
    for time in (1, 2, 7, 9):
        x = text(time, rows=len(states), seed=time)
        y, after = layer(x, together)
        for row, state in enumerate(states):
            alone, after_alone = layer(x[row : row + 1], state)
            torch.testing.assert_close(y[row : row + 1], alone)
            found = take_rows(after, torch.tensor([row]))
            torch.testing.assert_close(leaves(found), leaves(after_alone))
    fresh = torch.tensor([False, True, False, True, False, False])
    y, _ = layer(x, replace_rows(together, layer.init_state(6), fresh))
    torch.testing.assert_close(y[fresh], layer(x[fresh], layer.init_state(2))[0])
    huge = together._replace(closed_values=tree_map(lambda piece: piece + torch.inf, together.closed_values))
    restarted = reset_rows(huge, layer.init_state(6), fresh)
    assert restarted.closed_values is huge.closed_values  # what a row has not read isn't cleared, nor read
    torch.testing.assert_close(layer(x, restarted)[0][fresh], y[fresh])


@torch.no_grad()
def test_the_bank_holds_the_last_blocks_without_positions() -> None:
    layer = made(blocks=4)
    x = text(9 + 9 + 4 + 6)
    state = layer.init_state(2)
    for piece in x.split([9, 9, 4, 6], dim=1):
        _, state = layer(piece, state)
    _, k, v = layer.project(x)
    kept = slice(9 - 4, 9)
    for found, still_open, line in (
        (state.keys, state.open_keys, k),
        (state.values, state.open_values, v),
    ):
        torch.testing.assert_close(found, line[:, :, :27].unflatten(2, (9, BLOCK))[:, :, kept])
        torch.testing.assert_close(still_open[:, :, :1], line[:, :, 27:])
        assert not still_open[:, :, 1:].any()
    assert state.length.tolist() == [28, 28]


def test_nothing_written_has_a_gradient() -> None:
    layer = made()
    x = text(2 * SEGMENT + 1).requires_grad_()
    y, state = layer(x, layer.init_state(2))
    assert not any(leaf.requires_grad for leaf in leaves(state))
    (grad,) = torch.autograd.grad(y[:, SEGMENT:].sum(), [x])
    assert not grad[:, :SEGMENT].any()


def test_in_train_mode_segments_are_texts_of_their_own() -> None:
    layer = made().train()
    x, state = text(3 * SEGMENT), bank(layer, [40, 5])
    y, after = layer(x, state)
    assert after is state
    for piece, said in zip(x.split(SEGMENT, dim=1), y.split(SEGMENT, dim=1), strict=True):
        torch.testing.assert_close(layer(piece, layer.init_state(2))[0], said)
        torch.testing.assert_close(layer.eval()(piece, layer.init_state(2))[0], said)
        layer.train()


def test_the_first_places_of_a_block_may_be_missing() -> None:
    """A window that begins inside a block: as if nothing had been before it."""
    layer, x = made(), text(7)
    here = torch.tensor([2, 1])
    y = layer.attend_alone(x, here)
    q, k, v = layer.project(x)
    places = torch.arange(7)
    q, k = layer.turn(q, places), layer.turn(k, places)
    landmarks = (here[:, None] + places) % BLOCK == BLOCK - 1
    weights, _ = grouped_softmax_reference(q @ k.mT / 2, landmarks[:, None])
    torch.testing.assert_close(y, layer.out((weights @ v).transpose(1, 2).flatten(2)))


def test_an_empty_bank_takes_no_memory() -> None:
    state = made(blocks=1000).init_state(64)
    assert nbytes(state) > 2 * 64 * 1000 * BLOCK * WIDTH * 8
    assert sum(storages(state).values()) < 1000


def storages(state: BankState) -> dict[int, int]:
    """Address and bytes of all storage that a state holds."""
    held = [leaf.untyped_storage() for leaf in leaves(state)]
    return {storage.data_ptr(): storage.nbytes() for storage in held}


@torch.no_grad()
def new_bytes(blocks: int) -> tuple[int, int, int]:
    """Behind a full bank: bytes that the state after a segment doesn't share with the one before it, bytes of
    all that a short segment computes, and bytes of the state."""
    layer = LandmarkAttention(WIDTH, HEADS, segment=34, block=17, blocks=blocks, topk=2).double().eval()
    state, x = bank(layer, [17 * blocks] * 2), text(2)
    with Watch() as watch:
        _, after = layer(x, state)
    _, whole = layer(text(34), state)
    old, new = storages(state), storages(whole)
    assert storages(after).keys() - old.keys() == {leaf.untyped_storage().data_ptr() for leaf in after[2:]}
    return sum(new[at] for at in new.keys() - old.keys()), watch.nbytes, nbytes(state)


def test_a_segment_costs_what_it_reads_and_writes_in_any_bank() -> None:
    """Only the search grows: by the landmarks and their scores, which are less than the bank."""
    (few, short, small), (many, long, large) = (new_bytes(blocks) for blocks in (32, 512))
    assert few == many
    assert few < 2 * 2 * 2 * 34 * WIDTH * 8  # keys and values of two rows' two blocks, and the open ones
    assert long - short < (large - small) / 2


@torch.no_grad()
def test_a_new_state_shares_all_pieces_but_those_written() -> None:
    layer = made(blocks=12)
    state = bank(layer, [12 * BLOCK] * 2)
    for time, written in ((2, []), (3, [0]), (9, [0]), (13, [0, 1]), (30, [0, 1, 2, 3])):
        _, k, v = layer.project(text(time))
        after = append(state, local_context(state, k, v), time)
        for old, new in ((state.closed_keys, after.closed_keys), (state.closed_values, after.closed_values)):
            apart = [place for place, (x, y) in enumerate(zip(old, new, strict=True)) if x is not y]
            assert apart == written
    layer(text(SEGMENT), tree_map(Tensor.clone, state))


@torch.no_grad()
def test_what_is_gathered_is_each_block_once() -> None:
    layer = made(blocks=12)
    state = bank(layer, [14 * BLOCK + 1, 40 * BLOCK])
    ids = torch.randint(-1, 12, (2, HEADS, 30, 4), generator=torch.Generator().manual_seed(0))
    keys, values, which = gather_blocks(state, ids)
    rows, heads = torch.arange(2).view(2, 1, 1, 1), torch.arange(HEADS).view(HEADS, 1, 1)
    for found, kept in ((keys, state.keys), (values, state.values)):
        assert torch.equal(found[which][ids >= 0], kept[rows, heads, ids.clamp(min=0)][ids >= 0])
        assert len(found) == 2 * HEADS * 12 == len(found.unique(dim=0))
    keys, _, which = gather_blocks(state, ids[:, :, :1, :1])
    assert len(keys) == which.numel() == 2 * HEADS


@torch.no_grad()
def test_rows_need_not_be_there() -> None:
    layer = made()
    for mode in (True, False):
        layer.train(mode)
        y, state = layer(text(2 * SEGMENT, rows=0), layer.init_state(0))
        assert y.shape == (0, 2 * SEGMENT, WIDTH)
        assert state.length.shape == (0,)


def test_a_state_of_another_bank_is_refused() -> None:
    """Of the bank that was one tensor, too."""
    state = made(blocks=12).init_state(2)
    with pytest.raises(ValueError, match="expected 11 tensors for this state, found 5"):
        from_leaves(state, [state.keys, state.values, *leaves(state)[-3:]])
