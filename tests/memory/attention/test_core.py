"""Attention inside a segment against loops over rows, heads, queries and keys."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.memory.attention.test_positions import complex_rotation
from zoo.memory.attention.core import Attention
from zoo.memory.attention.positions import Alibi, Position, Rope
from zoo.memory.tokens.memory_tokens import BlockMemoryAttention, block_mask, surround


def loop(layer: Attention, x: Tensor, attends: Any) -> Tensor:
    """Attention from the layer's weights, one pair at a time; `attends(query, key)` is the mask."""
    heads, kv_heads, width = layer.heads, layer.kv_heads, layer.head_dim
    bias = torch.zeros(len(layer.qkv.weight)) if layer.qkv.bias is None else layer.qkv.bias
    rows, time, rows_out = x.shape[0], x.shape[1], []
    for row in range(rows):
        outputs = []
        for query in range(time):
            parts = []
            for head in range(heads):
                kv_head = head // (heads // kv_heads)

                def project(t: int, index: int, row: int = row) -> Tensor:
                    features = slice(index * width, (index + 1) * width)
                    return layer.qkv.weight[features] @ x[row, t] + bias[features]

                q, scores, values = project(query, head), [], []
                for key in range(time):
                    if not attends(query, key):
                        continue
                    k, distance = project(key, heads + kv_head), query - key
                    values.append(project(key, heads + kv_heads + kv_head))
                    if isinstance(layer.positions, Rope):
                        k = complex_rotation(k, -distance, layer.positions.base)
                    score = q @ k / math.sqrt(width)
                    if isinstance(layer.positions, Alibi):
                        score = score - 2.0 ** (-8 * (head + 1) / heads) * distance
                    scores.append(score)
                weights = torch.stack(scores).softmax(0)
                parts.append((weights[:, None] * torch.stack(values)).sum(0))
            outputs.append(layer.out_proj(torch.cat(parts)))
        rows_out.append(torch.stack(outputs))
    return torch.stack(rows_out)


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
    torch.testing.assert_close(y, loop(layer, x, lambda query, key: key <= query))
    assert state == ()


@pytest.mark.parametrize("memory_tokens", [1, 2, 3])
@torch.no_grad()
def test_memory_tokens_attend_to_their_whole_block(memory_tokens: int) -> None:
    layer = BlockMemoryAttention(8, 2, memory_tokens, position="rope").double()
    time = 4 + 2 * memory_tokens

    def attends(query: int, key: int) -> bool:
        first = query < memory_tokens and key < memory_tokens
        last = min(query, key) >= time - memory_tokens
        return key <= query or first or last

    x = torch.randn(2, time, 8, dtype=torch.float64)
    assert block_mask(time, memory_tokens, x.device).tolist() == [
        [attends(query, key) for key in range(time)] for query in range(time)
    ]
    torch.testing.assert_close(layer(x, ())[0], loop(layer, x, attends))


def test_surround_puts_the_memory_on_both_sides_in_the_segments_type() -> None:
    memory, x = torch.randn(2, 3, 4), torch.randn(2, 5, 4).bfloat16()
    surrounded = surround(memory, x)
    assert surrounded.dtype == torch.bfloat16
    assert torch.equal(surrounded[:, :3], memory.bfloat16())
    assert torch.equal(surrounded[:, 3:8], x)
    assert torch.equal(surrounded[:, 8:], memory.bfloat16())


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
