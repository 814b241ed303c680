"""Attention inside a segment against loops over rows, heads, queries and keys."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.memory.attention.core import Attention, Position, alibi_slopes, rotary
from zoo.memory.tokens.memory_tokens import BlockMemoryAttention, block_visible, surround


def turned(x: Tensor, angle: int, base: float) -> Tensor:
    """One vector: the complex numbers x_i + i x_(i+K/2), turned by angle * base^(-2i/K)."""
    half = len(x) // 2
    z = torch.complex(x[:half], x[half:])
    rates = torch.tensor([angle * base ** (-2 * i / len(x)) for i in range(half)], dtype=x.dtype)
    z = z * torch.polar(torch.ones_like(rates), rates)
    return torch.cat([z.real, z.imag])


def slow(layer: Attention, x: Tensor, sees: Any) -> Tensor:
    """Attention from the layer's weights, one pair at a time."""
    heads, kv_heads, width = layer.heads, layer.kv_heads, layer.head_dim
    bias = torch.zeros(len(layer.qkv.weight)) if layer.qkv.bias is None else layer.qkv.bias
    rows, time, out = x.shape[0], x.shape[1], []
    for row in range(rows):
        said = []
        for query in range(time):
            parts = []
            for head in range(heads):
                shared = head // (heads // kv_heads)

                def project(at: int, which: int, row: int = row) -> Tensor:
                    rows = slice(which * width, (which + 1) * width)
                    return layer.qkv.weight[rows] @ x[row, at] + bias[rows]

                q, scores, values = project(query, head), [], []
                for key in range(time):
                    if not sees(query, key):
                        continue
                    k, distance = project(key, heads + shared), query - key
                    values.append(project(key, heads + kv_heads + shared))
                    if layer.position == "rope":
                        k = turned(k, -distance, layer.rope_base)
                    score = q @ k / math.sqrt(width)
                    if layer.position == "alibi":
                        score = score - 2.0 ** (-8 * (head + 1) / heads) * distance
                    scores.append(score)
                weights = torch.stack(scores).softmax(0)
                parts.append((weights[:, None] * torch.stack(values)).sum(0))
            said.append(layer.out(torch.cat(parts)))
        out.append(torch.stack(said))
    return torch.stack(out)


def test_rotary_is_complex_multiplication() -> None:
    x, positions = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.tensor([0, 1, 7, -4, 1000])
    found = rotary(x, positions, base=500.0)
    for row in range(2):
        for head in range(3):
            for time, position in enumerate(positions.tolist()):
                torch.testing.assert_close(
                    found[row, head, time], turned(x[row, head, time], position, 500.0)
                )


def test_rotary_positions_may_differ_between_rows() -> None:
    x, positions = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.randint(50, (2, 1, 4))
    found = rotary(x, positions, base=10000.0)
    for row in range(2):
        assert torch.equal(found[row], rotary(x[row], positions[row, 0], base=10000.0))


def test_rotary_angles_are_exact_in_bfloat16() -> None:
    """The turn is that of float32; only the result is rounded."""
    x, positions = torch.randn(1, 1, 4, 8).bfloat16(), torch.tensor([1001, 3003, 4095, 30000])
    assert torch.equal(rotary(x, positions, 10000.0), rotary(x.float(), positions, 10000.0).bfloat16())


def test_slopes_are_the_papers() -> None:
    assert alibi_slopes(8, torch.zeros(1)).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(16, torch.zeros(1)).tolist() == pytest.approx([2.0 ** (-h / 2) for h in range(1, 17)])


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, None, None), (4, 2, None), (2, 1, 6), (3, 3, 2)]
)
@torch.no_grad()
def test_attention_against_loops(
    position: Position, heads: int, kv_heads: int | None, head_dim: int | None
) -> None:
    bias, head_dim = heads == 4, head_dim or 12 // heads + 12 // heads % 2
    layer = Attention(
        12, heads, kv_heads=kv_heads, head_dim=head_dim, position=position, bias=bias, rope_base=99.0
    ).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    y, state = layer(x, ())
    torch.testing.assert_close(y, slow(layer, x, lambda query, key: key <= query))
    assert state == ()


@pytest.mark.parametrize("slots", [1, 2, 3])
@torch.no_grad()
def test_memory_tokens_see_their_whole_block(slots: int) -> None:
    layer = BlockMemoryAttention(8, 2, slots, position="rope").double()
    time = 4 + 2 * slots

    def sees(query: int, key: int) -> bool:
        first = query < slots and key < slots
        last = query >= time - slots and key >= time - slots
        return key <= query or first or last

    x = torch.randn(2, time, 8, dtype=torch.float64)
    assert block_visible(time, slots, x.device).tolist() == [
        [sees(query, key) for key in range(time)] for query in range(time)
    ]
    torch.testing.assert_close(layer(x, ())[0], slow(layer, x, sees))


def test_surround_puts_the_memory_on_both_sides_in_the_segments_type() -> None:
    memory, x = torch.randn(2, 3, 4), torch.randn(2, 5, 4).bfloat16()
    found = surround(memory, x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[:, :3], memory.bfloat16())
    assert torch.equal(found[:, 3:8], x)
    assert torch.equal(found[:, 8:], memory.bfloat16())


def test_attention_drops_weights_in_train_mode_alone() -> None:
    layer, x = Attention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    assert not torch.equal(layer.train()(x, ())[0], layer(x, ())[0])
    assert torch.equal(layer.eval()(x, ())[0], layer(x, ())[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 5}, "width 12 is not a multiple of heads 5"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"heads": 4}, "even head width, not 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attention(12, **arguments)
