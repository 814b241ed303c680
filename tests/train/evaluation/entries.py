"""Access to entries of evaluation.json."""

from typing import Any

from zoo.train.evaluation.results import EvalEntry, EvalResult


def result_at(entry: EvalEntry, **axes: Any) -> EvalResult:
    """The only result at these axes."""
    [result] = [result for result in entry["results"] if result["axes"].items() >= axes.items()]
    return result
