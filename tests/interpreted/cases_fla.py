"""flash-linear-attention's kernels behind `backend: fla`, interpreted, against the loop and the zoo's form:
outputs, final states, and gradients of all inputs, the initial state's included."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tests.interpreted.compare import Tensors, assert_same
from tests.interpreted.interpreter import interpretable_fla
from tests.memory.fast_weights.mixers import MIXERS
from tests.memory.fast_weights.random_inputs import DECAYS, RULES, Form, random_inputs, run
from zoo.memory.fast_weights import fla_kernels
from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import fast_weights, fast_weights_loop

KERNELS = [(rule, decay) for rule in ("additive", "delta") for decay in DECAYS]
KERNELS += [("bonus", "channel"), ("general", "channel")]
"""A rule and a decay for each kernel; the others are these with one decay for all channels, or with none."""


@pytest.fixture(scope="module", autouse=True)
def _interpretable() -> None:
    interpretable_fla()


def named(form: Form, inputs: Inputs, dtype: torch.dtype) -> Tensors:
    """`run`'s results by name."""
    names = [name for name, part in inputs._asdict().items() if part is not None]
    return dict(zip(["o", "after", *names], run(form, inputs, dtype), strict=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decay", DECAYS)
def test_a_short_text_in_float32(rule: str, decay: str) -> None:
    """Less than a chunk, of several rows and heads, with sizes that are no power of two."""
    inputs = random_inputs(decay, rule, 5, 12, 20)
    result = named(partial(fast_weights, backend="fla"), inputs, torch.float32)
    assert_same(result, named(fast_weights_loop, inputs, torch.float64), 1e-5)


@pytest.mark.parametrize(("rule", "decay"), KERNELS)
def test_more_than_a_chunk_in_float32(rule: str, decay: str) -> None:
    """Gradients of strong decays are differences of sums over a chunk: 2e-5 of the largest at most."""
    inputs = random_inputs(decay, rule, 70, 16, 16, rows=1, heads=2)
    result = named(partial(fast_weights, backend="fla"), inputs, torch.float32)
    assert_same(result, named(fast_weights_loop, inputs, torch.float64), 1e-4)


@pytest.mark.parametrize(("rule", "decay"), KERNELS)
def test_more_than_a_chunk_in_16_bits(rule: str, decay: str) -> None:
    """float16 for the vectors, whose rounding is 5e-4; decays and states stay in float32."""
    inputs = random_inputs(decay, rule, 70, 16, 16, rows=1, heads=2)
    result = named(partial(fla_kernels.fast_weights, dtype=torch.float16), inputs, torch.float32)
    assert_same(result, named(fast_weights_loop, inputs, torch.float64), 1e-2)
    assert all(part.dtype == torch.float32 for part in result.values())


def test_one_token() -> None:
    """As in generation."""
    for rule, decay in KERNELS:
        inputs = random_inputs(decay, rule, 1, 16, 16, rows=1)
        result = named(partial(fast_weights, backend="fla"), inputs, torch.float32)
        assert_same(result, named(fast_weights_loop, inputs, torch.float64), 1e-5)


@pytest.mark.parametrize("new_mixer", MIXERS.values(), ids=MIXERS)
def test_a_mixer_is_cut_anywhere_and_trains_alike(new_mixer: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    mixer, kernel = new_mixer(), new_mixer(backend="fla")
    kernel.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 20, 16)
    y, end, *_ = mixer(x, mixer.init_state(2))
    first, state, *_ = kernel(x[:, :13], kernel.init_state(2))
    second, state, *_ = kernel(x[:, 13:], state)
    results = {"torch": (y, *end), "fla": (torch.cat([first, second], dim=1), *state)}
    expected, result = ({str(i): x for i, x in enumerate(part) if x.numel()} for part in results.values())
    assert_same(result, expected, 1e-5)
    for outputs in (expected, result):
        torch.stack([part.square().sum() for part in outputs.values()]).sum().backward()
    expected, result = (
        {name: weight.grad for name, weight in part.named_parameters() if weight.grad is not None}
        for part in (mixer, kernel)
    )
    assert len(expected) > 1
    assert_same(result, expected, 1e-4)
