"""Student's t against printed tables, Wilson's interval, means against sums by hand."""

import math

import pytest

from zoo.train.evaluation.intervals import estimate, wilson

TABLE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 30: 2.0423, 120: 1.9799}


@pytest.mark.parametrize(("dof", "t"), TABLE.items())
def test_students_t(dof: int, t: float) -> None:
    values = [1.0, -1.0] * ((dof + 1) // 2) + [0.0] * ((dof + 1) % 2)
    mean = estimate(values)
    assert mean is not None
    spread = math.sqrt(sum(x * x for x in values) / dof / (dof + 1))
    assert mean.half_width / spread == pytest.approx(t, abs=6e-5)


def test_mean_and_interval() -> None:
    mean = estimate([1.0, 2.0, 4.0])
    assert mean is not None
    assert mean.mean == pytest.approx(7 / 3)
    variance = sum((x - 7 / 3) ** 2 for x in (1, 2, 4)) / 2
    assert mean.half_width == pytest.approx(4.30265 * math.sqrt(variance / 3), rel=1e-5)
    assert mean.runs == 3


def test_a_single_value_has_no_interval() -> None:
    assert estimate([3.0]) == (3.0, None, 1)
    assert estimate([]) is None


def test_wilson_by_its_definition() -> None:
    # the bounds are the shares p from which the observed one is z standard errors away
    for hits, trials in ((0, 16), (3, 50), (16, 16), (250, 512), (8192, 8192)):
        low, high = wilson(hits, trials)
        assert low <= hits / trials <= high
        for bound in (low, high):
            distance = 1.96 * math.sqrt(bound * (1 - bound) / trials)
            assert abs(hits / trials - bound) == pytest.approx(distance, abs=1e-12)
