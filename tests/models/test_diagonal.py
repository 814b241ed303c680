"""Layers read along diagonals, against the fold: outputs, states and gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.law_tools import perturbed, read_with_gradients
from zoo.memory.attention.position_options import Position
from zoo.models import diagonal
from zoo.models.armt import ARMT
from zoo.models.diagonal import MAX_ELEMENTS, MAX_WEIGHTS, DiagonalStack, are_stackable

SEGMENT, WIDTH = 6, 12
SHAPE: dict[str, Any] = {
    "vocab_size": 11,
    "segment_len": SEGMENT,
    "width": WIDTH,
    "heads": 3,
    "mlp_width": 10,
}
MEMORY: dict[str, Any] = {"memory_tokens": 2, "key_width": 4}
BOUNDED: dict[str, Any] = {"write": "in_turn", "bounded": True}
GPT2: dict[str, Any] = {"norm": "layer", "activation": "gelu_tanh", "bias": True, "position": "learned"}
ALIBI: Position = {"kind": "alibi"}
FIRE: Position = {"kind": "fire", "hidden": 5}


def build(depth: int = 3, **options: Any) -> ARMT:
    return ARMT(**SHAPE, depth=depth, **MEMORY | options)


def model_of(**options: Any) -> Any:
    return perturbed(partial(build, **options))


def text(segments: int, rows: int = 2) -> Tensor:
    return torch.randint(11, (rows, segments * SEGMENT), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def diagonals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of segments of each reading along diagonals."""
    read, counts = diagonal.read_diagonally, list[int]()

    def spy(blocks: Any, segments: Any, states: Any) -> Any:
        counts.append(len(segments))
        return read(blocks, segments, states)

    monkeypatch.setattr(diagonal, "read_diagonally", spy)
    return counts


@pytest.mark.parametrize("segments", [3, 4, 9])
@pytest.mark.parametrize(
    "options",
    [
        BOUNDED,
        {"qk_norm": True, "correction": False},
        GPT2 | BOUNDED,
        {"norm": "layer_without_bias", "position": ALIBI, "bounded": True},
    ],
    ids=["default", "qk_norm", "gpt2", "alibi"],
)
@pytest.mark.parametrize("depth", [2, 4])
def test_diagonals_are_the_fold(
    diagonals: list[int], depth: int, options: dict[str, Any], segments: int
) -> None:
    model, tokens = model_of(depth=depth, **options), text(segments)
    with torch.no_grad():
        states = [None, model.fold(text(2))[1]]
    for state in states:
        expected = read_with_gradients(model, model.fold, tokens, state)
        assert not diagonals
        actual = read_with_gradients(model, model.forward, tokens, state)
        assert diagonals.pop() == segments
        for part in expected:
            torch.testing.assert_close(actual[part], expected[part], rtol=1e-9, atol=1e-9)


def test_two_segments_one_layer_large_segments_and_large_layers_are_folded(diagonals: list[int]) -> None:
    model = model_of()
    model(text(2))
    model(text(3, rows=MAX_ELEMENTS // (WIDTH * (SEGMENT + 2)) + 1))
    build(depth=1)(text(3))
    wide = ARMT(11, SEGMENT, 2, 256, 4, MAX_WEIGHTS // (3 * 256), **MEMORY)
    wide(text(3))
    assert not diagonals
    model(text(3))
    assert diagonals == [3]


def hook(model: Any) -> None:
    model.stack[1].block.mlp.register_forward_hook(lambda *_: None)


def other_weights(model: Any) -> None:
    model.stack[1].block.mlp.out_proj = nn.Linear(10, WIDTH, dtype=torch.float64)


def parametrised(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.stack[0].memory.key)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({}, hook),
        ({}, other_weights),
        ({}, parametrised),
        ({"position": FIRE}, None),
        ({"position": {"draw": "pose", "longest": 32}}, None),
    ],
    ids=["a hook", "a bias in one layer", "a map that isn't plain", "learned biases", "drawn positions"],
)
def test_layers_that_differ_in_more_than_maps_are_folded(
    diagonals: list[int], options: dict[str, Any], change: Callable[[Any], None] | None
) -> None:
    model = model_of(**options)
    if change:
        change(model)
    logits, _ = model(text(4))
    assert not diagonals
    assert not are_stackable(list(model.stack))
    assert torch.equal(logits, model.fold(text(4))[0])


def test_hooks_hear_every_layer_and_segment() -> None:
    model, heard = model_of(), list[tuple[int, ...]]()
    for block in model.stack:
        block.block.register_forward_hook(lambda _, inputs, __: heard.append(inputs[0].shape))
    model(text(4))
    assert heard == [(2, SEGMENT + 2, WIDTH)] * 3 * 4


def test_dropout_draws_as_in_the_fold(diagonals: list[int]) -> None:
    model, outputs = build(dropout=0.5).double().train(), list[Tensor]()
    for form in (model.forward, model.fold):
        torch.manual_seed(0)
        outputs.append(form(text(4))[0])
    assert not diagonals
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    model.eval()(text(4))
    assert diagonals == [4]


def test_no_rows_and_no_tokens() -> None:
    model = model_of()
    assert isinstance(model.stack, DiagonalStack)
    for rows, time in ((0, 4 * SEGMENT), (2, 0)):
        logits, _ = model(torch.zeros(rows, time, dtype=torch.long))
        assert logits.shape == (rows, time, 11)
