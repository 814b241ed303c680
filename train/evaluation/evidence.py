"""Evidence and what is in view: scores of samples by how far back a target's evidence lies.

A target is *beyond* R if its nearest evidence lies R positions back or more (`Dataset.evidence_distances`):
what reads the last R positions alone has a chance there.  *In view* is the score of a perfect reader of the
segment that a target is in (`Dataset.view_chances`): what a model without memory can reach.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from zoo.train.evaluation.intervals import clustered_proportion
from zoo.train.evaluation.streaming import SamplePredictions
from zoo.train.tasks.base import Dataset, TargetPositions

Values = Shaped[np.ndarray, " targets"]


class Targets(NamedTuple):
    """All targets of some samples, one sample after the other."""

    sample: TargetPositions
    distance: TargetPositions
    hit: Bool[np.ndarray, " targets"]
    nats: Float64[np.ndarray, " targets"]
    bayes: Float64[np.ndarray, " targets"] | None
    chance: Float64[np.ndarray, " targets"] | None
    """Of a reader that sees the current token alone."""


def gather_targets(dataset: Dataset, predictions: SamplePredictions) -> Targets | None:
    """None in a task whose evidence isn't known."""
    per_sample = []
    for document, positions in enumerate(predictions.positions):
        distances = at_targets(dataset.evidence_distances, document, positions)
        if distances is None:
            return None
        per_sample.append(
            (
                np.full(len(positions), document),
                distances,
                at_targets(dataset.bayes_nats, document, positions),
                dataset.view_chances(document, positions, positions),
            )
        )
    sample, distance, bayes, chance = zip(*per_sample, strict=True)
    hit, nats = np.concatenate(predictions.hits), np.concatenate(predictions.nats)
    return Targets(
        np.concatenate(sample), np.concatenate(distance), hit, nats, _joined(bayes), _joined(chance)
    )


def at_targets(
    read: Callable[[int, int, int], Any], document: int, positions: TargetPositions
) -> Values | None:
    """What a method of a dataset gives at the positions of a document's targets; None where it gives none."""
    if not len(positions):
        return np.zeros(0, np.int64)
    first, last = int(positions[0]), int(positions[-1])
    values = read(document, first, last + 1)
    return None if values is None else np.asarray(values[positions - first])


def _joined(parts: tuple[Any, ...]) -> Float64[np.ndarray, " targets"] | None:
    return None if any(part is None for part in parts) else np.concatenate(parts).astype(np.float64)


def by_distance(targets: Targets) -> dict[str, list[int | float]]:
    """Sums by distance, ascending; -1 is that of targets without evidence.

    `chance` and `constant` are hits and nats of a reader that sees no evidence, `bayes` the nats of one that
    sees all of the text before, where they are known.
    """
    distances, index = np.unique(targets.distance, return_inverse=True)
    sums: dict[str, list[int | float]] = {
        "distance": distances.tolist(),
        "targets": np.bincount(index).tolist(),
        "hits": np.bincount(index, targets.hit).astype(np.int64).tolist(),
        "nats": np.bincount(index, targets.nats).tolist(),
    }
    if targets.chance is not None:
        sums["chance"] = np.bincount(index, targets.chance).tolist()
        if targets.bayes is not None:
            sums["constant"] = np.bincount(index, -np.log(targets.chance)).tolist()
            sums["bayes"] = np.bincount(index, targets.bayes).tolist()
    return sums


def beyond(targets: Targets, reach: int) -> dict[str, Any] | None:
    """The share of targets beyond `reach` that were hit; None where there are no such targets."""
    selected = targets.distance >= reach
    if not selected.any():
        return None
    _, cluster = np.unique(targets.sample[selected], return_inverse=True)
    hits = np.bincount(cluster, targets.hit[selected]).astype(np.int64)
    return {"reach": reach, **clustered_proportion(hits, np.bincount(cluster))}


class View(NamedTuple):
    """Scores of a perfect reader of a target's segment."""

    accuracy: float
    exact: float


def in_view(dataset: Dataset, positions: list[Int64[np.ndarray, " _"]], segment_len: int) -> View | None:
    """None where it isn't known."""
    chances = [
        dataset.view_chances(document, of_sample, of_sample // segment_len * segment_len)
        for document, of_sample in enumerate(positions)
    ]
    known = [chance for chance in chances if chance is not None]
    if len(known) < len(chances) or not known:
        return None
    return View(float(np.concatenate(known).mean()), float(np.mean([chance.prod() for chance in known])))
