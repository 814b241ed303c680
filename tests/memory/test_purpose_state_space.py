"""What a gated recurrence is for: to hold what it is told to hold, as long as it takes, and to replace it.

Held without training, on the mixers of configs/model.  Weights are set so that a token with a mark is written
and others are not; the rest, as shapes, limits and decays, is as configured.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.memory.configured import catches, configured, parts
from zoo.memory.state_space.complex_ema import Coefficients, ComplexEMA
from zoo.memory.state_space.conv import CausalConv
from zoo.memory.state_space.gated_rnn import GRUMixer, LSTMMixer
from zoo.memory.state_space.griffin_block import RecurrentBlock
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer
from zoo.memory.state_space.mamba_mixer import MambaMixer

WRITTEN, CLOSED = 60.0, -60.0  # of a gate before its sigmoid or softplus, for tokens with and without a mark
WIDTH = 64  # of size=micro
MARK, ONE = 0, 1  # entries of a token: the mark, and a constant 1; the other entries are content


def tokens(count: int, marked: bool = False, seed: int = 0) -> Tensor:
    """Random tokens (1, count, width), with positive content."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, count, WIDTH, generator=generator, dtype=torch.float64)
    x[..., MARK], x[..., ONE] = float(marked), 1.0
    return x


def without_mixing(conv: CausalConv) -> None:
    """A convolution that returns its input."""
    for weight in conv.parameters():
        weight.zero_()
    weights = [weight for weight in conv.parameters() if weight.ndim > 1]
    weights[0][..., -1] = 1.0


def mark_mamba(mixer: MambaMixer) -> None:
    """dt = softplus(60) for marked tokens and softplus(-60) for others, also behind Jamba's norm."""
    without_mixing(mixer.conv)
    mixer.in_proj.weight[: mixer.channels] = torch.eye(mixer.channels, WIDTH)
    mixer.select.weight.zero_()
    mixer.select.weight[0, MARK] = mixer.select.weight[1, ONE] = 1.0  # r
    mixer.select.weight[mixer.dt_rank :, ONE] = 1.0  # B and C
    r = mixer.select(F.silu(tokens(1, True) @ mixer.in_proj.weight[: mixer.channels].mT))[
        0, 0, : mixer.dt_rank
    ]
    mixer.dt_weight.zero_()
    mixer.dt_weight[:, 0] = (WRITTEN - CLOSED) / mixer.dt_norm(r)[0]
    mixer.dt_bias.fill_(CLOSED)


def mark_mamba2(mixer: Mamba2Mixer) -> None:
    without_mixing(mixer.conv)
    dt = mixer.in_proj.weight[-mixer.heads :]
    dt.zero_()
    dt[:, MARK] = WRITTEN - CLOSED
    mixer.dt_bias.fill_(CLOSED)


def mark_griffin(block: RecurrentBlock) -> None:
    """r = 1 for marked tokens, which forgets all before (a = e^-480), and r = 0 for others."""
    without_mixing(block.conv)
    block.in_proj.weight.copy_(torch.eye(WIDTH))
    block.in_proj.bias.zero_()
    gate, block_width = block.unit.decay_gate, block.unit.decay_gate.weight.shape[1]
    block.in_proj.weight[::block_width] = torch.eye(WIDTH)[MARK]  # the gate's matrix is block-diagonal
    gate.weight.zero_()
    gate.weight[:, 0] = WRITTEN - CLOSED
    gate.bias.fill_(CLOSED)
    block.unit.rate.fill_(WRITTEN)


def mark_lstm(mixer: LSTMMixer) -> None:
    """Input gates open and forget gates closed for marked tokens, and the reverse for others."""
    i, f, *_ = mixer.rnn.weight_ih_l0.chunk(4)
    for weight in (i, f, mixer.rnn.weight_hh_l0, mixer.rnn.bias_ih_l0):
        weight.zero_()
    i[:, MARK], i[:, ONE] = WRITTEN - CLOSED, CLOSED
    f[:, MARK], f[:, ONE] = CLOSED - WRITTEN, WRITTEN


def mark_gru(mixer: GRUMixer) -> None:
    """z = 0 for marked tokens and 1 for others; r = 0."""
    r, z, _ = mixer.rnn.weight_ih_l0.chunk(3)
    for weight in (r, z, mixer.rnn.bias_ih_l0):
        weight.zero_()
    r[:, ONE] = CLOSED
    z[:, MARK], z[:, ONE] = CLOSED - WRITTEN, WRITTEN
    mixer.rnn.weight_hh_l0[: 2 * mixer.rnn.hidden_size] = 0.0


MIXERS: dict[str, tuple[type[nn.Module], Callable[[Any], None], str]] = {
    "mamba": (MambaMixer, mark_mamba, "ssm"),
    "samba": (MambaMixer, mark_mamba, "ssm"),
    "jamba": (MambaMixer, mark_mamba, "ssm"),
    "mamba2": (Mamba2Mixer, mark_mamba2, "ssm"),
    "mamba2_hybrid": (Mamba2Mixer, mark_mamba2, "ssm"),
    "griffin": (RecurrentBlock, mark_griffin, "h"),
    "lstm": (LSTMMixer, mark_lstm, "c"),
    "gru": (GRUMixer, mark_gru, "h"),
}


@torch.no_grad()
def marked(name: str) -> tuple[Any, str]:
    """The model's first recurrent mixer, told to write what is marked, and its state's field."""
    kind, mark, field = MIXERS[name]
    mixer = parts(configured(name), kind)[0]
    mark(mixer)
    return mixer, field


@torch.no_grad()
def holds_what_is_marked(mixer: Any, field: str) -> None:
    """After a marked token and 2,000 others the state is that of the marked token, and after a second one
    that of the second, whatever came before."""

    def after(*texts: Tensor) -> Tensor:
        state: Tensor = getattr(mixer(torch.cat(texts, dim=1), mixer.init_state(1))[1], field)
        return state

    first, second, others = tokens(1, True, seed=1), tokens(1, True, seed=2), tokens(2000, seed=3)
    alone = after(first)
    size = alone.abs().max().item()
    assert (alone - after(second)).abs().max() > 0.01 * size > 0
    torch.testing.assert_close(after(first, others), alone, rtol=0, atol=1e-9 * size)
    rewritten = after(others[:, :50], second, others[:, :50], first, others[:, :50])
    torch.testing.assert_close(rewritten, alone, rtol=0, atol=1e-9 * size)


@pytest.mark.parametrize("name", MIXERS)
def test_a_marked_token_is_held_and_replaced(name: str) -> None:
    holds_what_is_marked(*marked(name))


def averages(alpha: float, delta: float) -> ComplexEMA:
    """Megalodon's averages without rotation."""
    ema = parts(configured("megalodon"), ComplexEMA)[0]
    with torch.no_grad():
        ema.alpha.fill_(alpha)
        ema.delta.fill_(delta)
        ema.theta.fill_(CLOSED)
    return ema


@torch.no_grad()
def keeps_a_share(ema: Any, p: float, decay: float, time: int = 1000) -> None:
    """An average holds what was there by |q| = `decay` a token, and takes in each token by `p`."""
    x = tokens(time, seed=4)
    before = torch.full_like(ema.init_state(1), 2.0)
    weights = p * decay ** torch.arange(time - 1, -1, -1, dtype=torch.float64)
    expected = decay**time * before + (weights[:, None] * x[0]).sum(0)[:, None]
    torch.testing.assert_close(ema(x, before)[1], expected, rtol=1e-9, atol=1e-9)


AVERAGES = {  # alpha, delta: p, |q|
    "holds": (CLOSED, 0.0, 0.0, 1.0),
    "replaces": (WRITTEN, WRITTEN, 1.0, 0.0),
    "sums": (WRITTEN, CLOSED, 1.0, 1.0),
    "halves": (0.0, WRITTEN, 0.5, 0.5),
    "fades": (0.0, -4.0, 0.5, 1 - 0.5 / (1 + math.exp(4.0))),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_at_the_extremes_of_its_gates(name: str) -> None:
    alpha, delta, p, decay = AVERAGES[name]
    keeps_a_share(averages(alpha, delta), p, decay)


# -- wrong memories -----------------------------------------------------------------------------------


def ignores_the_token(mixer: Any) -> None:
    """dt is a constant of the channel, as before Mamba."""
    mixer.dt_weight.zero_()
    mixer.dt_bias.fill_(-3.0)


def never_forgets(mixer: Any) -> None:
    """A = 0: what is written is added to what is there."""
    mixer.A_log.fill_(-80.0)


def forgets_by_the_clock(mixer: Any) -> None:
    """A decay of at least 1e-3 a token, whatever its gate."""
    mixer.dt_bias.fill_(-7.0)


def never_opens(block: Any) -> None:
    """The unit's decay hears nothing of the token."""
    block.unit.decay_gate.weight.zero_()


def adds_to_the_cell(mixer: LSTMMixer) -> None:
    """The LSTM of 1997, without forget gates."""
    mixer.rnn.bias_ih_l0.chunk(4)[1].fill_(3 * WRITTEN)


def forgets_by_its_bias(mixer: LSTMMixer) -> None:
    """Forget gates of at most sigmoid(8)."""
    mixer.rnn.bias_ih_l0.chunk(4)[1].fill_(8 - WRITTEN)


def mixes_by_halves(mixer: GRUMixer) -> None:
    """z = 1/2 whatever the token."""
    mixer.rnn.weight_ih_l0.chunk(3)[1].zero_()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mamba", ignores_the_token),
        ("mamba", never_forgets),
        ("jamba", forgets_by_the_clock),
        ("mamba2", never_forgets),
        ("mamba2", forgets_by_the_clock),
        ("griffin", never_opens),
        ("lstm", adds_to_the_cell),
        ("lstm", forgets_by_its_bias),
        ("gru", mixes_by_halves),
    ],
)
@torch.no_grad()
def test_a_recurrence_that_cannot_hold_or_replace_is_caught(name: str, change: Callable[[Any], None]) -> None:
    mixer, field = marked(name)
    change(mixer)
    assert catches(lambda wrong: holds_what_is_marked(wrong, field), mixer)


class Undamped(ComplexEMA):
    """Its decay is that of an ordinary average, 1 - p, without the damping delta."""

    def coefficients(self) -> Coefficients:
        self.delta.fill_(WRITTEN)
        return super().coefficients()


def test_an_average_without_damping_is_caught() -> None:
    alpha, delta, p, decay = AVERAGES["fades"]
    right = averages(alpha, delta)
    ema = Undamped(right.width, right.state_size).double()
    ema.load_state_dict(right.state_dict())
    assert catches(lambda wrong: keeps_a_share(wrong, p, decay), ema)
