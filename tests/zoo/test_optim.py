"""Warm-up, cosine and floor by their formula; the flags of a parameter group."""

import math

import pytest
import torch
from torch import nn

from zoo.optim import Optim


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
