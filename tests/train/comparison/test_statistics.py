"""Statistics against sums by hand; tests/golden_tasks holds them to the published code."""

import math

import numpy as np
import pytest

from zoo.train.comparison import statistics


@pytest.mark.parametrize(
    ("x", "y", "mean", "half_width"),
    [
        ([1.0, 2.0, 3.0], [5.0, 4.0, 6.0], -3.0, 2.77645 * math.sqrt(2 / 3)),  # equal variances: 2 + 2 dof
        ([3.0, 4.0, 8.0], [2.0, 2.0], 3.0, 4.30265 * math.sqrt(7 / 3)),  # y never varies: x's 2 dof
    ],
)
def test_welch_by_hand(x: list[float], y: list[float], mean: float, half_width: float) -> None:
    difference = statistics.welch(x, y)
    assert difference is not None
    assert difference[:2] == pytest.approx((mean, half_width), rel=1e-5)
    swapped = statistics.welch(y, x)
    assert swapped == difference._replace(mean=-difference.mean)
    assert (difference.p < 0.05) == (abs(mean) > half_width)


@pytest.mark.parametrize(("x", "y"), [([1.0], [1.0, 2.0]), ([1.0, 2.0], []), ([1.0, 2.0], [3.0])])
def test_one_value_has_no_spread(x: list[float], y: list[float]) -> None:
    assert statistics.welch(x, y) is None


def test_rows_of_equal_runs_differ_by_no_test() -> None:
    """0.1 three times has a mean above 0.1 in float64, and so a variance above 0."""
    assert statistics.welch([1.0, 1.0], [1.0, 1.0]) == statistics.Difference(0.0, 0.0, 1.0)
    assert statistics.welch([2.0, 2.0], [1.0, 1.0]) == statistics.Difference(1.0, None, None)
    alike = statistics.welch([0.3] * 3, [0.1] * 3)
    assert alike == statistics.Difference(0.3 - 0.1, None, None)
    assert alike is not None
    assert alike.bounds is None
    one_varies = statistics.welch([2.0, 2.0], [1.0, 1.1])
    assert one_varies is not None
    assert one_varies[:2] == pytest.approx((0.95, 12.7062 * 0.05), rel=1e-4)


def test_a_layout_without_residuals_has_no_test() -> None:
    rows = [{seed: model + seed / 10 for seed in range(3)} for model in (0.1, 0.3)]
    layout = statistics.two_way(rows)
    assert layout is not None
    assert layout.residual_sd == 0
    x, y = (list(row.values()) for row in rows)
    assert statistics.two_way_difference(y, x, layout)[1:3] == (None, None)
    assert statistics.two_way_difference(x, x, layout)[:3] == (0.0, 0.0, 1.0)


def test_documents_alone_are_the_error_of_rows_of_equal_runs() -> None:
    seeds = statistics.welch([2.0, 2.0], [1.0, 1.0])
    assert seeds is not None
    difference = statistics.with_document_error(seeds, 0.1, 3)
    assert (difference.half_width, difference.dof) == (pytest.approx(0.1 * 4.30265, rel=1e-5), 2)


def test_a_seeds_common_effect_is_seen_and_taken_out() -> None:
    """Seeds shift all models by -1, 0, 1; what is left is 0.01, 0.02 or so."""
    left = [(0.01, 0.0, -0.01), (0.0, 0.02, -0.02), (-0.01, -0.02, 0.03)]
    rows = [{seed: model + seed - 1 + r[seed] for seed in range(3)} for model, r in enumerate(left)]
    layout = statistics.two_way(rows)
    assert layout is not None
    assert layout.applies
    assert layout.dof == 4
    assert layout.residual_sd == pytest.approx(math.sqrt(sum(x * x for r in left for x in r) / 4))
    difference = statistics.two_way_difference(list(rows[1].values()), list(rows[0].values()), layout)
    assert difference.mean == pytest.approx(1.0)
    assert difference.half_width == pytest.approx(2.77645 * layout.residual_sd * math.sqrt(2 / 3), rel=1e-5)
    alone = statistics.welch(list(rows[1].values()), list(rows[0].values()))
    assert alone is not None
    assert alone.half_width > 40 * difference.half_width


def test_no_layout_of_other_seeds_or_a_single_model() -> None:
    assert statistics.two_way([{0: 1.0, 1: 2.0}]) is None
    assert statistics.two_way([{0: 1.0}, {0: 2.0}]) is None
    assert statistics.two_way([{0: 1.0, 1: 2.0}, {0: 1.0, 2: 2.0}]) is None


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03 times 3, 2, 1, none below the one before it."""
    assert statistics.holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_aggregates_by_hand() -> None:
    scores = np.array([[0.0, 0.1, 0.2, 0.3], [0.4, 0.5, 1.5, 9.0]])
    assert statistics.interquartile_mean(scores) == pytest.approx((0.2 + 0.3 + 0.4 + 0.5) / 4)
    assert statistics.optimality_gap(scores) == pytest.approx(1 - (0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 2) / 8)
    x, y = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 0.0]])
    assert statistics.probability_of_improvement(x, y) == pytest.approx((0.5 + 0.5) / 2)
    assert statistics.probability_of_improvement(y + 9, x) == 1.0


def test_the_error_of_documents_is_that_of_a_ratio() -> None:
    """Documents of one length: the standard error of the mean of their losses."""
    losses = [1.0, 2.0, 4.0]
    ratio, error = statistics.document_error([10 * x for x in losses], [10] * 3)
    assert ratio == pytest.approx(7 / 3)
    assert error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(3))
    assert math.isnan(statistics.document_error([1.0], [2])[1])
