"""Statistics over runs and tasks: aggregates, probability of improvement, intervals of differences, Holm."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import special

from zoo.train.comparison import statistics

TASKS = frozenset({""})
UNCHECKED = {
    "mean": "not reported over tasks: a single task may decide it",
    "median": "not reported over tasks: nearly half of the tasks may be 0",
}


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def check(data: dict[str, Any]) -> None:
    scores = {sample["model"]: np.array(sample["scores"]) for sample in data["samples"]}
    first = next(iter(scores.values()))
    for sample in data["samples"]:
        table = scores[sample["model"]]
        assert statistics.interquartile_mean(table) == close(sample["iqm"]), sample
        assert statistics.optimality_gap(table) == close(sample["optimality_gap"]), sample
        if (improvement := sample["improves_on_first"]) is not None:  # None: of the first model itself
            assert statistics.probability_of_improvement(table, first) == close(improvement), sample
    columns = {model: dict(enumerate(table[:, 0].tolist())) for model, table in scores.items()}
    layout = statistics.two_way(list(columns.values()))
    assert layout is not None
    assert layout.residual_sd == close(data["two_way_sd"])
    baseline = list(next(iter(columns.values())).values())
    for expected in data["differences"]:
        values = list(columns[expected["model"]].values())
        welch = statistics.welch(values, baseline)
        assert welch is not None
        assert welch.mean == close(expected["difference"]), expected
        assert welch.half_width == close(expected["welch_half"]), expected
        error = math.sqrt((np.var(values, ddof=1) + np.var(baseline, ddof=1)) / len(values))
        quantile = special.stdtrit(expected["welch_df"], 0.975)
        assert welch.half_width == close(quantile * error), expected
        two_way = statistics.two_way_difference(values, baseline, layout)
        assert two_way.half_width == close(expected["two_way_half"]), expected
    assert statistics.holm(data["holm"]["p"]) == close(data["holm"]["adjusted"])
