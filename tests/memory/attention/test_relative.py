"""Transformer-XL's attention against loops over rows, segments, queries and keys."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from zoo.memory.attention.relative import RelativeAttention, XLCache, shift
from zoo.models.blocks import sinusoid

WIDTH, HEADS, HEAD = 6, 2, 4
Mask = Callable[[int, int], bool]


def build(memory_len: int, prenorm: bool = False, same_length: bool = False) -> RelativeAttention:
    torch.manual_seed(memory_len)
    biases = [nn.Parameter(torch.randn(HEADS, HEAD)) for _ in range(2)]
    layer = RelativeAttention(
        WIDTH, HEADS, HEAD, memory_len, *biases, prenorm=prenorm, same_length=same_length
    ).double()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_()
    return layer


def table(layer: RelativeAttention, segment_len: int) -> Tensor:
    distances = torch.arange(layer.memory_len + segment_len - 1, -1, -1)
    return sinusoid(distances, WIDTH, torch.zeros(1, dtype=torch.float64))


def r(distance: int) -> Tensor:
    """R_d: all sines, then all cosines."""
    frequencies = [10000.0 ** (-2 * n / WIDTH) for n in range(WIDTH // 2)]
    angles = [distance * frequency for frequency in frequencies]
    waves = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return torch.tensor(waves, dtype=torch.float64)


def loop(layer: RelativeAttention, h: Tensor, memory: list[Tensor], mask: Mask) -> Tensor:
    """One row's segment (time, width) after its memory's content; `mask(query, key)` takes positions of
    [memory ; segment] counted from the segment's first token.  Future keys have distance 0."""

    def norm(x: Tensor) -> Tensor:
        return layer_norm(x, (WIDTH,), layer.norm.weight, layer.norm.bias)

    def heads(part: int, x: Tensor) -> Tensor:
        rows = slice(part * HEADS * HEAD, (part + 1) * HEADS * HEAD)
        return (layer.qkv.weight[rows] @ (norm(x) if layer.prenorm else x)).view(HEADS, HEAD)

    context, first, out = [*memory, *h], -len(memory), []
    for query in range(len(h)):
        parts = []
        for head in range(HEADS):
            scores, values = [], []
            for key in range(first, len(h)):
                if not mask(query, key):
                    continue
                distance = max(query - key, 0)
                position_key = (layer.relative.weight @ r(distance)).view(HEADS, HEAD)[head]
                q, k = heads(0, h[query])[head], heads(1, context[key - first])[head]
                content_score = (q + layer.content_bias[head]) @ k
                position_score = (q + layer.position_bias[head]) @ position_key
                scores.append((content_score + position_score) / math.sqrt(HEAD))
                values.append(heads(2, context[key - first])[head])
            weights = torch.stack(scores).softmax(0)
            parts.append((weights[:, None] * torch.stack(values)).sum(0))
        y = h[query] + layer.out_proj.weight @ torch.cat(parts)
        out.append(y if layer.prenorm else norm(y))
    return torch.stack(out)


def causal(layer: RelativeAttention) -> Mask:
    if layer.same_length:
        return lambda query, key: 0 <= query - key < layer.memory_len
    return lambda query, key: key <= query


@pytest.mark.parametrize(("queries", "memory"), [(1, 0), (4, 0), (3, 2), (2, 5)])
def test_shift_puts_each_distance_at_its_key(queries: int, memory: int) -> None:
    keys = memory + queries
    raw = torch.randn(2, queries, keys + 1)
    shifted = shift(raw)
    assert shifted.shape == (2, queries, keys)
    for query in range(queries):
        for key in range(keys):
            distance = query + memory - key
            if distance >= 0:
                assert torch.equal(shifted[:, query, key], raw[:, query, keys - 1 - distance])


@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize(
    ("memory_len", "same_length"), [(0, False), (2, False), (3, True), (4, False), (7, False), (7, True)]
)
@torch.no_grad()
def test_three_segments_at_once_and_a_short_one_against_loops(
    memory_len: int, same_length: bool, prenorm: bool
) -> None:
    """Row 0 starts empty, row 1 with a memory of 5 tokens; segments of 3 tokens."""
    layer, segment_len = build(memory_len, prenorm, same_length), 3
    earlier = torch.randn(5, WIDTH, dtype=torch.float64)
    _, filled = layer(earlier[None], layer.init_state(1), table(layer, 5), 5)
    state = XLCache(*(torch.cat([new, old]) for new, old in zip(layer.init_state(1), filled, strict=True)))
    past: list[list[Tensor]] = [[], [*earlier]]
    for length in (3 * segment_len, 2):
        h = torch.randn(2, length, WIDTH, dtype=torch.float64)
        segment = min(length, segment_len)
        y, state = layer(h, state, table(layer, segment), segment)
        for row in range(2):
            for start in range(0, length, segment):
                piece = h[row, start : start + segment]
                memory = past[row][-memory_len:] if memory_len else []
                expected = loop(layer, piece, memory, causal(layer))
                torch.testing.assert_close(y[row, start : start + segment], expected)
                past[row].extend(piece)
            memory = past[row][-memory_len:] if memory_len else []
            assert state.filled[row] == len(memory)
            if memory:
                torch.testing.assert_close(state.hidden[row, -len(memory) :], torch.stack(memory))


@torch.no_grad()
def test_a_future_key_shown_by_the_mask_has_distance_0() -> None:
    layer = build(3)
    layer.wrapped = False
    rng = torch.Generator().manual_seed(2)
    mask = torch.rand(4, 7, generator=rng) < 0.5
    mask |= torch.eye(4, 7).roll(3, dims=1).bool()  # at least itself
    h = torch.randn(1, 7, WIDTH, dtype=torch.float64)
    _, state = layer(h[:, :3], layer.init_state(1), table(layer, 3), 3)
    y, _ = layer(h[:, 3:], state, table(layer, 4), 4, mask)
    expected = loop(layer, h[0, 3:], [*h[0, :3]], lambda query, key: bool(mask[query, key + 3]))
    torch.testing.assert_close(y[0], expected)


def test_the_memory_has_no_gradient_but_the_weights_learn_from_it() -> None:
    layer, h = build(3), torch.randn(1, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    state = XLCache(torch.randn(1, 3, WIDTH, dtype=torch.float64), torch.tensor([3]))
    y, after = layer(h, state, table(layer, 3), 3)
    assert not after.hidden.requires_grad
    (grad,) = torch.autograd.grad(y[:, 3:].square().sum(), [h], retain_graph=True)
    assert not grad[:, :3].any(), "the second segment's loss has no gradient before its tokens"
    assert grad[:, 3:].any()

    scale = torch.randn(3 * HEADS * HEAD, WIDTH, dtype=torch.float64)

    def loss(step: float) -> Tensor:
        perturbed = build(3)
        with torch.no_grad():
            perturbed.qkv.weight += step * scale
        return perturbed(h.detach()[:, :3], state, table(perturbed, 3), 3)[0].square().sum()

    total = layer(h.detach()[:, :3], state, table(layer, 3), 3)[0].square().sum()
    (grad,) = torch.autograd.grad(total, [layer.qkv.weight])
    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close((grad * scale).sum(), slope.detach(), rtol=1e-6, atol=1e-6)
