"""The moving average in chunks against its loop: values, gradients, and the precision of long texts."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from zoo.memory.state_space.complex_ema import CHUNK, Coefficients, ComplexEMA, ema, ema_loop


def build(width: int, states: int, seed: int = 0) -> ComplexEMA:
    """In float64, every parameter perturbed."""
    torch.manual_seed(seed)
    layer = ComplexEMA(width, states).double()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(torch.randn_like(weight))
    return layer


def weighted_sum(*parts: Tensor) -> Tensor:
    """With a different weight for every entry."""
    flat = [(torch.view_as_real(part) if part.is_complex() else part).flatten() for part in parts]
    return torch.stack([part @ torch.linspace(-1, 2, len(part), dtype=part.dtype) for part in flat]).sum()


@pytest.mark.parametrize("time", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 4 * CHUNK + 7])
@pytest.mark.parametrize(("rows", "width", "states"), [(1, 1, 1), (3, 5, 4), (2, 3, 16)])
def test_chunks_equal_the_loop_in_values_and_gradients(time: int, rows: int, width: int, states: int) -> None:
    layer = build(width, states)
    results = []
    for form in (ema_loop, ema):
        torch.manual_seed(1)
        x = torch.randn(rows, time, width, dtype=torch.float64, requires_grad=True)
        h = torch.randn(rows, width, states, dtype=torch.complex128, requires_grad=True)
        y, after = form(x, layer.coefficients(), h)
        grads = torch.autograd.grad(weighted_sum(y, after), [x, h, *layer.parameters()])
        results.append([y, after, *grads])
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_loop_is_the_papers_sum() -> None:
    """y_t = sum_j k_{t-j} x_j + omega x_t + sum_n Re(g q^{t+1} h), each power by Python's complex numbers."""
    layer, time = build(2, 3), 6
    x, h = torch.randn(1, time, 2, dtype=torch.float64), torch.randn(1, 2, 3, dtype=torch.complex128)
    y, after = ema_loop(x, layer.coefficients(), h)

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    for d in range(2):
        alpha, delta = layer.alpha[d].tolist(), layer.delta[d].tolist()
        step = sigmoid(layer.theta[d].item()) * 2 * math.pi / 3
        p = [sigmoid(a) for a in alpha]
        r = [1 - sigmoid(a) * sigmoid(b) for a, b in zip(alpha, delta, strict=True)]
        q = [r[n] * complex(math.cos((n + 1) * step), math.sin((n + 1) * step)) for n in range(3)]
        g = [complex(*pair) / math.sqrt(3) for pair in layer.gamma[d].tolist()]
        start, past = h[0, d].tolist(), x[0, :, d].tolist()
        for t in range(time):
            h_t = [
                q[n] ** (t + 1) * start[n] + sum(p[n] * q[n] ** (t - j) * past[j] for j in range(t + 1))
                for n in range(3)
            ]
            expected = sum((g[n] * h_t[n]).real for n in range(3)) + layer.omega[d].item() * past[t]
            assert y[0, t, d].item() == pytest.approx(expected, abs=1e-12)
        assert after[0, d].tolist() == pytest.approx(h_t, abs=1e-12)


@torch.no_grad()
def test_a_text_may_be_cut_anywhere() -> None:
    layer = build(4, 3)
    x = torch.randn(2, 100, 4, dtype=torch.float64)
    expected, end = layer(x, layer.init_state(2))
    for lengths in ([50, 50], [1] * 100, [33, 1, 66], [7, 93]):
        state, outputs = layer.init_state(2), []
        for piece in x.split(lengths, dim=1):
            y, state = layer(piece, state)
            outputs.append(y)
        torch.testing.assert_close(
            (torch.cat(outputs, dim=1), state), (expected, end), rtol=1e-10, atol=1e-10
        )


# alpha, delta: decays q near 0 and rounded to 0, in between, near 1 and rounded to 1
DECAYS = [(30, 30), (40, 40), (100, 100), (0, 0), (-3, 3), (5, -8), (-6, -6), (0, -20), (-20, 0), (20, -60)]
ANGLES = [-20.0, -3.0, 0.0, 2.0, 5.0, 20.0]


def with_decay(alpha: float, delta: float) -> ComplexEMA:
    torch.manual_seed(0)
    layer = ComplexEMA(len(ANGLES), 16)
    with torch.no_grad():
        layer.alpha.fill_(alpha)
        layer.delta.fill_(delta)
        layer.theta.copy_(torch.tensor(ANGLES))
        layer.gamma.normal_()
    return layer


DTYPES = (torch.float32, torch.bfloat16)


@cache
def loop_over_8192_tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x of two rows, the initial state, and the loop's outputs and last state in float64: rows (2 per dtype),
    decays and channels on separate axes; all DECAYS are channels of one loop."""
    layers = [with_decay(*decay) for decay in DECAYS]
    x = torch.randn(2, 8192, len(ANGLES))
    h = torch.randn(2, len(ANGLES), 16, dtype=torch.complex64)
    with torch.no_grad():
        fields = zip(*(layer.coefficients() for layer in layers), strict=True)
        coefficients = Coefficients(*(torch.cat(field) for field in fields))
        rows = torch.cat([x.to(dtype).double() for dtype in DTYPES]).repeat(1, 1, len(DECAYS))
        initial = h.to(torch.complex128).repeat(len(DTYPES), len(DECAYS), 1)
        expected, end = ema_loop(rows, coefficients, initial)
    return x, h, expected.unflatten(2, (len(DECAYS), -1)), end.unflatten(1, (len(DECAYS), -1))


@pytest.mark.parametrize(("alpha", "delta"), DECAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_texts_at_any_decay(alpha: float, delta: float, dtype: torch.dtype) -> None:
    """8192 tokens at float32 against the loop at float64, relative to the largest entry: below 1e-4 (measured
    4.5e-5 where nothing decays; the loop at float32 has 2.4e-4), and below 1e-6 where |q| <= 0.9.  Outputs of
    bf16 inputs are rounded to bf16; the state is as exact as that of float32's.  Gradients are finite."""
    layer, (x, h, outputs, last) = with_decay(alpha, delta), loop_over_8192_tokens()
    rows, decay = DTYPES.index(dtype) * 2, DECAYS.index((alpha, delta))
    expected, end = outputs[rows : rows + 2, :, decay], last[rows : rows + 2, decay]
    x = x.to(dtype, copy=True).requires_grad_()
    y, after = layer(x, h)
    assert y.dtype == dtype
    assert after.dtype == torch.complex64
    abs_q = layer.coefficients().log_abs_q.exp().max().item()
    bound = 1e-6 if abs_q <= 0.9 else 1e-4
    rounding = 2**-8 * expected.abs() if dtype == torch.bfloat16 else 0
    assert ((y - expected).abs() <= bound * expected.abs().max() + rounding).all()
    assert (after - end).abs().max() <= bound * end.abs().max()
    for grad in torch.autograd.grad(y.float().sum() + after.abs().sum(), [x, *layer.parameters()]):
        assert grad.isfinite().all()


@pytest.mark.parametrize(("alpha", "delta"), [(0, 0), (5, -8), (-6, -6), (30, 30)])
def test_gradients_of_a_long_text_at_float32(alpha: float, delta: float) -> None:
    """2048 tokens against the float64 loop, each gradient relative to its largest entry."""
    torch.manual_seed(1)
    x, weights, results = torch.randn(1, 2048, len(ANGLES)), torch.randn(1, 2048, len(ANGLES)), []
    for form, dtype in ((ema_loop, torch.float64), (ema, torch.float32)):
        layer = with_decay(alpha, delta).to(dtype)
        inputs = x.detach().to(dtype, copy=True).requires_grad_()
        y, after = form(inputs, layer.coefficients(), layer.init_state(1))
        total = (y * weights.to(dtype)).sum() + torch.view_as_real(after).sum()
        results.append(torch.autograd.grad(total, [inputs, *layer.parameters()]))
    for expected, grad in zip(*results, strict=True):
        assert (grad - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1e-9)


def test_autocast_leaves_the_average_alone() -> None:
    layer = build(4, 3).float()
    x = torch.randn(2, 40, 4)
    expected = layer(x, layer.init_state(2))
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(x, layer.init_state(2))
    assert torch.equal(result[0], expected[0])
    assert torch.equal(result[1], expected[1])
    assert layer.bfloat16().init_state(2).dtype == torch.complex64


def test_initial_weights_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    layer = ComplexEMA(64, 16)
    rates = layer.theta.detach().sigmoid().sort(descending=True).values
    torch.testing.assert_close(rates, 64.0 ** (-torch.arange(1, 65) / 64), rtol=1e-4, atol=0)
    assert not layer.gamma[..., 1].any()
    assert layer.gamma[..., 0].std().item() == pytest.approx(1, rel=0.1)
    for weight in (layer.alpha, layer.delta):
        assert weight.std().item() == pytest.approx(0.2, rel=0.1)
    assert layer.omega.abs().max() <= 1
    assert isinstance(layer.coefficients(), Coefficients)
    assert ComplexEMA(1, 2).theta.isfinite().all()
