"""The CUDA kernels against the PyTorch forms: outputs, final states, gradients, the initial state's included.

pip install --no-build-isolation -c constraints/cuda.txt mamba-ssm causal-conv1d
python -m pytest -m gpu tests/memory/state_space/test_mamba_kernels.py
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.memory.state_space import kernels
from zoo.memory.state_space.conv import causal_conv
from zoo.memory.state_space.inputs import ScanInputs, SSDInputs
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.memory.state_space.selective_scan import Backend, selective_scan
from zoo.memory.state_space.ssd import ssd

Tensors = dict[str, Tensor]
TIMES = [1, 2, 3, 64, 257]  # fewer than conv_size, a chunk, and no multiple of a chunk


def draw(seed: int, **shapes: tuple[int, ...]) -> Tensors:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=rng).cuda().requires_grad_() for name, shape in shapes.items()}


def run(form: Any, tensors: Tensors) -> list[Tensor]:
    """Output, last state, and the gradients through both."""
    y, after = form(**tensors)
    rng = torch.Generator().manual_seed(9)
    total = sum((x * torch.randn(x.shape, generator=rng).to(x)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(total, list(tensors.values()))]


def assert_close(results: list[Tensor], references: list[Tensor], tolerance: float) -> None:
    """`tolerance` is relative to each tensor's largest entry."""
    for index, (result, expected) in enumerate(zip(results, references, strict=True)):
        assert result.dtype == expected.dtype
        gap, largest = (result - expected).abs().max(), expected.abs().max()
        assert gap <= tolerance * largest + 1e-6, f"tensor {index}: off by {gap:.2g} of {largest:.2g}"


@pytest.mark.gpu
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("conv_size", [2, 3, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_causal_conv1d(time: int, conv_size: int, biased: bool) -> None:
    shapes = {"x": (2, time, 24), "weight": (24, conv_size), "state": (2, conv_size - 1, 24), "bias": (24,)}
    tensors, options = draw(0, **shapes), {} if biased else {"bias": None}
    tensors = {name: x for name, x in tensors.items() if name not in options}
    torch_form, kernel = (partial(causal_conv, backend=b, **options) for b in ("torch", "causal_conv1d"))
    assert_close(run(kernel, tensors), run(torch_form, tensors), 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("options", [(), ("D",), ("z",), ("D", "z", "dt_bias")])
def test_selective_scan(time: int, groups: int, options: tuple[str, ...]) -> None:
    shapes: dict[str, tuple[int, ...]] = {"u": (2, time, 8), "dt": (2, time, 8), "state": (2, 8, 16)}
    shapes |= {"B": (2, time, groups, 16), "C": (2, time, groups, 16), "A": (8, 16)}
    shapes |= {n: s for n, s in (("D", (8,)), ("z", (2, time, 8)), ("dt_bias", (8,))) if n in options}
    tensors = draw(0, **shapes)
    tensors["A"] = (-tensors["A"].detach().exp()).requires_grad_()

    def scan(backend: Backend, **tensors: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(ScanInputs(**tensors), backend=backend)

    results, references = (run(partial(scan, backend), tensors) for backend in ("mamba_ssm", "torch"))
    assert_close(results, references, 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dt_limit", [None, (0.1, 0.9)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_ssd(time: int, groups: int, dt_limit: tuple[float, float] | None, per_channel: bool) -> None:
    """The kernel multiplies in TF32 even with float32 inputs."""
    shapes: dict[str, tuple[int, ...]] = {"x": (2, time, 4, 64), "dt": (2, time, 4), "A": (4,)}
    shapes |= {"B": (2, time, groups, 32), "C": (2, time, groups, 32), "state": (2, 4, 64, 32)}
    shapes |= {"D": (4, 64) if per_channel else (4,), "dt_bias": (4,), "z": (2, time, 4, 64)}
    tensors = draw(0, **shapes)
    tensors["A"] = (-tensors["A"].detach().exp()).requires_grad_()

    def recurrence(backend: Backend, **tensors: Tensor) -> tuple[Tensor, Tensor]:
        return ssd(SSDInputs(**tensors, dt_limit=dt_limit), chunk_size=64, backend=backend)

    results, references = (run(partial(recurrence, backend), tensors) for backend in ("mamba_ssm", "torch"))
    assert_close(results, references, 1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("build", [partial(MambaMixer, 32, 64), partial(Mamba2Mixer, 32, 4, head_dim=16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixers(build: Any, dtype: torch.dtype) -> None:
    """Also under bf16 autocast, and cut anywhere."""
    torch.manual_seed(0)
    mixer, kernel = build().cuda(), build(backend="mamba_ssm").cuda()
    kernel.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 100, 32, generator=torch.Generator().manual_seed(1)).cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y, end = mixer(x, mixer.init_state(2))
        first, state = kernel(x[:, :37], kernel.init_state(2))
        second, state = kernel(x[:, 37:], state)
    results, references = [torch.cat([first, second], dim=1), *state], [y, *end]
    assert_close([part.float() for part in results], [part.float() for part in references], 3e-2)


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        ("causal_conv", {"x": (1, 3, 8), "weight": (8, 4), "bias": (8,), "state": (1, 3, 8)}),
        (
            "selective_scan",
            {
                "u": (1, 3, 4),
                "dt": (1, 3, 4),
                "A": (4, 2),
                "B": (1, 3, 1, 2),
                "C": (1, 3, 1, 2),
                "state": (1, 4, 2),
            },
        ),
    ],
)
def test_kernels_stay_on_the_gpu(
    form: str, shapes: dict[str, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "require", lambda *_: None)
    with pytest.raises(UserError, match=r"expected a CUDA device for the kernels of .*, found cpu"):
        getattr(kernels, form)(**{name: torch.zeros(shape) for name, shape in shapes.items()})


def test_the_limits_of_causal_conv1d_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "require", lambda *_: None)
    x = torch.zeros(1, 3, 12)
    with pytest.raises(UserError, match=r"a conv_size of 2 to 4 .* found 12 channels and a conv_size of 5"):
        kernels.causal_conv(x, torch.zeros(12, 5), None, torch.zeros(1, 4, 12))
