"""The sliding window against a loop over the whole text, however it is cut into calls."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.memory.attention.loops import alibi_slope
from zoo.memory.attention.biases import Alibi
from zoo.memory.attention.position_options import Position
from zoo.memory.attention.positions import Rope
from zoo.memory.attention.sliding_window import WindowAttention, WindowState
from zoo.state import detach, leaves, replace_rows


def loop(layer: WindowAttention, x: Tensor) -> Tensor:
    """Position p of one text (time, width) attends to keys p-W+1 .. p and the first sinks.  Distances as in
    StreamingLLM's cache: a sink s is min(p, sinks + W - 1) - s away, a key j of the window p - j."""
    heads, kv_heads, width = layer.heads, layer.kv_heads, layer.head_dim
    projected = layer.qkv(x).unflatten(-1, (heads + 2 * kv_heads, width))
    out = []
    for query in range(len(x)):
        parts = []
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            scores, values = [], []
            for key in range(query + 1):
                if key < layer.sinks:
                    distance = min(query, layer.sinks + layer.window - 1) - key
                elif query - key < layer.window:
                    distance = query - key
                else:
                    continue
                q, k = projected[query, head], projected[key, heads + kv_head]
                if isinstance(layer.positions, Rope):
                    half = width // 2
                    pairs = torch.complex(q[:half], q[half:]) * torch.complex(k[:half], k[half:]).conj()
                    angles = [distance * layer.positions.base ** (-2 * i / width) for i in range(half)]
                    score = sum(
                        pair.real * math.cos(angle) - pair.imag * math.sin(angle)
                        for pair, angle in zip(pairs, angles, strict=True)
                    ) / math.sqrt(width)
                else:
                    score = q @ k / math.sqrt(width)
                if isinstance(layer.positions, Alibi):
                    score = score - alibi_slope(head, heads) * distance
                scores.append(score)
                values.append(projected[key, heads + kv_heads + kv_head])
            weights = torch.stack(scores).softmax(0)
            parts.append((weights[:, None] * torch.stack(values)).sum(0))
        out.append(layer.out_proj(torch.cat(parts)))
    return torch.stack(out)


def build(window: int, sinks: int, position: Position, heads: int = 2, kv_heads: int = 2) -> WindowAttention:
    torch.manual_seed(0)
    layer = WindowAttention(
        4 * heads,
        heads,
        window=window,
        sinks=sinks,
        kv_heads=kv_heads,
        position=position,
        bias=True,
        rope_base=50.0,
    )
    return layer.double()


def text(layer: WindowAttention, rows: int, time: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, time, layer.qkv.in_features, generator=rng, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(1, 8),
    sinks=st.integers(0, 4),
    position=st.sampled_from(["rope", "alibi", "none"]),
    calls=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    kv_heads=st.sampled_from([1, 2]),
)
@torch.no_grad()
def test_any_window_in_any_calls(
    window: int, sinks: int, position: Position, calls: list[int], kv_heads: int
) -> None:
    layer = build(window, sinks, position, kv_heads=kv_heads)
    x = text(layer, 1, sum(calls))
    state, outputs = layer.init_state(1), []
    for piece in x.split(calls, dim=1):
        y, state = layer(piece, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1)[0], loop(layer, x[0]), rtol=1e-9, atol=1e-9)
    assert state.length.tolist() == [sum(calls)]


@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize(("window", "sinks"), [(4, 0), (4, 2), (30, 3), (1, 2)])
@torch.no_grad()
def test_rows_at_different_fills(position: Position, window: int, sinks: int) -> None:
    """Row 1 starts anew after 3 tokens, row 2 after 3 + 5; every row equals the loop over its text."""
    layer = build(window, sinks, position)
    state, texts = layer.init_state(3), [torch.empty(0, 8, dtype=torch.float64) for _ in range(3)]
    for call, (length, fresh) in enumerate([(3, []), (5, [1]), (7, [2]), (6, [])]):
        x = text(layer, 3, length, seed=call)
        state = replace_rows(state, layer.init_state(3), torch.tensor([row in fresh for row in range(3)]))
        y, state = layer(x, state)
        for row in range(3):
            texts[row] = x[row] if row in fresh else torch.cat([texts[row], x[row]])
            expected = loop(layer, texts[row])[-length:]
            torch.testing.assert_close(y[row], expected, rtol=1e-9, atol=1e-9)
    assert state.length.tolist() == [21, 18, 13]


@torch.no_grad()
def test_the_state_is_the_last_keys_and_the_first_ones() -> None:
    layer = build(window=4, sinks=2, position="rope")
    x = text(layer, 2, 9)
    qkv = layer.qkv(x).unflatten(-1, (6, 4)).transpose(1, 2)  # (rows, q q k k v v, time, head_dim)
    state = layer.init_state(2)
    for piece in x.split([1, 3, 5], dim=1):
        _, state = layer(piece, state)
    expected = WindowState(
        qkv[:, 2:4, -3:], qkv[:, 4:, -3:], qkv[:, 2:4, :2], qkv[:, 4:, :2], torch.tensor([9, 9])
    )
    torch.testing.assert_close(leaves(state), leaves(expected))


@pytest.mark.parametrize("sinks", [0, 3])
@torch.no_grad()
def test_texts_may_be_of_any_length(sinks: int) -> None:
    """Only distances count: after 10^5 tokens, or 10^12, float32 is as exact as at the start."""
    window, layer = 16, build(16, sinks, "rope", heads=2).float()
    x = text(layer, 1, 120_000 + 3 * window).float()
    first = x[:, :sinks]
    short = torch.cat([first, x[:, -3 * window :]], dim=1)
    expected, short_state = layer(short, layer.init_state(1))
    state = layer.init_state(1)
    for piece in x.split(5000, dim=1):
        y, state = layer(piece, state)
    torch.testing.assert_close(y[:, -window:], expected[:, -window:], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(leaves(state)[:-1], leaves(short_state)[:-1], rtol=1e-6, atol=1e-6)

    after = text(layer, 1, 3 * window, seed=1).float()
    y, _ = layer(after, short_state)
    late_y, end = layer(after, short_state._replace(length=short_state.length + 10**12))
    assert torch.equal(late_y, y)
    assert end.length.item() == 10**12 + sinks + 6 * window


@torch.no_grad()
def test_one_long_call_is_as_exact_as_many_short_ones() -> None:
    layer = build(16, 0, "rope").float()
    x = text(layer, 1, 100_000).float()
    torch.testing.assert_close(
        layer(x, layer.init_state(1))[0][:, -16:],
        layer(x[:, -64:], layer.init_state(1))[0][:, -16:],
        rtol=1e-5,
        atol=2e-6,
    )


@torch.no_grad()
def test_a_window_that_covers_the_text_is_plain_attention() -> None:
    """Sinks or none, a window as long as the text hides nothing and moves nothing."""
    for position in ("rope", "alibi"):
        plain = build(12, 0, position)
        x = text(plain, 2, 12)
        for sinks in (1, 4):
            layer = build(12, sinks, position)
            y, expected = (attention(x, attention.init_state(2))[0] for attention in (layer, plain))
            torch.testing.assert_close(y, expected)


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="window must be at least 1, not 0"):
        WindowAttention(8, 2, window=0)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_sinks_in_one_kernel_are_those_of_the_scores(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, final state and gradients, of rows at different fills."""
    layer = build(6, 3, "rope", kv_heads=kv_heads)
    x = torch.randn(2, 31, layer.qkv.in_features, dtype=torch.float64)
    _, state = layer(x[:, :9], layer.init_state(2))
    state = detach(replace_rows(state, layer.init_state(2), torch.tensor([False, True])))

    def run() -> list[Tensor]:
        inputs = x.clone().requires_grad_()
        y, after = layer(inputs, state)
        return [y, *after, *torch.autograd.grad(y.sin().sum(), [inputs, *layer.parameters()])]

    fused = run()
    monkeypatch.setattr(Rope, "unbiased", property(lambda self: False))
    torch.testing.assert_close(fused, run(), rtol=1e-12, atol=1e-12)
