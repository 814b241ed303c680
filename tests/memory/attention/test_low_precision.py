"""Positions are counted in float32 at least: bf16 has no whole numbers beyond 256."""

import math

import torch
from torch import nn

from zoo.memory.attention.biases import Fire
from zoo.memory.attention.rotary_forms import ClexRope


def test_clex_s_rates_are_the_same_under_autocast() -> None:
    torch.manual_seed(0)
    rope = ClexRope(8, trained=4, context=32)
    nn.init.normal_(rope.down, std=0.3)
    expected = rope.rates(8.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rope.rates(8.0), expected)


@torch.no_grad()
def test_fire_in_bf16_rounds_a_relative_distance_once() -> None:
    fire = Fire(1, 4.0, hidden=1)
    for layer in (fire.mlp[0], fire.mlp[2]):  # the identity of what isn't negative
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    fire.bfloat16()
    i, c = 1003, float(fire.c)
    bias = fire.bias(torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16), torch.tensor([i]), torch.arange(i + 1))
    exact = [math.log1p(c * (i - j)) / (math.log1p(c * i) + 1e-6) for j in range(i + 1)]
    torch.testing.assert_close(bias[0, 0].double(), torch.tensor(exact).bfloat16().double(), rtol=0, atol=0)
