"""LSTM and GRU: torch.nn's layers and the papers' equations, whole and in pieces, and what surrounds them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.memory.state_space.gated_rnn import GatedRNN, GRUMixer, LSTMMixer
from zoo.state import leaves

WIDTH, HIDDEN_SIZE, ROWS, TIME = 5, 7, 3, 20
MIXERS: dict[str, Callable[[], GatedRNN]] = {
    "lstm": lambda: LSTMMixer(WIDTH, HIDDEN_SIZE),
    "gru": lambda: GRUMixer(WIDTH, HIDDEN_SIZE),
}
LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU}
CUTS = [[TIME], [1, TIME - 1], [7, 6, 7], [1] * TIME]


def made(name: str) -> tuple[Any, Tensor]:
    """A mixer in float64 with biases that aren't 0, and a text."""
    torch.manual_seed(0)
    mixer = MIXERS[name]().double()
    for weight in mixer.rnn.parameters():
        nn.init.normal_(weight, std=0.6)
    return mixer, torch.randn(ROWS, TIME, WIDTH, dtype=torch.float64)


def in_pieces(mixer: Any, x: Tensor, cuts: list[int]) -> tuple[Tensor, Any]:
    outputs, state = [], mixer.init_state(ROWS)
    for piece in x.split(cuts, dim=1):
        y, state = mixer(piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    names, weights = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: f"{len(cuts)} pieces")
@pytest.mark.parametrize("name", MIXERS)
def test_torch_s_layer_whatever_the_cuts(name: str, cuts: list[int]) -> None:
    """Outputs, last states and all gradients of a layer of torch.nn that reads the text at once."""
    mixer, x = made(name)
    layer = LAYERS[name](WIDTH, HIDDEN_SIZE, batch_first=True).double()
    layer.load_state_dict(mixer.rnn.state_dict())
    h, last = layer(x)
    last = last if name == "lstm" else (last,)
    expected = h @ mixer.out_proj.weight.T
    y, state = in_pieces(mixer, x, cuts)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(tuple(state), tuple(tensor[0] for tensor in last), rtol=0, atol=1e-12)

    dy, dstate = torch.randn_like(y), [torch.randn_like(leaf) for leaf in leaves(state)]

    def loss(outputs: Tensor, states: Any) -> Tensor:
        carried = sum((ds * s).sum() for ds, s in zip(dstate, states, strict=True))
        return (dy * outputs).sum() + carried

    actual = gradients(loss(y, state), mixer.rnn)
    torch.testing.assert_close(
        actual, gradients(loss(expected, [s[0] for s in last]), layer), rtol=0, atol=1e-11
    )


def lstm_equations(rnn: nn.LSTM, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    h = c = x.new_zeros(ROWS, HIDDEN_SIZE)
    outputs = []
    for x_t in x.unbind(1):
        gates = x_t @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + h @ rnn.weight_hh_l0.T + rnn.bias_hh_l0
        i, f, g, o = gates.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, dim=1), (h, c)


def gru_equations(rnn: nn.GRU, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    h = x.new_zeros(ROWS, HIDDEN_SIZE)
    outputs = []
    for x_t in x.unbind(1):
        r_x, z_x, n_x = (x_t @ rnn.weight_ih_l0.T + rnn.bias_ih_l0).chunk(3, dim=1)
        r_h, z_h, n_h = (h @ rnn.weight_hh_l0.T + rnn.bias_hh_l0).chunk(3, dim=1)
        r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
        h = (1 - z) * (n_x + r * n_h).tanh() + z * h
        outputs.append(h)
    return torch.stack(outputs, dim=1), (h,)


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_the_equations(name: str) -> None:
    mixer, x = made(name)
    h, state = {"lstm": lstm_equations, "gru": gru_equations}[name](mixer.rnn, x)
    y, last = mixer(x, mixer.init_state(ROWS))
    torch.testing.assert_close(y, h @ mixer.out_proj.weight.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(tuple(last), state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MIXERS)
def test_the_state_starts_at_zero(name: str) -> None:
    assert all(
        not leaf.any() and leaf.shape == (2, HIDDEN_SIZE) for leaf in leaves(MIXERS[name]().init_state(2))
    )


@pytest.mark.parametrize("name", MIXERS)
def test_initial_weights_are_those_of_all_models(name: str) -> None:
    torch.manual_seed(0)
    mixer: Any = {"lstm": LSTMMixer, "gru": GRUMixer}[name](64, 256)
    for weight, width in ((mixer.rnn.weight_ih_l0, 64), (mixer.rnn.weight_hh_l0, 256)):
        assert float(weight.detach().std()) == pytest.approx(width**-0.5, rel=0.03)
    assert not mixer.rnn.bias_hh_l0.any()
    ones = torch.zeros(len(mixer.rnn.bias_ih_l0))
    if name == "lstm":
        ones[256:512] = 1.0
    assert torch.equal(mixer.rnn.bias_ih_l0, ones)


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_under_autocast_the_recurrence_stays_in_float32(name: str) -> None:
    """Over 2,000 tokens the state is that of a text read without autocast, bit for bit."""
    torch.manual_seed(0)
    mixer = MIXERS[name]()
    x = torch.randn(1, 2000, WIDTH).bfloat16()
    _, exact = mixer(x.float(), mixer.init_state(1))
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x, mixer.init_state(1))
    assert y.dtype == torch.bfloat16
    for leaf, expected in zip(leaves(state), leaves(exact), strict=True):
        assert leaf.dtype == torch.float32
        assert torch.equal(leaf, expected)


@pytest.mark.parametrize("name", MIXERS)
def test_eval_mode_leaves_the_recurrent_layer_in_train_mode(name: str) -> None:
    """cuDNN refuses gradients of a recurrent layer in eval mode."""
    mixer = MIXERS[name]().eval()
    assert not mixer.training
    assert mixer.rnn.training
    assert mixer.rnn.dropout == 0
