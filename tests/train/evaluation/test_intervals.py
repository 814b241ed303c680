"""Student's t against printed tables, Wilson's interval, means against sums by hand."""

import math

import numpy as np
import pytest

from zoo.train.evaluation.intervals import (
    clustered_proportion,
    estimate,
    proportion,
    ratio_standard_error,
    wilson,
)

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


def test_clusters_of_one_trial_have_wilsons_interval() -> None:
    hits = np.array([1, 0, 1, 1, 0])
    assert clustered_proportion(hits, np.ones(5, np.int64)) == proportion(3, 5)


def test_clusters_that_hit_all_or_nothing_count_as_one_trial_each() -> None:
    hits = np.array([5, 0, 5, 5, 0, 0, 0, 5])
    share = clustered_proportion(hits, np.full(8, 5))
    assert (share["share"], share["hits"], share["of"]) == (0.5, 20, 40)
    assert share["effective"] == pytest.approx(8 - 1)  # of the sample's variance, m / (m - 1)
    assert (share["low"], share["high"]) == wilson(20, 40, 7.0)


def test_clusters_cover_the_true_share_where_trials_taken_as_independent_dont() -> None:
    rng, covered, covered_apart = np.random.default_rng(0), 0, 0
    for _ in range(400):
        chances = rng.choice([0.1, 0.9], size=60)  # a sample is known or it isn't
        hits, trials = rng.binomial(5, chances), np.full(60, 5)
        share, apart = clustered_proportion(hits, trials), proportion(int(hits.sum()), 300)
        covered += share["low"] <= 0.5 <= share["high"]
        covered_apart += apart["low"] <= 0.5 <= apart["high"]
    assert 0.92 < covered / 400 < 0.98
    assert covered_apart / 400 < 0.85


@pytest.mark.parametrize(("hits", "bounds"), [([4, 4], (4, 4)), ([0, 0], (0, 0)), ([3], (3, None))])
def test_clusters_of_one_outcome_count_as_many_trials_as_they_are(
    hits: list[int], bounds: tuple[int, int | None]
) -> None:
    share = clustered_proportion(np.array(hits), np.full(len(hits), 4))
    assert share["effective"] == len(hits)
    assert share["low"] < share["high"]


def test_the_error_of_a_ratio_over_documents() -> None:
    nats, targets = np.array([3.0, 8.0, 1.0]), np.array([2, 4, 2])
    ratio = 12 / 8
    squares = sum((n - ratio * a) ** 2 for n, a in zip(nats, targets, strict=True))
    assert ratio_standard_error(nats, targets) == pytest.approx(math.sqrt(3 / 2 * squares) / 8)
    equal = ratio_standard_error(nats, np.full(3, 4))
    assert equal == pytest.approx(np.std(nats / 4, ddof=1) / math.sqrt(3))
    assert ratio_standard_error(nats[:1], targets[:1]) is None
