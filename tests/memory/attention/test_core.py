"""Attention inside a segment against loops over rows, heads, queries and keys."""

from typing import Any

import pytest
import torch

from tests.memory.attention.loops import attention_loop
from zoo.memory.attention.core import Attention
from zoo.memory.attention.position_options import Position


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
    torch.testing.assert_close(y, attention_loop(layer, x, lambda query, key: key <= query))
    assert state == ()


def test_attention_drops_weights_in_train_mode_alone() -> None:
    layer, x = Attention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    assert not torch.equal(layer.train()(x, ())[0], layer(x, ())[0])
    assert torch.equal(layer.eval()(x, ())[0], layer(x, ())[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 5}, "width 12 is not a multiple of heads 5"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"heads": 4}, "even head_dim, not 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attention(12, **arguments)
