"""The causal convolution: its fast form equals the loop, wherever a text is cut."""

import pytest
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.memory.state_space.conv import CausalConv, causal_conv, causal_conv_loop


def draw(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("conv_size", [1, 2, 4, 7])
@pytest.mark.parametrize("time", [1, 2, 3, 9])
@pytest.mark.parametrize("biased", [True, False])
def test_the_fast_form_equals_the_loop(conv_size: int, time: int, biased: bool) -> None:
    x, weight, state = draw(2, time, 5), draw(5, conv_size, seed=1), draw(2, conv_size - 1, 5, seed=2)
    bias = draw(5, seed=3) if biased else None
    leaves = [leaf for leaf in (x, weight, state, bias) if leaf is not None]
    results = []
    for form in (causal_conv, causal_conv_loop):
        y, after = form(x, weight, bias, state)
        total = (y * draw(*y.shape, seed=4)).sum() + (after * draw(*after.shape, seed=5)).sum()
        results.append([y, after, *torch.autograd.grad(total, leaves)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cut", [1, 2, 5, 8])
def test_a_text_may_be_cut_anywhere(cut: int) -> None:
    x, weight, bias, state = draw(2, 9, 3), draw(3, 4, seed=1), draw(3, seed=2), draw(2, 3, 3, seed=3)
    y, end = causal_conv(x, weight, bias, state)
    first, between = causal_conv(x[:, :cut], weight, bias, state)
    second, after = causal_conv(x[:, cut:], weight, bias, between)
    torch.testing.assert_close(torch.cat([first, second], dim=1), y)
    torch.testing.assert_close(after, end)


def test_the_last_weight_meets_the_current_token() -> None:
    conv = CausalConv(1, 3).double()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[100.0, 10.0, 1.0]]))
        conv.bias.fill_(0.5)  # type: ignore[union-attr]
        y, state = conv(torch.tensor([[[1.0], [2.0], [3.0]]]).double(), conv.init_state(1))
    assert y.flatten().tolist() == [1.5, 12.5, 123.5]
    assert state.flatten().tolist() == [2.0, 3.0]


def test_the_state_keeps_its_dtype() -> None:
    conv = CausalConv(4, 4)
    y, state = conv(torch.randn(2, 5, 4).bfloat16(), conv.init_state(2))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_initial_weights_are_those_of_conv1d() -> None:
    torch.manual_seed(0)
    conv = CausalConv(4096, 4)
    for weight in (conv.weight, conv.bias):
        assert weight is not None
        assert weight.abs().max() <= 0.5
        assert weight.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.02)


def test_conv_size_is_checked() -> None:
    with pytest.raises(ValueError, match="conv_size must be at least 1, not 0"):
        CausalConv(4, 0)


def test_a_missing_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "causal_conv1d", None)
    with pytest.raises(UserError, match="expected the package causal-conv1d: pip install"):
        CausalConv(8, 4, backend="causal_conv1d")
