"""Landmark attention: the grouped softmax against its definition, the choice of blocks, segments and rows.

Reading against loops is in tests/golden/test_landmark.py.
"""

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
from zoo.memory.retrieval import landmark_attention
from zoo.memory.retrieval.landmark_attention import (
    grouped_softmax,
    grouped_softmax_loop,
)
from zoo.state import leaves, replace_rows, reset_rows, take_rows, tree_map


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize(("begin", "time", "padding"), [(0, 12, 0), (0, 7, 5), (5, 6, 1), (11, 1, 4)])
def test_the_grouped_softmax_is_its_definition(block: int, begin: int, time: int, padding: int) -> None:
    """The queries follow `begin` keys; `padding` positions after them are empty."""
    end, blocks = begin + time, -(-(begin + time + padding) // block)
    keys = blocks * block
    scores = 5 * torch.randn(2, 3, time, keys, dtype=torch.float64)
    cotangent = torch.randn(2, 3, time, keys, dtype=torch.float64)
    landmarks = torch.arange(end) % block == block - 1
    valid_scores = scores[..., :end].clone().requires_grad_()
    expected, _ = grouped_softmax_loop(valid_scores, landmarks)
    (expected_grad,) = torch.autograd.grad((expected * cotangent[..., :end]).sum(), [valid_scores])

    scores.requires_grad_()
    positions = begin + torch.arange(time)
    mask = (torch.arange(keys) <= positions[:, None]).unflatten(-1, (blocks, block))
    weights = grouped_softmax(scores.unflatten(-1, (blocks, block)), mask, positions // block).flatten(-2)
    (grad,) = torch.autograd.grad((weights * cotangent).sum(), [scores])
    for result, reference in ((weights, expected), (grad, expected_grad)):
        torch.testing.assert_close(result[..., :end], reference)
        assert not result[..., end:].any()
    assert not weights[..., :end][..., landmarks].any()
    if block > 1:
        total = weights.sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))


def test_the_softmax_of_an_empty_mask_is_zero_and_has_a_gradient() -> None:
    """A window that starts with a landmark; large scores that a single softmax over all would lose."""
    scores = torch.tensor([[-800.0, 3.0, -801.0, 900.0, 800.0]], dtype=torch.float64).expand(5, 5).clone()
    scores.requires_grad_()
    landmarks = torch.tensor([True, False, False, True, False])
    weights, _ = grouped_softmax_loop(scores, landmarks)
    assert not weights[0].any()
    assert not weights[:, landmarks].any()
    assert weights[4, 1].item() == pytest.approx(1)
    (grad,) = torch.autograd.grad(weights.sum(), [scores])
    assert grad.isfinite().all()


@torch.no_grad()
def test_of_equal_scores_the_newest_blocks_are_chosen() -> None:
    layer = make_layer(blocks=8, topk=3)
    state = random_state(layer, [8 * BLOCK, 20 * BLOCK + 1, 2 * BLOCK + 2, 0])
    tied = state._replace(closed_keys=tree_map(torch.zeros_like, state.closed_keys))
    q = torch.randn(4, HEADS, 5, WIDTH // HEADS, dtype=torch.float64)
    for selection in ("token_and_head", "token", "head"):
        layer.selection = selection
        chosen = layer.choose_blocks(q, tied)
        assert chosen.shape == (4, HEADS, 5, 3)
        for row, expected in enumerate([[5, 6, 7], [5, 6, 7], [-1, 6, 7], [-1, -1, -1]]):
            assert (chosen[row] == torch.tensor(expected)).all()


@torch.no_grad()
def test_blocks_are_chosen_by_their_landmarks_alone() -> None:
    """Other keys of a block don't matter; a bfloat16 query finds a block that is best by a rounding error."""
    layer = make_layer(blocks=40, topk=1)
    state = random_state(layer, [40 * BLOCK])
    q = torch.randn(1, HEADS, 6, WIDTH // HEADS, dtype=torch.float64)
    changed_keys = tree_map(
        lambda keys: torch.cat([keys[..., :-1, :] + 1, keys[..., -1:, :]], 3), state.closed_keys
    )
    changed = state._replace(closed_keys=changed_keys)
    assert torch.equal(layer.choose_blocks(q, changed), layer.choose_blocks(q, state))

    keys = torch.ones(1, HEADS, 40, BLOCK, WIDTH // HEADS)
    keys[:, :, 7] += 1e-4
    layer.float()
    layer.positions.base = 1e30  # hardly rotated: all scores are nearly equal
    state = random_state(layer, [120])._replace(closed_keys=keys.split(1, dim=2))
    ones = torch.ones(1, HEADS, 1, WIDTH // HEADS)
    with torch.autocast("cpu", torch.bfloat16):
        chosen = layer.choose_blocks(ones.bfloat16(), state)
    assert torch.equal(chosen, layer.choose_blocks(ones, state))


@torch.no_grad()
def test_blocks_are_chosen_per_query_per_token_or_per_head() -> None:
    layer, q = make_layer(blocks=30), torch.randn(2, HEADS, 9, WIDTH // HEADS, dtype=torch.float64)
    state = random_state(layer, [90, 90])
    chosen = layer.choose_blocks(q, state)
    assert not (chosen == chosen[:, :1]).all()
    assert not (chosen == chosen[:, :, :1]).all()
    layer.selection = "token"
    chosen = layer.choose_blocks(q, state)
    assert (chosen == chosen[:, :1]).all()
    assert not (chosen == chosen[:, :, :1]).all()
    layer.selection = "head"
    chosen = layer.choose_blocks(q, state)
    assert (chosen == chosen[:, :, :1]).all()
    assert not (chosen == chosen[:, :1]).all()


@torch.no_grad()
def test_only_selection_by_head_depends_on_later_tokens() -> None:
    for selection in ("token_and_head", "token", "head"):
        layer = make_layer(blocks=30, topk=1, selection=selection)
        state, x = random_state(layer, [90, 90]), random_stream(SEGMENT)
        changed = x.clone()
        changed[:, -1] = 40 * changed[:, -2]
        before, after = (layer(stream, state)[0][:, :-1] for stream in (x, changed))
        assert torch.equal(before, after) == (selection != "head")


@pytest.mark.parametrize("batch_size", [1, 30, 10**6])
@torch.no_grad()
def test_queries_are_read_in_batches(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make_layer(), random_stream(SEGMENT)
    state = random_state(layer, [40, 5])
    expected, _ = layer(x, state)
    monkeypatch.setattr(landmark_attention, "MAX_GATHERED", batch_size * HEADS * BLOCK)
    torch.testing.assert_close(layer(x, state)[0], expected)


@pytest.mark.parametrize("blocks", [0, 1, 4, 50])
@pytest.mark.parametrize("open_length", [0, 1, 2])
def test_many_segments_at_once_equal_one_after_another(blocks: int, open_length: int) -> None:
    """Gradients and the state included, after an open block of `open_length` tokens."""
    layer = make_layer(blocks=blocks)
    start = layer.init_state(2)
    if open_length:
        start = tree_map(Tensor.detach, layer(random_stream(open_length), start)[1])
    x, results = random_stream(3 * SEGMENT, seed=3), []
    for pieces in (1, 3):
        inputs, state, outputs = x.clone().requires_grad_(), start, []
        for piece in inputs.chunk(pieces, dim=1):
            y, state = layer(piece, state)
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        grads = torch.autograd.grad(y.square().sum(), [inputs, *layer.parameters()])
        results.append([y, *leaves(state), *grads])
    torch.testing.assert_close(results[0], results[1])
    assert results[0][-1].any()


@torch.no_grad()
def test_rows_of_different_lengths_do_not_affect_one_another() -> None:
    """With open blocks and banks of different lengths, each row's output is that of the row alone."""
    layer = make_layer(topk=3)
    states = [layer.init_state(1)]
    for length in (4, 9, 2, 8, 9):
        states.append(layer(random_stream(length, rows=1, seed=length), states[-1])[1])
    batch = tree_map(lambda *leaf: torch.cat(leaf), states[0], *states[1:])
    for time in (1, 2, 7, 9):
        x = random_stream(time, rows=len(states), seed=time)
        y, after = layer(x, batch)
        for row, state in enumerate(states):
            alone, after_alone = layer(x[row : row + 1], state)
            torch.testing.assert_close(y[row : row + 1], alone)
            torch.testing.assert_close(leaves(take_rows(after, torch.tensor([row]))), leaves(after_alone))
    fresh = torch.tensor([False, True, False, True, False, False])
    y, _ = layer(x, replace_rows(batch, layer.init_state(6), fresh))
    torch.testing.assert_close(y[fresh], layer(x[fresh], layer.init_state(2))[0])
    infinite = batch._replace(closed_values=tree_map(lambda values: values + torch.inf, batch.closed_values))
    restarted = reset_rows(infinite, layer.init_state(6), fresh)
    assert restarted.closed_values is infinite.closed_values  # not cleared in a fresh row, and not read
    torch.testing.assert_close(layer(x, restarted)[0][fresh], y[fresh])


def test_the_state_has_no_gradient() -> None:
    layer = make_layer()
    x = random_stream(2 * SEGMENT + 1).requires_grad_()
    y, state = layer(x, layer.init_state(2))
    assert not any(leaf.requires_grad for leaf in leaves(state))
    (grad,) = torch.autograd.grad(y[:, SEGMENT:].sum(), [x])
    assert not grad[:, :SEGMENT].any()


def test_in_train_mode_each_segment_is_read_alone() -> None:
    layer = make_layer().train()
    x, state = random_stream(3 * SEGMENT), random_state(layer, [40, 5])
    y, after = layer(x, state)
    assert after is state
    for piece, expected in zip(x.split(SEGMENT, dim=1), y.split(SEGMENT, dim=1), strict=True):
        torch.testing.assert_close(layer(piece, layer.init_state(2))[0], expected)
        torch.testing.assert_close(layer.eval()(piece, layer.init_state(2))[0], expected)
        layer.train()


def test_the_first_tokens_of_a_block_may_be_missing() -> None:
    """A window that starts inside a block is read as the start of a text."""
    layer, x = make_layer(), random_stream(7)
    offset = torch.tensor([2, 1])
    y = layer.attend_alone(x, offset)
    q, k, v = layer.project(x)
    positions = torch.arange(7)
    q, k = layer.positions.rotate(q, positions), layer.positions.rotate(k, positions)
    landmarks = (offset[:, None] + positions) % BLOCK == BLOCK - 1
    weights, _ = grouped_softmax_loop(q @ k.mT / 2, landmarks[:, None])
    torch.testing.assert_close(y, layer.out_proj((weights @ v).transpose(1, 2).flatten(2)))


@torch.no_grad()
def test_a_batch_may_be_empty() -> None:
    layer = make_layer()
    for mode in (True, False):
        layer.train(mode)
        y, state = layer(random_stream(2 * SEGMENT, rows=0), layer.init_state(0))
        assert y.shape == (0, 2 * SEGMENT, WIDTH)
        assert state.length.shape == (0,)
