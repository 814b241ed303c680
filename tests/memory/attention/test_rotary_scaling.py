"""Scaled rotary frequencies: what the golden cases don't pin down, and what must not depend on a call."""

import math
from typing import Any

import pytest
import torch

from zoo.memory.attention.core import Attention
from zoo.memory.attention.position_options import position_options
from zoo.memory.attention.rotary_scaling import frequencies, plain_rates

D = 16


def rates(scaling: str, context: int = 256, **keys: Any) -> list[float]:
    options = position_options({"scaling": scaling, "trained": 64, **keys}).resolve(context)
    scaled = frequencies(D, options, context)
    assert scaled is not None
    return list(scaled.rates)


def test_the_factor_is_by_default_that_of_the_contexts() -> None:
    for scaling in ("linear", "ntk", "yarn", "llama3", "mixed", "power"):
        assert rates(scaling) == rates(scaling, factor=4)
        assert rates(scaling, context=64) == pytest.approx(plain_rates(D, 10000.0))


def test_interpolation_divides_all_rates_and_ntk_the_lowest_by_exactly_s() -> None:
    plain = plain_rates(D, 10000.0)
    assert rates("linear", factor=8) == pytest.approx([w / 8 for w in plain])
    scaled = rates("ntk", factor=8)
    assert (scaled[0], scaled[-1]) == (pytest.approx(1), pytest.approx(plain[-1] / 8))
    assert all(w / 8 <= w_s <= w for w, w_s in zip(plain, scaled, strict=True))


def test_dynamic_ntk_takes_the_context_for_the_text_s_length() -> None:
    assert rates("dynamic") == pytest.approx(rates("ntk", factor=4))
    assert rates("dynamic", factor=2) == pytest.approx(rates("ntk", factor=2 * 4 - 1))


def test_giraffe_s_power_scaling() -> None:
    """w (1 - 2m/d)^k: no published code."""
    plain = plain_rates(D, 10000.0)
    expected = [w * ((8 - m) / 8) ** 0.5 for m, w in enumerate(plain)]
    assert rates("power", exponent=0.5) == pytest.approx(expected)
    assert rates("power", factor=4)[-1] == pytest.approx(plain[-1] / 4)


def test_giraffe_s_truncation() -> None:
    """Kept from one turn in 64 up, one turn in 64 s below, 0 from there on."""
    once, constant = 2 * math.pi / 64, 2 * math.pi / 256
    expected = [w if w >= once else constant if w > constant else 0.0 for w in plain_rates(D, 10000.0)]
    assert rates("truncated", factor=4) == pytest.approx(expected)
    assert {0.0, constant} < set(expected)


def test_longrope_has_two_lists() -> None:
    long, short, plain = [1.0 + m for m in range(8)], [1.0] * 7 + [1.5], plain_rates(D, 10000.0)
    lists = {"long": long, "short": short}
    assert rates("longrope", **lists) == [w / f for w, f in zip(plain, long, strict=True)]
    assert rates("longrope", context=64, **lists) == [w / f for w, f in zip(plain, short, strict=True)]
    with pytest.raises(ValueError, match="expected 8 numbers above 0"):
        rates("longrope", long=[1.0, 2.0])
    started, by_yarn = rates("longrope"), rates("yarn")  # the search begins with YaRN's ramp
    assert (started[0], started[-1]) == (by_yarn[0], by_yarn[-1])
    assert started == sorted(started, reverse=True)


def test_ntk_needs_more_than_one_pair() -> None:
    for scaling in ("ntk", "dynamic"):
        with pytest.raises(ValueError, match="at least 4 rotated features, not 2"):
            Attention(8, 4, context=8, position={"scaling": scaling, "trained": 4})


@pytest.mark.parametrize("rotated", [None, 4])
def test_the_temperature_is_that_of_rotated_features_alone(rotated: int | None) -> None:
    keys = {"scaling": "yarn", "factor": 8, "rotated": rotated, "attention_factor": 3.0}
    layer = Attention(32, 4, context=64, position=keys)
    x = torch.randn(2, 4, 1, 8)
    turned = layer.positions.rotate(x, range(1))
    expected = x.clone()
    expected[..., : rotated or 8] *= 3
    torch.testing.assert_close(turned, expected)
