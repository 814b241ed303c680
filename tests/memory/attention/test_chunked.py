"""Attention in chunks: rows at any position of their chunks, texts cut into any calls."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.memory.attention.chunked import ChunkState, attend_in_chunks, gather_slots
from zoo.memory.attention.positions import InterleavedRope
from zoo.memory.state_space.megalodon_attention import GatedAttention
from zoo.state import leaves, replace_rows, tree_map

WIDTH, BASE = 6, 50.0
ROPE = InterleavedRope(BASE)


def build(chunk: int, **options: Any) -> GatedAttention:
    torch.manual_seed(0)
    layer = GatedAttention(
        WIDTH, 2, key_width=8, value_width=6, chunk_size=chunk, state_size=2, norm_groups=2, **options
    ).double()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return layer.eval()


def text(rows: int, time: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, time, WIDTH, generator=rng, dtype=torch.float64)


def loop(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
    """One row's heads (heads, time, width) from the start of its text: each token with its chunk's keys,
    rotated as complex numbers by their distance."""
    frequencies = BASE ** (-torch.arange(0, q.shape[2], 2, dtype=torch.float64) / q.shape[2])
    pairs_q, pairs_k = (torch.view_as_complex(x.unflatten(2, (-1, 2)).contiguous()) for x in (q, k))
    out = torch.zeros_like(v)
    for head in range(len(q)):
        for i in range(q.shape[1]):
            keys = range(i // chunk * chunk, i + 1)
            rotations = [torch.polar(torch.ones_like(frequencies), (i - j) * frequencies) for j in keys]
            scores = [
                (pairs_q[head, i] * pairs_k[head, j].conj() * rotation).real.sum()
                for j, rotation in zip(keys, rotations, strict=True)
            ]
            out[head, i] = torch.stack(scores).softmax(0) @ v[head, keys.start : i + 1]
    return out


def draw_heads(rows: int, time: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, 2, time, width, generator=rng, dtype=torch.float64) for width in (4, 4, 3))
    return q, k, v


def empty(rows: int, chunk: int) -> ChunkState:
    keys, values = (torch.zeros(rows, 2, chunk - 1, width, dtype=torch.float64) for width in (4, 3))
    return ChunkState(keys, values, torch.zeros(rows, dtype=torch.long))


@settings(max_examples=40, deadline=None)
@given(
    chunk=st.integers(1, 7),
    calls=st.lists(st.tuples(st.integers(1, 9), st.sets(st.integers(0, 2))), min_size=1, max_size=5),
)
@torch.no_grad()
def test_rows_anywhere_in_their_chunks(chunk: int, calls: list[tuple[int, set[int]]]) -> None:
    """Before each call some rows start anew; every row equals the loop over its text."""
    state = empty(3, chunk)
    past = [[torch.empty(2, 0, width, dtype=torch.float64) for width in (4, 4, 3)] for _ in range(3)]
    for seed, (time, fresh) in enumerate(calls):
        state = replace_rows(state, empty(3, chunk), torch.tensor([row in fresh for row in range(3)]))
        new = draw_heads(3, time, seed)
        y, state = attend_in_chunks(*new, state, chunk, ROPE)
        for row in range(3):
            before = [part[:, :0] for part in past[row]] if row in fresh else past[row]
            past[row] = [torch.cat([old, part[row]], dim=1) for old, part in zip(before, new, strict=True)]
            q, k, v = past[row]
            expected = loop(q, k, v, chunk)[:, -time:]
            torch.testing.assert_close(y[row], expected, rtol=1e-9, atol=1e-9)
            filled = v.shape[1] % chunk
            assert state.filled[row] == filled
            torch.testing.assert_close(state.values[row, :, :filled], v[:, v.shape[1] - filled :])
            assert not state.values[row, :, filled:].any()
            assert not state.keys[row, :, filled:].any()


@torch.no_grad()
def test_no_key_crosses_a_chunk() -> None:
    """Another value at the first token changes outputs until its chunk ends, and not after."""
    q, k, v = draw_heads(1, 11, 0)
    changed = v.clone()
    changed[:, :, 0] += 1
    y, y_changed = (attend_in_chunks(q, k, values, empty(1, 4), 4, ROPE)[0] for values in (v, changed))
    assert (y - y_changed).abs().amax((0, 1, 3)).gt(1e-12).tolist() == [True] * 4 + [False] * 7


def test_slots_contain_the_cache_then_the_new_entries() -> None:
    cached, new = torch.tensor([[1.0, 2, 0], [3, 0, 0]]), torch.tensor([[5.0, 6], [7, 8]])
    slots = gather_slots(
        new[:, None, :, None],
        cached[:, None, :, None],
        torch.tensor([2, 1]),
        torch.tensor([[0, 1, 2, 3], [2, 1, 0, 1]]),
    )
    assert slots.squeeze().tolist() == [[1, 2, 5, 6], [8, 7, 3, 7]]


def leaf(part: Tensor) -> Tensor:
    return part.detach().clone().requires_grad_(part.is_floating_point() or part.is_complex())


def weighted_sum(part: Tensor) -> Tensor:
    flat = (torch.view_as_real(part) if part.is_complex() else part).flatten()
    return flat @ torch.linspace(1, 2, len(flat), dtype=flat.dtype)


@pytest.mark.parametrize("chunk", [1, 3, 4, 20])
def test_cuts_change_neither_outputs_nor_gradients(chunk: int) -> None:
    """The mixer, from a state whose rows are at different positions of their chunks."""
    layer = build(chunk)
    _, initial = layer(text(2, 5, seed=1), layer.init_state(2))
    initial = replace_rows(initial, layer.init_state(2), torch.tensor([True, False]))
    initial = layer(text(2, 2, seed=2), initial)[1]
    results = []
    for lengths in ([13], [1] * 13, [4, 4, 5], [2, 11], [12, 1]):
        x, state, outputs = text(2, 13).requires_grad_(), tree_map(leaf, initial), []
        inputs = [x, *(part for part in leaves(state) if part.requires_grad), *layer.parameters()]
        for piece in x.split(lengths, dim=1):
            y, state = layer(piece, state)
            outputs.append(y)
        outputs = [torch.cat(outputs, dim=1), *leaves(state)]
        total = torch.stack([weighted_sum(part) for part in outputs if part.requires_grad]).sum()
        grads = torch.autograd.grad(total, inputs, allow_unused=True)  # a chunk of 1 has no cache
        results.append([*outputs, *(torch.zeros(1) if grad is None else grad for grad in grads)])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_each_dropout_acts_in_train_mode_alone() -> None:
    x = text(2, 9)
    plain = build(4)
    expected = plain(x, plain.init_state(2))[0]
    for name in ("dropout", "attention_dropout", "hidden_dropout"):
        layer = build(4, **{name: 0.5})
        torch.testing.assert_close(layer(x, layer.init_state(2))[0], expected)
        assert (layer.train()(x, layer.init_state(2))[0] - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_width": 6}, "key_width 6 is not an even number for each of 2 heads"),
        ({"value_width": 5}, "value_width 5 is not a multiple of heads 2"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, not 0"),
        ({"norm_groups": 4}, "width 6 is not a multiple of norm groups 4"),
        ({"norm_groups": 6}, "prior_count must be at least 2, not 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    shape: dict[str, Any] = {
        "key_width": 8,
        "value_width": 6,
        "chunk_size": 4,
        "state_size": 2,
        "norm_groups": 2,
    } | options
    with pytest.raises(ValueError, match=message):
        GatedAttention(WIDTH, 2, **shape)
