"""Warm-up, cosine and floor by their formula; the flags of a parameter group; steps that are skipped."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.optim import AdamW, Optim


def test_the_schedule_by_hand() -> None:
    optim = Optim(steps=10, warmup=2, floor=0.2)
    expected = [0.5, 1.0] + [0.2 + 0.8 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(1, 9)]
    assert [optim.factor(step) for step in range(10)] == pytest.approx(expected, rel=1e-12)
    assert optim.factor(5) == pytest.approx(0.6)  # halfway down: halfway between 1 and the floor


@pytest.mark.parametrize(
    ("steps", "warmup", "floor"), [(1000, 100, 0.1), (7, 0, 0.0), (50, 49, 0.3), (3, 2, 1.0)]
)
def test_it_rises_to_the_full_rate_and_falls_to_the_floor_at_the_last_step(
    steps: int, warmup: int, floor: float
) -> None:
    optim = Optim(steps=steps, warmup=warmup, floor=floor)
    factors = [optim.factor(step) for step in range(steps)]
    rise, fall = factors[:warmup], factors[warmup:]
    assert rise == [(step + 1) / warmup for step in range(warmup)]
    assert fall == sorted(fall, reverse=True)
    assert factors[-1] == pytest.approx(floor, abs=1e-12)
    assert optim.factor(10 * steps) == pytest.approx(floor, abs=1e-12)


def test_a_run_shorter_than_its_warmup_only_rises() -> None:
    assert [Optim(steps=3, warmup=5).factor(step) for step in range(3)] == [0.2, 0.4, 0.6]


def test_groups_set_decay_and_a_factor_of_the_rate() -> None:
    decaying, constant, slow = (nn.Parameter(torch.ones(2)) for _ in range(3))
    result = Optim(steps=10, lr=0.5, warmup=4, weight_decay=0.25, betas=[0.8, 0.9]).build(
        [{"params": [decaying]}, {"params": [constant], "decays": False}, {"params": [slow], "lr_scale": 0.1}]
    )
    optimizer, scheduler = result["optimizer"], result["lr_scheduler"]["scheduler"]
    assert result["lr_scheduler"]["interval"] == "step"
    groups = optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0, 0.25]
    assert all(group["betas"] == (0.8, 0.9) for group in groups)
    first_rates = [0.125, 0.125, 0.0125]  # a quarter: first of 4 steps
    assert [group["lr"] for group in groups] == pytest.approx(first_rates)
    for weight in (decaying, constant, slow):
        weight.grad = torch.zeros(2)
    optimizer.step()
    expected = 1 - 0.125 * 0.25, 1.0, 1 - 0.0125 * 0.25
    assert [weight[0].item() for weight in (decaying, constant, slow)] == pytest.approx(expected)
    scheduler.step()
    assert [group["lr"] for group in groups] == pytest.approx([0.25, 0.25, 0.025])


def pair_of_optimisers(dtype: torch.dtype) -> tuple[list[nn.Parameter], ...]:
    torch.manual_seed(0)
    weights = [torch.randn(size, dtype=dtype) for size in ((40, 50), (50,), (3, 4, 5), ())]
    return tuple([nn.Parameter(weight.clone()) for weight in weights] for _ in range(2))


def groups(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": weights[:2], "weight_decay": 0.1}, {"params": weights[2:], "weight_decay": 0.0}]


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = optimizer.state_dict()["state"]
    return [state[index][name] for index in sorted(state) for name in ("step", "exp_avg", "exp_avg_sq")]


def assert_equal_optimisers(
    weights: list[nn.Parameter], optimizer: AdamW, expected: list[nn.Parameter], torch_s: torch.optim.AdamW
) -> None:
    for actual, tensor in zip([*weights, *moments(optimizer)], [*expected, *moments(torch_s)], strict=True):
        assert actual.dtype == tensor.dtype
        assert torch.equal(actual, tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_step_that_can_be_skipped_is_torch_s_in_every_bit(dtype: torch.dtype) -> None:
    """Also after steps that were skipped, without a gradient for some weights, and from a loaded state."""
    weights, expected = pair_of_optimisers(dtype)
    optimizer = AdamW(groups(weights), lr=1e-2, betas=(0.9, 0.95))
    torch_s = torch.optim.AdamW(groups(expected), lr=1e-2, betas=(0.9, 0.95))
    for step in range(12):
        grads = [torch.randn_like(weight) * 10 ** (step % 5 - 3) for weight in weights]
        for pair in zip(weights, expected, grads, strict=True):
            for weight in pair[:2]:
                weight.grad = None if step % 4 == 1 and weight.ndim == 1 else pair[2].clone()
        optimizer.skip = torch.tensor(step in (3, 4))
        if optimizer.skip:
            for weight, value in zip(weights, (torch.nan, torch.inf, -torch.inf, 1e30), strict=True):
                weight.grad = torch.full_like(weight, value)
        else:
            torch_s.step()
        optimizer.step()
        if step == 4:
            optimizer.recount()
        if step == 7:
            state = optimizer.state_dict()
            optimizer = AdamW(groups(weights), lr=1e-2, betas=(0.9, 0.95))
            optimizer.load_state_dict(state)
        assert_equal_optimisers(weights, optimizer, expected, torch_s)


def test_a_first_step_can_be_skipped() -> None:
    weights, expected = pair_of_optimisers(torch.float32)
    optimizer = AdamW(groups(weights), lr=1e-2)
    optimizer.skip = torch.tensor(True)
    for weight in weights:
        weight.grad = torch.full_like(weight, torch.nan)
    optimizer.step()
    assert all(map(torch.equal, weights, expected))
    assert not any(moment.any() for moment in moments(optimizer))


def test_the_flag_may_be_set_while_gradients_are_computed() -> None:
    weights, expected = pair_of_optimisers(torch.float32)
    optimizer = AdamW(groups(weights), lr=1e-2)

    def closure() -> str:
        optimizer.skip = torch.tensor(True)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        return "loss"

    assert optimizer.step(closure) == "loss"
    assert all(map(torch.equal, weights, expected))


def test_a_step_reads_nothing_back() -> None:
    """On the meta device a value that is read back is an error."""
    weights = [nn.Parameter(torch.ones(3, 4, device="meta"))]
    optimizer = AdamW(weights, lr=1e-2)
    for _ in range(2):
        weights[0].grad = torch.ones_like(weights[0])
        optimizer.skip = torch.zeros((), dtype=torch.bool, device="meta")
        optimizer.step()
    assert {leaf.device.type for leaf in moments(optimizer)} == {"meta"}


def test_the_optimiser_of_every_model_can_be_skipped() -> None:
    assert type(Optim(steps=2).build([{"params": [nn.Parameter(torch.ones(2))]}])["optimizer"]) is AdamW


def test_a_stable_rate_decays_once_it_is_told_to() -> None:
    optim = Optim(steps=100, warmup=10, floor=0.1, schedule="wsd", decay=0.25)
    assert optim.total_steps == 125
    assert [optim.factor(step) for step in (0, 4, 9, 10, 99, 100)] == [0.1, 0.5, 1, 1, 1, 1]
    assert optim.factor(124) == pytest.approx(0.1)
    assert optim.factor(112) == pytest.approx(0.55), "half way"
    optim.decay_start = 41
    assert optim.total_steps == 52  # 11 steps
    assert [optim.factor(step) for step in (39, 40, 41)] == [1, 1, 1]
    falling = [optim.factor(step) for step in range(41, 52)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(0.1)
    optim.decay_start = 4  # in the warm-up, whose rate it keeps
    assert [optim.factor(step) for step in (2, 4)] == [0.3, 0.5]
    assert Optim(steps=100).total_steps == 100
