"""The selective scan: its fast form is the loop, gradients and states included, however strong the decay."""

from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from zoo.memory.kernels import with_ends
from zoo.memory.state_space import selective_scan as scan
from zoo.memory.state_space.selective_scan import selective_scan, selective_scan_loop

Tensors = dict[str, Tensor]
OPTIONS = ("skip", "gate", "bias")


def given(rows: int, time: int, channels: int, states: int, groups: int = 1, seed: int = 0) -> Tensors:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    tensors = {"u": draw(rows, time, channels), "delta": draw(rows, time, channels)}
    tensors |= {"rates": -draw(channels, states).exp(), "state": draw(rows, channels, states)}
    tensors |= {name: draw(rows, time, groups, states) for name in ("write", "read")}
    tensors |= {"skip": draw(channels), "gate": draw(rows, time, channels), "bias": draw(channels)}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def learnt(form: Any, tensors: Tensors) -> list[Tensor]:
    """Output, last state, and the gradients of both."""
    y, after = form(**tensors)
    random = torch.Generator().manual_seed(9)
    total = sum((x * torch.randn(x.shape, generator=random, dtype=torch.float64)).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(total, list(tensors.values()))]


@pytest.mark.parametrize("time", [1, 2, 31, 32, 33, 64, 75])
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (6, 1), (6, 3)])
def test_it_is_the_loop(time: int, channels: int, groups: int) -> None:
    tensors = given(2, time, channels, 3, groups)
    torch.testing.assert_close(
        learnt(selective_scan, tensors), learnt(selective_scan_loop, tensors), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("left_out", [("skip",), ("gate",), ("bias",), OPTIONS])
def test_options_may_be_left_out(left_out: tuple[str, ...]) -> None:
    tensors = {name: x for name, x in given(2, 5, 4, 2).items() if name not in left_out}
    for softplus in (True, False):
        results = [
            learnt(partial(f, softplus=softplus), tensors) for f in (selective_scan, selective_scan_loop)
        ]
        torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_chunk_changes_nothing(chunk: int) -> None:
    tensors = given(2, 41, 4, 3)
    usual = learnt(selective_scan, tensors)
    with mock.patch.object(scan, "CHUNK", chunk):
        torch.testing.assert_close(learnt(selective_scan, tensors), usual, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cut", [1, 32, 40])
def test_it_goes_on_at_any_cut(cut: int) -> None:
    tensors = given(2, 41, 4, 3)
    timed = {name: tensors[name] for name in ("u", "delta", "write", "read", "gate")}
    first, after = selective_scan(**{**tensors, **{name: x[:, :cut] for name, x in timed.items()}})
    rest = {**tensors, **{name: x[:, cut:] for name, x in timed.items()}, "state": after}
    second, after = selective_scan(**rest)
    whole, end = selective_scan(**tensors)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after, end, rtol=1e-12, atol=1e-12)


def test_the_state_given_in_is_left_as_it_was() -> None:
    tensors = given(2, 40, 4, 3)
    kept = {name: x.detach().clone() for name, x in tensors.items()}
    learnt(selective_scan, tensors)
    assert all(torch.equal(tensors[name], x) for name, x in kept.items())


def steps(kind: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """dt: decays exp(-dt |A|) of 1e-2 to 1e-16 (and of 0 in float32), of 1 - 1e-6, or all of them mixed."""
    unit = torch.rand(shape, generator=random, dtype=torch.float64)
    return {"near 0": 5 + 200 * unit, "near 1": 1e-6 * unit, "mixed": 10 ** (9 * unit - 6)}[kind]


@pytest.mark.parametrize("decay", ["near 0", "near 1", "mixed"])
def test_error_over_8192_tokens(decay: str) -> None:
    """Against a loop in float64 over the same inputs, which bf16 can hold: outputs, state and gradients
    within 3e-5 of the largest (found: 1e-5, where 8192 steps hardly decay; elsewhere 5e-7).  Gradients of
    bf16 inputs are bf16: 2^-8."""
    random = torch.Generator().manual_seed(0)
    tensors = {name: x.detach() for name, x in given(1, 8192, 3, 2).items() if name not in OPTIONS}
    tensors["delta"], tensors["rates"] = (
        steps(decay, (1, 8192, 3), random),
        -0.5 - tensors["rates"].tanh().abs(),
    )
    tensors = {name: x.to(torch.bfloat16) for name, x in tensors.items()}
    exact = learnt(
        partial(selective_scan_loop, softplus=False),
        {name: x.double().requires_grad_() for name, x in tensors.items()},
    )
    for dtype in (torch.float32, torch.bfloat16):
        mine = {
            name: x.to(torch.float32 if name == "state" else dtype, copy=True).requires_grad_()
            for name, x in tensors.items()
        }
        results = learnt(partial(selective_scan, softplus=False), mine)
        for found, expected in zip(results, exact, strict=True):
            within = 3e-5 if found.dtype == torch.float32 else 2**-8
            floor = 1e-30  # what float32 can say of a gradient that has faded away
            assert (found - expected).abs().max() <= within * expected.abs().max() + floor


def test_ends_make_up_for_a_kernel_that_knows_no_states() -> None:
    """Mamba-1's kernel begins with an empty state and keeps its last: the loop in its place, in float64."""
    tensors = {name: x for name, x in given(2, 7, 6, 4, groups=3).items() if name not in OPTIONS}
    for strength in (1.0, 1e4):  # of A: a decay that the first tokens mustn't feel
        tensors["rates"] = (tensors["rates"].detach() * strength).requires_grad_()
        tensors["delta"] = tensors["delta"].detach().abs().requires_grad_()

        def kernel(u: Tensor, dt: Tensor, rates: Tensor, write: Tensor, read: Tensor) -> Tensor:
            empty = torch.zeros(len(u), *rates.shape, dtype=u.dtype)
            return selective_scan_loop(u, dt, rates, write, read, empty, softplus=False)[0]

        def ended(delta: Tensor, **rest: Tensor) -> tuple[Tensor, Tensor]:
            return with_ends(kernel, dt=delta, **rest)

        results = [learnt(form, tensors) for form in (ended, partial(selective_scan_loop, softplus=False))]
        torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-8)
