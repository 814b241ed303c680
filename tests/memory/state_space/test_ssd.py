"""State-space duality: the chunked form is the loop, gradients and states included, however strong the
decay."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.memory.state_space.selective_scan import selective_scan
from zoo.memory.state_space.ssd import ssd, ssd_loop

Tensors = dict[str, Tensor]
OPTIONS = ("skip", "gate", "bias")


def given(
    rows: int, time: int, heads: int, head_dim: int, states: int, groups: int = 1, seed: int = 0
) -> Tensors:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    tensors = {"x": draw(rows, time, heads, head_dim), "dt": draw(rows, time, heads)}
    tensors |= {"rates": -draw(heads).exp(), "state": draw(rows, heads, head_dim, states)}
    tensors |= {name: draw(rows, time, groups, states) for name in ("write", "read")}
    tensors |= {"skip": draw(heads), "gate": draw(rows, time, heads, head_dim), "bias": draw(heads)}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def learnt(form: Any, tensors: Tensors) -> list[Tensor]:
    """Output, last state, and the gradients of both."""
    y, after = form(**tensors)
    random = torch.Generator().manual_seed(9)
    total = sum((x * torch.randn(x.shape, generator=random, dtype=torch.float64)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(total, list(tensors.values()))]


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@pytest.mark.parametrize("time", [1, 2, 7, 8, 21])
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (6, 1), (6, 3)])
def test_it_is_the_loop(chunk: int, time: int, heads: int, groups: int) -> None:
    tensors = given(2, time, heads, 3, 2, groups)
    results = [learnt(form, tensors) for form in (partial(ssd, chunk_size=chunk), ssd_loop)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("left_out", [("skip",), ("gate",), ("bias",), OPTIONS])
@pytest.mark.parametrize("limits", [None, (0.2, 0.9)])
def test_options_may_be_left_out(left_out: tuple[str, ...], limits: tuple[float, float] | None) -> None:
    tensors = {name: x for name, x in given(2, 9, 4, 2, 3).items() if name not in left_out}
    if "skip" in tensors:
        tensors["skip"] = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)  # per channel
    for softplus in (True, False):
        options: dict[str, Any] = {"softplus": softplus, "limits": limits}
        results = [
            learnt(partial(form, **options), tensors) for form in (partial(ssd, chunk_size=4), ssd_loop)
        ]
        torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)


def test_it_is_a_selective_scan_whose_channels_share_a_decay() -> None:
    tensors = given(2, 9, 4, 3, 2)
    y, after = ssd(**tensors, chunk_size=4)
    flat = {name: tensors[name].flatten(2, 3) for name in ("x", "gate")}
    dt, rates, skip, bias = (
        tensors[name].repeat_interleave(3, dim=-1) for name in ("dt", "rates", "skip", "bias")
    )
    scanned, last = selective_scan(
        flat["x"],
        dt,
        rates[:, None].expand(-1, 2),
        tensors["write"],
        tensors["read"],
        tensors["state"].flatten(1, 2),
        skip=skip,
        gate=flat["gate"],
        bias=bias,
    )
    torch.testing.assert_close(y.flatten(2, 3), scanned, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(after.flatten(1, 2), last, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cut", [1, 4, 10])
def test_it_goes_on_at_any_cut(cut: int) -> None:
    tensors = given(2, 11, 4, 2, 3)
    timed = {name: tensors[name] for name in ("x", "dt", "write", "read", "gate")}
    first, after = ssd(**{**tensors, **{name: x[:, :cut] for name, x in timed.items()}}, chunk_size=4)
    rest = {**tensors, **{name: x[:, cut:] for name, x in timed.items()}, "state": after}
    second, after = ssd(**rest, chunk_size=4)
    whole, end = ssd(**tensors, chunk_size=4)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after, end, rtol=1e-12, atol=1e-12)


def steps(kind: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """dt: decays exp(-dt |A|) of 1e-2 to 1e-16 (and of 0 in float32), of 1 - 1e-6, or all of them mixed."""
    unit = torch.rand(shape, generator=random, dtype=torch.float64)
    return {"near 0": 5 + 200 * unit, "near 1": 1e-6 * unit, "mixed": 10 ** (9 * unit - 6)}[kind]


@pytest.mark.parametrize("decay", ["near 0", "near 1", "mixed"])
def test_error_over_8192_tokens(decay: str) -> None:
    """Against a loop in float64 over the same inputs, which bf16 can hold: outputs, state and gradients
    within 3e-6 of the largest (found: 7e-7).  Gradients of bf16 inputs are bf16: 2^-8."""
    random = torch.Generator().manual_seed(0)
    tensors = {name: x.detach() for name, x in given(1, 8192, 2, 2, 2).items() if name not in OPTIONS}
    tensors["dt"], tensors["rates"] = steps(decay, (1, 8192, 2), random), -0.5 - tensors["rates"].tanh().abs()
    tensors = {name: x.to(torch.bfloat16) for name, x in tensors.items()}
    exact = learnt(
        partial(ssd_loop, softplus=False), {n: x.double().requires_grad_() for n, x in tensors.items()}
    )
    for dtype, chunk in itertools.product((torch.float32, torch.bfloat16), (64, 1024)):
        mine = {
            name: x.to(torch.float32 if name == "state" else dtype, copy=True).requires_grad_()
            for name, x in tensors.items()
        }
        results = learnt(partial(ssd, chunk_size=chunk, softplus=False), mine)
        for found, expected in zip(results, exact, strict=True):
            within = 3e-6 if found.dtype == torch.float32 else 2**-8
            floor = 1e-30  # what float32 can say of a gradient that has faded away
            assert (found - expected).abs().max() <= within * expected.abs().max() + floor
