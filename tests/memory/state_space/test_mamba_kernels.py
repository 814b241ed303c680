"""The CUDA kernels against our own forms: outputs, final states, gradients, the initial state's included.

pip install --no-build-isolation -c constraints/cuda.txt mamba-ssm causal-conv1d
python -m pytest -m gpu tests/memory/test_mamba_kernels.py
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.memory import kernels
from zoo.memory.state_space.conv import causal_conv
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.memory.state_space.selective_scan import selective_scan
from zoo.memory.state_space.ssd import ssd

Tensors = dict[str, Tensor]
TIMES = [1, 2, 3, 64, 257]  # fewer than the taps, a chunk, and what no chunk divides


def drawn(seed: int, **shapes: tuple[int, ...]) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=random).cuda().requires_grad_() for name, shape in shapes.items()
    }


def learnt(form: Any, tensors: Tensors) -> list[Tensor]:
    y, after = form(**tensors)
    random = torch.Generator().manual_seed(9)
    total = sum((x * torch.randn(x.shape, generator=random).to(x)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(total, list(tensors.values()))]


def agree(kernel: list[Tensor], own: list[Tensor], within: float) -> None:
    """Within a share of each tensor's largest entry."""
    for place, (found, expected) in enumerate(zip(kernel, own, strict=True)):
        assert found.dtype == expected.dtype
        gap, largest = (found - expected).abs().max(), expected.abs().max()
        assert gap <= within * largest + 1e-6, f"tensor {place}: off by {gap:.2g} of {largest:.2g}"


@pytest.mark.gpu
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("taps", [2, 3, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_causal_conv1d(time: int, taps: int, biased: bool) -> None:
    tensors = drawn(0, x=(2, time, 24), weight=(24, taps), tail=(2, taps - 1, 24), bias=(24,))
    options = {} if biased else {"bias": None}
    tensors = {name: x for name, x in tensors.items() if name not in options}
    own, kernel = (partial(causal_conv, backend=b, **options) for b in ("torch", "causal_conv1d"))
    agree(learnt(kernel, tensors), learnt(own, tensors), 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("options", [(), ("skip",), ("gate",), ("skip", "gate", "bias")])
def test_selective_scan(time: int, groups: int, options: tuple[str, ...]) -> None:
    shapes: dict[str, tuple[int, ...]] = {"u": (2, time, 8), "delta": (2, time, 8), "state": (2, 8, 16)}
    shapes |= {"write": (2, time, groups, 16), "read": (2, time, groups, 16), "rates": (8, 16)}
    shapes |= {n: s for n, s in (("skip", (8,)), ("gate", (2, time, 8)), ("bias", (8,))) if n in options}
    tensors = drawn(0, **shapes)
    tensors["rates"] = (-tensors["rates"].detach().exp()).requires_grad_()
    own, kernel = (partial(selective_scan, backend=b) for b in ("torch", "mamba_ssm"))
    agree(learnt(kernel, tensors), learnt(own, tensors), 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("limits", [None, (0.1, 0.9)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_ssd(time: int, groups: int, limits: tuple[float, float] | None, per_channel: bool) -> None:
    """The kernel multiplies in TF32 even where it is given float32."""
    shapes: dict[str, tuple[int, ...]] = {"x": (2, time, 4, 64), "dt": (2, time, 4), "rates": (4,)}
    shapes |= {"write": (2, time, groups, 32), "read": (2, time, groups, 32), "state": (2, 4, 64, 32)}
    shapes |= {"skip": (4, 64) if per_channel else (4,), "bias": (4,), "gate": (2, time, 4, 64)}
    tensors = drawn(0, **shapes)
    tensors["rates"] = (-tensors["rates"].detach().exp()).requires_grad_()
    own, kernel = (partial(ssd, backend=b, limits=limits, chunk_size=64) for b in ("torch", "mamba_ssm"))
    agree(learnt(kernel, tensors), learnt(own, tensors), 1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("made", [partial(MambaMixer, 32, 64), partial(Mamba2Mixer, 32, 4, head_dim=16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixers(made: Any, dtype: torch.dtype) -> None:
    """Also under bf16 autocast, and cut anywhere."""
    torch.manual_seed(0)
    own, kernel = made().cuda(), made(backend="mamba_ssm").cuda()
    kernel.load_state_dict(own.state_dict())
    x = torch.randn(2, 100, 32, generator=torch.Generator().manual_seed(1)).cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        said, end = own(x, own.init_state(2))
        first, state = kernel(x[:, :37], kernel.init_state(2))
        second, state = kernel(x[:, 37:], state)
    found = [torch.cat([first, second], dim=1), *state]
    agree([part.float() for part in found], [part.float() for part in (said, *end)], 3e-2)


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        ("causal_conv", {"x": (1, 3, 8), "weight": (8, 4), "bias": (8,), "tail": (1, 3, 8)}),
        (
            "selective_scan",
            {
                "u": (1, 3, 4),
                "dt": (1, 3, 4),
                "rates": (4, 2),
                "write": (1, 3, 1, 2),
                "read": (1, 3, 1, 2),
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


def test_what_causal_conv1d_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "require", lambda *_: None)
    x = torch.zeros(1, 3, 12)
    with pytest.raises(UserError, match=r"multiples of 8 and 2 to 4 taps .* found 12 channels and 5 taps"):
        kernels.causal_conv(x, torch.zeros(12, 5), None, torch.zeros(1, 4, 12))
