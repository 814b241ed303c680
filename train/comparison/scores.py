"""Scores of a run on its task's test split, from its evaluation.json, at the length that it was trained at.

test/exact, test/accuracy      of samples, per cent of samples and of targets
test/beyond                    accuracy per target whose nearest evidence lies beyond the reach of attention
test/gain                      of the same targets: (constant - loss) / (constant - Bayes), losses in nats
test/longest                   the largest multiple of the training length up to which the lower end of the
                               95 % interval of the first of these shares stays above half of the share at
                               the training length; 0 where that isn't above what is reached without learning
test/area                      the area under that share against log2 length, as a mean over log2 length
test/bits_per_byte             of text
test/worth                     the score with the memory kept less that with the memory reset at every
                               segment; of bits per byte the other way round: above 0 memory helps
"""

import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from zoo.train.comparison.groups import FinishedRun, RunGroup
from zoo.train.comparison.measurements import Length, Measurement, measurements
from zoo.train.evaluation.intervals import proportion, wilson
from zoo.train.evaluation.results import EvalResult

EXACT, ACCURACY, BEYOND, GAIN = "test/exact", "test/accuracy", "test/beyond", "test/gain"
BITS, WORTH = "test/bits_per_byte", "test/worth"
LONGEST, AREA = "test/longest", "test/area"
DOCUMENTS = "test_documents"
"""Not a score: nats, targets and bytes of every document of a text, read with the memory kept."""
SHARES = (BEYOND, EXACT, ACCURACY)
"""Scores of samples that are shares, the one that says most about memory first."""
KNOWING = ("in view", "Bayes")
"""References that know the rules of a task: a perfect reader of a segment, and one of all the text before."""


def with_test_scores(run: FinishedRun, reach: int | None, shared: Collection[Measurement]) -> FinishedRun:
    """The run with its test scores among its metrics; without any where the split wasn't evaluated.

    `reach`: targets count as beyond whose nearest evidence lies at least so far back.
    `shared`: the measurements that count, those that all runs of a comparison have.
    """
    by_length = {m.length: results for m, results in measurements(run).items() if m in shared}
    results = by_length.get(run.config.get("task.length"), by_length.get(None, []))
    if not results:
        return run
    for result in [result for entry in run.evaluations for result in entry["results"]]:
        result.pop("beyond", None)  # of the model's own reach
        if count := counts([result], reach).get(BEYOND):
            result["beyond"] = proportion(*count)
    is_text = any("bits_per_byte" in result for result in results)
    references = baselines(results, is_text)
    scores: dict[str, Any] = text_scores(results) if is_text else sample_scores(results, reach)
    if not is_text:
        scores |= scores_over_lengths(run.config.get("task.length"), by_length, reach, references)
    return run._replace(metrics=run.metrics | {"test_references": references} | scores)


def baselines(results: list[EvalResult], is_text: bool) -> dict[str, dict[str, float]]:
    """Scores of predictors that learn nothing, by the tag of the score."""
    accuracy, exact = (results[-1].get(key, {}) for key in ("reference", "reference_exact"))
    if is_text:
        return {BITS: accuracy}
    untaught = {name: value for name, value in accuracy.items() if name not in KNOWING}
    return {ACCURACY: accuracy, EXACT: exact or accuracy, BEYOND: untaught}


# -- text


def text_scores(results: list[EvalResult]) -> dict[str, Any]:
    """BITS, WORTH and DOCUMENTS of a text read with the memory kept, and perhaps with the memory reset."""
    by_memory = {result["axes"]["memory"]: result for result in results}
    kept, reset = by_memory["kept"], by_memory.get("reset")
    bits = float(kept["bits_per_byte"])
    worth = {WORTH: float(reset["bits_per_byte"]) - bits} if reset else {}
    return {BITS: bits, DOCUMENTS: kept.get("documents"), **worth}


# -- samples


def sample_scores(results: list[EvalResult], reach: int | None) -> dict[str, float]:
    kept = figures(results, reach)
    reset = figures([result["reset"] for result in results if "reset" in result], reach)
    judged = next((tag for tag in (GAIN, *SHARES) if tag in kept and tag in reset), None)
    return kept | ({} if judged is None else {WORTH: kept[judged] - reset[judged]})


def figures(results: list[EvalResult], reach: int | None) -> dict[str, float]:
    """Scores pooled over results; {} of none."""
    scores = {tag: count.share for tag, count in counts(results, reach).items()}
    beyond = beyond_sums(results, reach)
    stake = beyond["constant"] - beyond["bayes"]
    if stake > 0:
        scores[GAIN] = (beyond["constant"] - beyond["nats"]) / stake
    return scores


class Count(NamedTuple):
    """Hits among targets or samples, and how many independent ones have as much to say."""

    hits: int
    of: int
    effective: float

    @property
    def share(self) -> float:
        return self.hits / self.of

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval."""
        return wilson(*self)[0]


def counts(results: list[EvalResult], reach: int | None) -> dict[str, Count]:
    """Of each of SHARES that the results have.  Targets of one sample aren't independent: those beyond the
    reach are taken to be so as far as all are."""
    by_tag = {}
    for tag, key in ((EXACT, "exact"), (ACCURACY, "targets")):
        parts = [result[key] for result in results if key in result]
        if total := sum(part["of"] for part in parts):
            effective = float(sum(part.get("effective", part["of"]) for part in parts))
            by_tag[tag] = Count(sum(part["hits"] for part in parts), total, effective)
    beyond = beyond_sums(results, reach)
    if beyond["targets"]:
        independent = by_tag[ACCURACY].effective / by_tag[ACCURACY].of if ACCURACY in by_tag else 1.0
        targets = int(beyond["targets"])
        by_tag[BEYOND] = Count(int(beyond["hits"]), targets, independent * targets)
    return by_tag


def scores_over_lengths(
    trained: Length,
    results: Mapping[Length, list[EvalResult]],
    reach: int | None,
    references: dict[str, dict[str, float]],
) -> dict[str, float]:
    """LONGEST and AREA of results by length; {} of a run that was evaluated at one length."""
    lengths = sorted(length for length in results if length is not None and trained and length >= trained)
    by_length = [counts(results[length], reach) for length in lengths]
    tag = next((tag for tag in SHARES if all(tag in by_tag for by_tag in by_length)), None)
    if len(lengths) < 2 or trained is None or lengths[0] != trained or tag is None:
        return {}
    shares, lows = [by_tag[tag].share for by_tag in by_length], [by_tag[tag].low for by_tag in by_length]
    untaught = (value for name, value in references.get(tag, {}).items() if name not in KNOWING)
    longest = 0.0
    if lows[0] > max(untaught, default=0.0):
        good = itertools.takewhile(lambda pair: pair[1] > shares[0] / 2, zip(lengths, lows, strict=True))
        longest = max((length / trained for length, _ in good), default=0.0)
    logs = np.log2(lengths)
    return {LONGEST: longest, AREA: float(np.trapezoid(shares, logs) / (logs[-1] - logs[0]))}


def beyond_sums(results: list[EvalResult], reach: int | None) -> dict[str, float]:
    """Sums over the targets whose nearest evidence lies at least `reach` positions back; 0 for what isn't
    stored."""
    least = math.inf if reach is None else reach
    evidence = [result["evidence"] for result in results if result.get("evidence")]
    return {
        key: math.fsum(
            value
            for part in evidence
            for distance, value in zip(part["distance"], part.get(key, []), strict=False)
            if distance >= least
        )
        for key in ("targets", "hits", "nats", "bayes", "constant")
    }


def shared_tags(runs: list[FinishedRun]) -> list[str]:
    """Tags of the test scores that all runs have, the one that they are compared by first."""
    order = [BITS] if any(BITS in run.metrics for run in runs) else [GAIN, *SHARES]
    return [tag for tag in order if all(tag in run.metrics for run in runs)]


class DocumentBits(NamedTuple):
    """Bits of every document, mean over the runs of a row, and its bytes."""

    bits: list[float]
    sizes: list[int]


def mean_bits(group: RunGroup) -> DocumentBits | None:
    """None unless every run of the row has read the same documents one by one."""
    by_run = [run.metrics.get(DOCUMENTS) for run in group.runs]
    if any(not part or part["bytes"] != (by_run[0] or {})["bytes"] for part in by_run):
        return None
    rows = [[nats / math.log(2) for nats in part["nats"]] for part in by_run if part]
    sizes = [int(size) for size in (by_run[0] or {})["bytes"]]
    return DocumentBits([math.fsum(values) / len(values) for values in zip(*rows, strict=True)], sizes)
