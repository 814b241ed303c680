"""Every kind of positions in the attentions that take it: causal, the same from a cache and however a text is
cut; and each method's formula where no golden case has it."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.memory.attention import positions
from zoo.memory.attention.biases import Fire, Kerple, t5_buckets
from zoo.memory.attention.contextual_biases import Dape
from zoo.memory.attention.core import Attention
from zoo.memory.attention.position_options import Position, position_options
from zoo.memory.attention.positions import Positions
from zoo.memory.attention.shifted_sparse import shifted_attention
from zoo.memory.attention.sliding_window import WindowAttention

TIME, WIDTH, HEADS = 13, 32, 4
FAR: dict[str, dict[str, Any]] = {
    far: {"far": far, "near": 5, "trained": 8, **({} if far == "capped" else {"group": 3})}
    for far in ("capped", "leaky", "grouped")
}
IN_WINDOWS: dict[str, Position] = {
    "none": "none",
    "rope": "rope",
    "yarn": {"scaling": "yarn", "factor": 4.0, "trained": 8},
    **FAR,
    "log_n": {"log_n": True, "trained": 4},
    "grouped_log_n": {**FAR["grouped"], "log_n": True},
    "xpos": "xpos",
    "alibi": {"kind": "alibi", "factor": 2},
    "t5": {"kind": "t5", "buckets": 6, "farthest": 9},
    "kerple": "kerple",
    "kerple_power": {"kind": "kerple", "kernel": "power"},
    "sandwich": {"kind": "sandwich", "terms": 8},
    "fire": {"kind": "fire", "hidden": 5},
    "dape": {"kind": "dape", "hidden": 5},
    "dape_fire": {"kind": "dape", "hidden": 5, "inner": "fire"},
    "dape_rope": {"kind": "dape", "hidden": 5, "inner": "rope"},
    "cope": {"kind": "cope", "gates": 4},
}
EVERYWHERE: dict[str, Position] = {
    **IN_WINDOWS,
    "coca": "coca",
    "clex": {"scaling": "clex", "trained": 4, "factor": 8},
    "dape_v2": {"kind": "dape", "hidden": 5, "convolution": 3},
    "dape_v2_none": {"kind": "dape", "hidden": 5, "convolution": 5, "inner": "none"},
}


def drawn_weights(layer: nn.Module) -> None:
    """Random values for all weights, those that begin at 0 too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / max([*weight.shape[-1:], 1]) ** 0.5)


def text(time: int = TIME, rows: int = 2) -> Tensor:
    return torch.randn(rows, time, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def segment_layer(position: Position, **options: Any) -> Attention:
    layer = Attention(WIDTH, HEADS, kv_heads=2, position=position, context=16, **options).double().eval()
    drawn_weights(layer)
    return layer


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_length_of_a_call_decides_nothing(name: str) -> None:
    """Neither tokens that follow nor reading token by token change an output."""
    layer, x = segment_layer(EVERYWHERE[name]), text()
    y, _ = layer(x, ())
    assert y.isfinite().all()
    for time in (1, 2, 7):
        torch.testing.assert_close(layer(x[:, :time], ())[0], y[:, :time])
    cache: Any = ()
    for token in range(TIME):
        part, cache = layer.decode(x[:, token : token + 1], cache)
        torch.testing.assert_close(part, y[:, token : token + 1])


@pytest.mark.parametrize("name", EVERYWHERE)
def test_queries_in_blocks_are_queries_at_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    layer, x = segment_layer(EVERYWHERE[name]), text().requires_grad_()
    results = []
    for size in (TIME, 5, 1):
        monkeypatch.setattr(positions, "QUERIES_AT_ONCE", size)
        y, _ = layer(x, ())
        results.append([y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])])
    for others in results[1:]:
        torch.testing.assert_close(others, results[0])


@pytest.mark.parametrize("name", [name for name in EVERYWHERE if name not in ("none", "rope")])
def test_every_kind_has_an_effect_and_finite_gradients(name: str) -> None:
    layer, x = segment_layer(EVERYWHERE[name]), text().requires_grad_()
    y, _ = layer(x, ())
    gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    plain = segment_layer("none" if "none" in name or "bias" in name else "rope")
    plain.load_state_dict(layer.state_dict(), strict=False)
    assert (plain(x, ())[0] - y).abs().max() > 1e-3


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("name", IN_WINDOWS)
def test_a_window_reads_alike_however_the_text_is_cut(name: str, sinks: int) -> None:
    if name == "cope" and sinks:
        return  # refused, below
    layer = WindowAttention(WIDTH, HEADS, window=6, sinks=sinks, position=IN_WINDOWS[name]).double().eval()
    drawn_weights(layer)
    x = text(time=29)
    y, _ = layer(x, layer.init_state(2))
    for piece in (1, 4, 7):
        state, outputs = layer.init_state(2), []
        for part in x.split(piece, dim=1):
            out, state = layer(part, state)
            outputs.append(out)
        torch.testing.assert_close(torch.cat(outputs, dim=1), y)


@pytest.mark.parametrize("name", IN_WINDOWS)
def test_a_window_without_sinks_is_a_mask_over_the_text(name: str) -> None:
    """By the definition: scores of all pairs of the text, with their positions in it."""
    window = 6
    layer = WindowAttention(WIDTH, HEADS, window=window, position=IN_WINDOWS[name]).double().eval()
    drawn_weights(layer)
    x = text(time=29)
    q, k, v = layer.project(x)
    at = torch.arange(29)
    distance = at[:, None] - at
    q = layer.positions.scale_queries(q, at)
    q, k = (layer.positions.rotate(part, at) for part in (q, k))
    scores = layer.positions.scores(q, k, at, at, (distance >= 0) & (distance < window))
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x, layer.init_state(2))[0], layer.out_proj(y))


@pytest.mark.parametrize(
    ("far", "n", "g"), [("capped", 5, 1), ("leaky", 5, 3), ("grouped", 5, 3), ("grouped", 6, 3)]
)
def test_far_distances_pair_by_pair(far: str, n: int, g: int) -> None:
    """The distance at which a pair is rotated; groups of a g that doesn't divide n shift by the floor."""
    keys = {"far": far, "near": n, **({} if far == "capped" else {"group": g})}
    layer = Attention(16, 2, position={**keys, "base": 50.0}, context=16).double()
    q, k = torch.randn(2, 1, 2, TIME, 8, dtype=torch.float64)
    at = torch.arange(TIME)
    scores = layer.positions.scores(q, k, at, at, at[:, None] >= at)
    for i in range(TIME):
        for j in range(i + 1):
            distance = float(i - j)
            if i - j >= n:
                distance = {
                    "capped": n,
                    "leaky": n + (i - j - n) / g,
                    "grouped": i // g + n - n // g - j // g,
                }[far]
            pairs = torch.complex(q[0, :, i, :4], q[0, :, i, 4:]) * torch.complex(
                k[0, :, j, :4], -k[0, :, j, 4:]
            )
            angles = torch.tensor([distance * 50.0 ** (-m / 4) for m in range(4)], dtype=torch.float64)
            expected = (pairs * torch.polar(torch.ones(4).double(), angles)).real.sum(-1) / math.sqrt(8)
            torch.testing.assert_close(scores[0, :, i, j], expected)


def test_defaults_of_far_distances_stay_within_what_was_trained() -> None:
    for context in (128, 256, 512, 2048):
        for far in ("leaky", "grouped"):
            options = position_options({"far": far, "trained": 128}).resolve(context)
            assert options.near == 32
            assert options.group is not None
            assert 32 + (context - 32) / options.group <= 2 * 128 / 3
    assert position_options({"far": "capped", "trained": 128}).resolve(512).near == 64


def test_log_n_scales_queries_beyond_the_trained_length_alone() -> None:
    layer = segment_layer({"log_n": True, "trained": 4})
    q = torch.randn(2, HEADS, 9, 8, dtype=torch.float64)
    factor = (layer.positions.scale_queries(q, range(9)) / q)[0, 0, :, 0]
    expected = [max(1.0, math.log(i + 1) / math.log(4)) for i in range(9)]
    torch.testing.assert_close(factor, torch.tensor(expected, dtype=torch.float64))


def test_t5_buckets_end_at_the_farthest_distance() -> None:
    buckets = t5_buckets(32, 128)
    assert buckets[:17].tolist() == list(range(17))
    assert buckets[-1] == 31
    assert (buckets.diff() >= 0).all()
    for distance in range(16, 128):
        assert buckets[distance] == min(16 + math.floor(math.log(distance / 16) / math.log(8) * 16), 31)


def test_kerple_s_weights_keep_their_gradient_at_the_bound() -> None:
    kerple, at = Kerple(2), torch.arange(5)
    with torch.no_grad():
        kerple.bias_p.fill_(-3.0)
        kerple.bias_a.fill_(0.5)
    before = kerple.bias_p.clone()
    bias = kerple.bias(torch.zeros(1, 2, 5, 4), at, at)
    torch.testing.assert_close(bias[0, 4, 0], -torch.tensor(0.01 * math.log(3)))
    bias.sum().backward()
    assert kerple.bias_p.grad is not None
    assert kerple.bias_p.grad.all()
    assert torch.equal(kerple.bias_p, before)


def test_fire_in_a_window_stops_counting_where_the_window_is_full() -> None:
    fire = Fire(2, 4.0, context=8, hidden=3)
    q = torch.zeros(1, 2, 1, 4)
    near, far, farther = (fire.bias(q, torch.tensor([i]), torch.tensor([i - 3])) for i in (5, 7, 1000))
    assert torch.equal(far, farther)
    assert not torch.equal(near, far)


def test_dape_s_convolution_is_that_of_a_longer_text() -> None:
    """All queries but the last ones are computed as in the published code, which pads where the text ends."""
    torch.manual_seed(0)
    dape = Dape(2, None, hidden=3, convolution=3).double()
    scores = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    scores = scores.masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -torch.inf)
    published, ours = (dape.combine(scores, None, going_on=going_on).tril() for going_on in (False, True))
    torch.testing.assert_close(ours[:, :, :5], published[:, :, :5])
    assert (ours[:, :, 5] - published[:, :, 5]).abs().max() > 1e-3
    shorter = dape.combine(scores[..., :4, :4], None, going_on=True)
    torch.testing.assert_close(shorter[:, :, 3], ours[:, :, 3, :4])


@pytest.mark.parametrize("time", [1, 3, 4, 11, 16])
@pytest.mark.parametrize("group", [1, 4, 5, 8])
def test_shifted_attention_is_a_mask_for_each_half_of_the_heads(time: int, group: int) -> None:
    q, k, v = (torch.randn(2, heads, time, 8, dtype=torch.float64) for heads in (4, 2, 2))
    at = torch.arange(time)
    same = torch.stack([(at + shift) // group for shift in (0, 0, group - group // 2, group - group // 2)])
    mask = (same[:, :, None] == same[:, None]) & (at[:, None] >= at)
    k_all, v_all = (part.repeat_interleave(2, dim=1) for part in (k, v))
    expected = F.scaled_dot_product_attention(q, k_all, v_all, mask)
    torch.testing.assert_close(shifted_attention(q, k, v, group), expected)


def test_shifted_attention_is_for_training_alone() -> None:
    layer, plain = segment_layer("rope", shifted=4), segment_layer("rope")
    x = text(16)
    assert torch.equal(layer(x, ())[0], plain(x, ())[0])
    assert (layer.train()(x, ())[0] - plain(x, ())[0]).abs().max() > 1e-3
    for shifted in (1, 9):
        with pytest.raises(ValueError, match=f"expected 2 to 8 groups .* found {shifted}"):
            segment_layer("rope", shifted=shifted)
    with pytest.raises(ValueError, match="plain causal attention"):
        segment_layer("alibi", shifted=2)


def test_queries_and_keys_may_be_normed() -> None:
    layer = segment_layer("none", qk_norm=True)
    with torch.no_grad():
        for part in (layer.q_norm, layer.k_norm):
            assert isinstance(part, nn.RMSNorm)
            part.weight.fill_(2.0)
    q, k, _ = layer.project(text())
    for part in (q, k):
        torch.testing.assert_close(
            part.square().mean(-1), torch.full_like(part[..., 0], 4), rtol=1e-4, atol=0
        )


# -- what is refused


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ({"kind": "coca"}, "counts distances: any but learned and coca"),
        ({"kind": "learned"}, "counts distances"),
        ({"scaling": "clex"}, "no scaling clex"),
        ({"draw": "pose"}, "no draw; found kind rope and draw pose"),
        ({"kind": "dape", "convolution": 3}, "convolution 1"),
        ({"kind": "cope"}, "sinks 0 with kind cope"),
    ],
)
def test_a_window_refuses_what_depends_on_the_whole_text(position: Position, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowAttention(WIDTH, HEADS, window=6, sinks=2, position=position)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ({"kind": "yarn"}, r"position\.kind: expected rope \| .* found 'yarn'"),
        ({"scalng": "yarn"}, r"scalng: unknown; .* did you mean position\.scaling\?"),
        ({"scaling": "yarn", "factor": "8"}, r"position\.factor: expected float \| NoneType, found '8'"),
        ({"scaling": "yarn", "factor": 0.5}, "factor: expected at least 1, found 0.5"),
        ({"factor": 8}, "position.factor has no effect with kind rope"),
        ({"kind": "alibi", "scaling": "yarn"}, "scaling has no effect with kind alibi"),
        ({"scaling": "linear", "beta_fast": 8}, "beta_fast has no effect with kind rope and scaling linear"),
        ({"near": 8}, "near has no effect with kind rope"),
        ({"far": "capped", "group": 8}, "group has no effect with kind rope and far capped"),
        ({"kind": "dape", "convolution": 2}, "convolution: expected an odd number, found 2"),
        ({"kind": "rope", "log_n": 1}, "log_n: expected bool, found 1"),
        ({"scaling": "clex", "far": "capped"}, "far: expected exact with scaling clex"),
        ({"kind": "t5", "buckets": 64, "farthest": 20}, "farthest: expected more than 32, found 20"),
        ({"scaling": "llama3", "low": 5}, "low: expected less than high, found 5.0 and 4.0"),
        ({"draw": "pose", "longest": 8}, "longest: expected at least the context 16, found 8"),
        ({"kind": "t5", "draw": "scale"}, r"draw: expected random or pose with kind t5, .*found scale"),
        ({"kind": "sandwich", "draw": "scale"}, "draw: expected random or pose with kind sandwich"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(position: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attention(WIDTH, HEADS, context=16, position=position)


def test_a_base_beside_the_kind_acts() -> None:
    inner = {"kind": "dape", "inner": "rope"}
    for position in ("rope", "xpos", inner):
        given, keyed = (
            Attention(WIDTH, HEADS, context=16, position=position, rope_base=5.0),
            Attention(
                WIDTH,
                HEADS,
                context=16,
                position={**inner, "base": 5.0} if position == inner else {"kind": position, "base": 5.0},
            ),
        )
        keyed.load_state_dict(given.state_dict())
        torch.testing.assert_close(given(text().float(), ())[0], keyed(text().float(), ())[0])


def test_a_context_is_needed_where_it_matters() -> None:
    for position in ({"scaling": "yarn"}, {"log_n": True}, "fire", "xpos", "sandwich"):
        with pytest.raises(ValueError, match="needs a context"):
            Attention(WIDTH, HEADS, position=position)
    for plain in ("rope", "none", "alibi", {"base": 5e5}):
        assert isinstance(Attention(WIDTH, HEADS, position=plain).positions, Positions)
