"""The zoo's Triton kernel of the selective scan against the loop that defines it, interpreted."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.interpreted.compare import assert_same, draw, run
from zoo.memory.state_space.inputs import ScanInputs
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.memory.state_space.selective_scan import selective_scan, selective_scan_loop
from zoo.models.mamba import Mamba


def scan(backend: str, **tensors: Tensor) -> tuple[Tensor, Tensor]:
    inputs = ScanInputs(**tensors)
    return selective_scan_loop(inputs) if backend == "loop" else selective_scan(inputs, backend=backend)


@pytest.mark.parametrize(
    ("rows", "time", "groups", "channels", "states"),
    [
        (1, 1, 1, 5, 3),  # one token, and no power of 2
        (2, 32, 1, 32, 16),  # a whole chunk, a whole block
        (2, 37, 2, 80, 4),  # two chunks; groups of more than one block
        (1, 65, 1, 33, 1),  # three chunks; a block of one channel
    ],
)
def test_the_kernel_is_the_loop(rows: int, time: int, groups: int, channels: int, states: int) -> None:
    per_token, per_group = (rows, time, channels), (rows, time, groups, states)
    shapes = {"u": per_token, "dt": per_token, "z": per_token, "B": per_group, "C": per_group}
    shapes |= {"A": (channels, states), "state": (rows, channels, states), "D": (channels,)}
    tensors = draw(torch.float64, **shapes, dt_bias=(channels,))
    tensors["A"] = (-tensors["A"].detach().exp()).requires_grad_()
    assert_same(run(partial(scan, "triton"), tensors), run(partial(scan, "loop"), tensors), 1e-13)


def test_decays_that_underflow_are_no_error() -> None:
    tensors = draw(torch.float32, u=(1, 40, 3), dt=(1, 40, 3), A=(3, 2), B=(1, 40, 1, 2), C=(1, 40, 1, 2))
    tensors |= draw(torch.float32, state=(1, 3, 2))
    tensors["A"] = torch.full((3, 2), -1e4).requires_grad_()
    assert_same(run(partial(scan, "triton"), tensors), run(partial(scan, "loop"), tensors), 1e-5)


def test_a_mixer_is_cut_anywhere_and_keeps_its_types() -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(16, 40, state_size=3, norm_eps=1e-6)
    kernel = MambaMixer(16, 40, state_size=3, norm_eps=1e-6, backend="triton")
    kernel.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 40, 16)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            y, end = mixer(x, mixer.init_state(2))
            first, state = kernel(x[:, :37], kernel.init_state(2))
            second, state = kernel(x[:, 37:], state)
        assert (second.dtype, state.ssm.dtype) == (y.dtype, end.ssm.dtype) == (dtype, torch.float32)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        for result, expected in ((torch.cat([first, second], dim=1), y), (state.ssm, end.ssm)):
            assert (result - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_model_trains_alike() -> None:
    torch.manual_seed(0)
    plain, kernel = (Mamba(11, 8, 2, 16, 24, backend=backend) for backend in ("torch", "triton"))
    kernel.load_state_dict(plain.state_dict())
    tokens = torch.randint(11, (2, 24))
    for model in (plain, kernel):
        logits, _ = model(tokens, model.init_state(2))
        logits.logsumexp(-1).sum().backward()
    for (name, expected), weight in zip(plain.named_parameters(), kernel.parameters(), strict=True):
        gap = (weight.grad - expected.grad).abs().max()
        assert gap <= 1e-5 * expected.grad.abs().max(), name
