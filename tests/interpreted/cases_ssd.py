"""mamba_ssm's Triton kernels of SSD behind `backend: mamba_ssm`, interpreted, against the zoo's form:
layouts, types, initial and final states, gradients of all inputs."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.interpreted.compare import assert_same, draw, run
from zoo.memory.state_space.inputs import SSDInputs
from zoo.memory.state_space.ssd import ssd


@pytest.mark.parametrize(
    ("time", "groups", "dt_limit", "per_channel", "options"),
    [
        (1, 1, None, False, ()),
        (21, 2, (0.1, 0.9), True, ("D", "z", "dt_bias")),
        (37, 1, None, False, ("D", "dt_bias")),
    ],
)
@pytest.mark.parametrize("half", [False, True])
def test_the_wrapper_is_the_recurrence(
    time: int, groups: int, dt_limit: tuple[float, float] | None, per_channel: bool, options: tuple[str, ...],
    half: bool,
) -> None:  # fmt: skip
    """`half`: x, B, C and z in 16 bits, as under autocast; dt, A, D and the state are in float32."""
    per_token, per_group = (2, time, 4, 16), (2, time, groups, 16)
    tensors = draw(
        torch.float16 if half else torch.float32, x=per_token, z=per_token, B=per_group, C=per_group
    )
    D = (4, 16) if per_channel else (4,)
    tensors |= draw(torch.float32, dt=(2, time, 4), A=(4,), state=(2, 4, 16, 16), D=D, dt_bias=(4,))
    tensors["A"] = (-tensors["A"].detach().exp()).requires_grad_()
    tensors = {
        name: part for name, part in tensors.items() if name in {"x", "B", "C", "dt", "A", "state", *options}
    }

    def form(backend: str, **tensors: Tensor) -> tuple[Tensor, Tensor]:
        return ssd(SSDInputs(**tensors, dt_limit=dt_limit), chunk_size=16, backend=backend)

    result, expected = (run(partial(form, backend), tensors) for backend in ("mamba_ssm", "torch"))
    assert_same(result, expected, 5e-3 if half else 5e-6)
    assert result["after"].dtype == torch.float32
    assert {name: result[name].dtype for name in tensors} == {n: x.dtype for n, x in tensors.items()}


def test_the_state_is_carried_from_one_call_to_the_next() -> None:
    tensors = draw(torch.float32, x=(1, 40, 2, 16), dt=(1, 40, 2), B=(1, 40, 1, 16), C=(1, 40, 1, 16))
    rest = {"A": -torch.rand(2)}

    def read(part: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        inputs = {name: x.detach()[:, part] for name, x in tensors.items()}
        return ssd(SSDInputs(**inputs, **rest, state=state), chunk_size=16, backend="mamba_ssm")

    state = torch.randn(1, 2, 16, 16)
    y, after = read(slice(None), state)
    first, between = read(slice(23), state)
    second, end = read(slice(23, None), between)
    torch.testing.assert_close(torch.cat([first, second], dim=1), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end, after, rtol=1e-4, atol=1e-5)
