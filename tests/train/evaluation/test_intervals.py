"""Student's t against printed tables, means and paired differences against sums done by hand."""

import math

import pytest

from zoo.train.evaluation.intervals import estimate, paired, student_cdf, student_quantile

TABLE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 30: 2.0423, 120: 1.9799}


@pytest.mark.parametrize(("dof", "t"), TABLE.items())
def test_students_t(dof: int, t: float) -> None:
    assert student_quantile(0.975, dof) == pytest.approx(t, abs=6e-5)
    assert student_cdf(student_quantile(0.9, dof), dof) == pytest.approx(0.9, abs=1e-12)
    assert student_cdf(0.0, dof) == 0.5


def test_mean_and_interval() -> None:
    found = estimate([1.0, 2.0, 4.0])
    assert found is not None
    assert found.mean == pytest.approx(7 / 3)
    variance = sum((x - 7 / 3) ** 2 for x in (1, 2, 4)) / 2
    assert found.half_width == pytest.approx(4.30265 * math.sqrt(variance / 3), rel=1e-5)
    assert found.runs == 3


def test_one_number_has_no_interval() -> None:
    assert estimate([3.0]) == (3.0, None, 1)
    assert estimate([]) is None


def test_pairs_are_seeds_in_common() -> None:
    found = paired({0: 1.0, 1: 2.0, 7: 9.0}, {1: 1.5, 0: 0.5, 3: 8.0})
    assert found == (0.5, 0.0, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None
