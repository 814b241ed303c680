"""Distances to evidence, and what a perfect reader of a part of a sample knows."""

import numpy as np
from jaxtyping import Int64

from zoo.train.tasks.base import Chances, Dataset, TargetPositions


def window_distances(
    targets: TargetPositions, evidence: TargetPositions, start: int, stop: int
) -> Int64[np.ndarray, " positions"]:
    """Distances of the window start..stop-1, as `Dataset.evidence_distances` has them, from the positions of
    a document's targets and of their evidence."""
    distances = np.full(stop - start, -1, np.int64)
    in_window = (targets >= start) & (targets < stop)
    distances[targets[in_window] - start] = (targets - evidence)[in_window]
    return distances


def chances_by_evidence(
    dataset: Dataset,
    document: int,
    positions: TargetPositions,
    starts: TargetPositions,
    guess: float | Chances,
) -> Chances:
    """`Dataset.view_chances` where a target is known if its nearest evidence is seen, and else a guess."""
    first, last = int(positions[0]), int(positions[-1])
    distances = dataset.evidence_distances(document, first, last + 1)
    assert distances is not None
    of_targets = distances[positions - first]
    return np.where((of_targets >= 0) & (starts <= positions - of_targets), 1.0, guess)


def guess_another(pairs: int, num_values: int, starts: TargetPositions) -> Chances:
    """Chance of a guess at the value of an unseen pair, where a line begins with `pairs` of key and value and
    no two have the same value: any that isn't seen beside its key.

    A value that is seen without its key, the first token in view, is what a reader says of any key that it
    doesn't see: right of its own, which `chances_by_evidence` counts as seen, and of no other.
    """
    seen = np.clip(pairs - (starts + 1) // 2, 0, pairs)
    has_single_value = (starts % 2 == 1) & (starts < 2 * pairs)
    return np.where(has_single_value, 0.0, 1 / np.maximum(1, num_values - seen))
