"""State-space duality: the chunked form equals the loop, gradients and states included, however strong the
decay."""

import itertools
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.memory.state_space.inputs import ScanInputs, SSDInputs
from zoo.memory.state_space.selective_scan import selective_scan
from zoo.memory.state_space.ssd import ssd, ssd_loop

Tensors = dict[str, Tensor]
OPTIONS = ("D", "z", "dt_bias")


def random_inputs(
    rows: int, time: int, heads: int, head_dim: int, states: int, groups: int = 1, seed: int = 0
) -> Tensors:
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    tensors = {"x": draw(rows, time, heads, head_dim), "dt": draw(rows, time, heads)}
    tensors |= {"A": -draw(heads).exp(), "state": draw(rows, heads, head_dim, states)}
    tensors |= {name: draw(rows, time, groups, states) for name in ("B", "C")}
    tensors |= {"D": draw(heads), "z": draw(rows, time, heads, head_dim), "dt_bias": draw(heads)}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def run(form: Any, tensors: Tensors, **options: Any) -> list[Tensor]:
    """Output, last state, and the gradients through both."""
    y, after = form(SSDInputs(**tensors, **options))
    rng = torch.Generator().manual_seed(9)
    total = sum((x * torch.randn(x.shape, generator=rng, dtype=torch.float64)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(total, list(tensors.values()))]


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@pytest.mark.parametrize("time", [1, 2, 7, 8, 21])
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (6, 1), (6, 3)])
def test_the_chunked_form_equals_the_loop(chunk: int, time: int, heads: int, groups: int) -> None:
    tensors = random_inputs(2, time, heads, 3, 2, groups)
    results = [run(form, tensors) for form in (partial(ssd, chunk_size=chunk), ssd_loop)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("left_out", [("D",), ("z",), ("dt_bias",), OPTIONS])
@pytest.mark.parametrize("dt_limit", [None, (0.2, 0.9)])
def test_options_may_be_left_out(left_out: tuple[str, ...], dt_limit: tuple[float, float] | None) -> None:
    tensors = {name: x for name, x in random_inputs(2, 9, 4, 2, 3).items() if name not in left_out}
    if "D" in tensors:
        tensors["D"] = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)  # per channel
    for softplus in (True, False):
        results = [
            run(form, tensors, dt_softplus=softplus, dt_limit=dt_limit)
            for form in (partial(ssd, chunk_size=4), ssd_loop)
        ]
        torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)


def test_it_is_a_selective_scan_whose_channels_share_a_decay() -> None:
    tensors = random_inputs(2, 9, 4, 3, 2)
    y, after = ssd(SSDInputs(**tensors), chunk_size=4)
    flat = {name: tensors[name].flatten(2, 3) for name in ("x", "z")}
    dt, A, D, dt_bias = (tensors[name].repeat_interleave(3, dim=-1) for name in ("dt", "A", "D", "dt_bias"))
    scan_inputs = ScanInputs(
        flat["x"],
        dt,
        A[:, None].expand(-1, 2),
        tensors["B"],
        tensors["C"],
        tensors["state"].flatten(1, 2),
        D=D,
        z=flat["z"],
        dt_bias=dt_bias,
    )
    scanned, last = selective_scan(scan_inputs)
    torch.testing.assert_close(y.flatten(2, 3), scanned, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(after.flatten(1, 2), last, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cut", [1, 4, 10])
def test_a_text_may_be_cut_anywhere(cut: int) -> None:
    inputs = SSDInputs(**random_inputs(2, 11, 4, 2, 3))
    timed = {name: getattr(inputs, name) for name in ("x", "dt", "B", "C", "z")}
    first, state = ssd(replace(inputs, **{name: x[:, :cut] for name, x in timed.items()}), chunk_size=4)
    rest = replace(inputs, **{name: x[:, cut:] for name, x in timed.items()}, state=state)
    second, state = ssd(rest, chunk_size=4)
    y, end = ssd(inputs, chunk_size=4)
    torch.testing.assert_close(torch.cat([first, second], dim=1), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, end, rtol=1e-12, atol=1e-12)


def step_sizes(kind: str, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """dt: decays exp(-dt |A|) of 1e-2 to 1e-16 (and of 0 in float32), of 1 - 1e-6, or all of them mixed."""
    unit = torch.rand(shape, generator=rng, dtype=torch.float64)
    return {"near 0": 5 + 200 * unit, "near 1": 1e-6 * unit, "mixed": 10 ** (9 * unit - 6)}[kind]


DECAYS = ("near 0", "near 1", "mixed")


@cache
def results_over_8192_tokens() -> list[tuple[Tensor, Tensor]]:
    """(result, expected) of all forms and dtypes on inputs that bf16 can hold; heads 2 i and 2 i + 1 and
    group i have the i-th of DECAYS, so that the loop in float64 runs once."""
    rng = torch.Generator().manual_seed(0)
    tensors = random_inputs(1, 8192, 6, 2, 2, groups=3)
    tensors = {name: x.detach() for name, x in tensors.items() if name not in OPTIONS}
    tensors["dt"] = torch.cat([step_sizes(decay, (1, 8192, 2), rng) for decay in DECAYS], dim=-1)
    tensors["A"] = -0.5 - tensors["A"].tanh().abs()
    tensors = {name: x.to(torch.bfloat16) for name, x in tensors.items()}
    exact = run(ssd_loop, {n: x.double().requires_grad_() for n, x in tensors.items()}, dt_softplus=False)
    pairs = []
    for dtype, chunk in itertools.product((torch.float32, torch.bfloat16), (64, 1024)):
        rounded = {
            name: x.to(torch.float32 if name == "state" else dtype, copy=True).requires_grad_()
            for name, x in tensors.items()
        }
        results = run(partial(ssd, chunk_size=chunk), rounded, dt_softplus=False)
        pairs += [(result.detach(), e.detach()) for result, e in zip(results, exact, strict=True)]
    return pairs


@pytest.mark.parametrize("decay", DECAYS)
def test_error_over_8192_tokens(decay: str) -> None:
    """Against a loop in float64 over the same inputs, which bf16 can hold: outputs, state and gradients
    within 3e-6 of the largest (measured: 7e-7).  Gradients of bf16 inputs are bf16: 2^-8."""
    for pair in results_over_8192_tokens():
        axis = next(axis for axis, size in enumerate(pair[0].shape) if size in (3, 6))  # groups or heads
        result, expected = (x.chunk(3, dim=axis)[DECAYS.index(decay)] for x in pair)
        tolerance = 3e-6 if result.dtype == torch.float32 else 2**-8
        floor = 1e-30  # gradients that have faded away underflow in float32
        assert (result - expected).abs().max() <= tolerance * expected.abs().max() + floor
