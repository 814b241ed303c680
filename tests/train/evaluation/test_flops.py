"""Counted operations against formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zoo.memory.state_space.selective_scan import ScanInputs, selective_scan, selective_scan_loop
from zoo.train.evaluation.flops import count_flops, product_rate


def test_products_cost_two_operations_a_multiply_add_and_twice_as_much_backwards() -> None:
    x, weight = torch.randn(5, 7, requires_grad=True), torch.randn(7, 11, requires_grad=True)
    assert count_flops(lambda: x @ weight) == (2 * 5 * 7 * 11, 0)
    assert count_flops(lambda: (x @ weight).backward(torch.ones(5, 11))) == (3 * 2 * 5 * 7 * 11, 0)


def test_attention_counts_as_its_two_products_whichever_kernel_runs() -> None:
    q, k, v = torch.randn(3, 2, 4, 8, 16).unbind(0)
    for causal in (False, True):
        flops = count_flops(lambda causal=causal: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
        assert flops.products == 2 * (2 * 2 * 4 * 8 * 8 * 16)


def test_elementwise_operations_count_once_an_element_and_copies_not_at_all() -> None:
    x = torch.randn(6, 10)
    assert count_flops(lambda: (x * x + x).clone().cumsum(0)) == (0, 3 * 60)
    assert count_flops(lambda: x.softmax(-1)) == (0, 60)
    assert count_flops(lambda: x.view(10, 6).contiguous()) == (0, 0)
    assert count_flops(lambda: torch.arange(60) * 2) == (0, 0)  # positions and masks are no floats


@pytest.mark.parametrize(("layer", "gates"), [(torch.nn.LSTM, 4), (torch.nn.GRU, 3)])
def test_recurrent_layers_count_their_products(layer: Any, gates: int) -> None:
    """Inputs of 6 and states of 5 features, `gates` matrices, 7 steps of 2 rows; twice backwards."""
    recurrent, x = layer(6, 5, batch_first=True), torch.randn(2, 7, 6, requires_grad=True)
    forward = 2 * 2 * 7 * gates * 5 * (6 + 5)
    assert count_flops(lambda: recurrent(x)).products == forward
    step = count_flops(lambda: recurrent(x)[0].sum().backward()).products
    assert step == 3 * forward - 2 * 2 * gates * 5 * 5  # the initial state needs no gradient


def test_a_scan_counts_as_its_loop_does() -> None:
    """Per token, channel and state: dt A, exp, a h, dt u B, + and h C, without the sum over states."""

    def inputs(time: int) -> ScanInputs:
        u, dt = torch.rand(2, 2, time, 4).unbind(0)
        return ScanInputs(u, dt, -torch.rand(4, 3), *torch.rand(2, 2, time, 1, 3), torch.zeros(2, 4, 3))

    once, twice = (count_flops(lambda n=n: selective_scan(inputs(n))) for n in (32, 64))
    loop = count_flops(lambda: selective_scan_loop(inputs(64)))
    assert 0.5 * loop.elementwise < twice.elementwise + twice.products < 2 * loop.elementwise
    assert twice.elementwise - once.elementwise > 0.9 * once.elementwise


def test_a_compiled_step_counts_as_the_plain_one() -> None:
    """What `zoo bench` does before it counts; the graph's operations would not be seen."""
    x, weight = torch.randn(5, 7), torch.randn(7, 11)
    product = torch.compile(lambda: (x @ weight).relu(), backend="eager")
    product()
    with torch.compiler.set_stance("force_eager"):
        assert count_flops(product) == (2 * 5 * 7 * 11, 55)


def test_the_machines_rate_is_that_of_the_fastest_size() -> None:
    seconds = iter([1.0, 4.0, 64.0])
    rate = product_rate(torch.device("cpu"), torch.float32, lambda step: next(seconds))
    assert rate == max(2 * 512**3 / 1, 2 * 1024**3 / 4, 2 * 2048**3 / 64)


def test_the_rates_step_is_one_product_of_the_dtype() -> None:
    """Counted, it has the operations by which its seconds are divided."""
    counted = []

    def seconds(step: Callable[[], object]) -> float:
        counted.append(count_flops(step).products)
        return 1.0

    assert product_rate(torch.device("meta"), torch.bfloat16, seconds) == max(counted) == 2 * 8192**3
    assert counted == [2 * size**3 for size in (2048, 4096, 8192)]
