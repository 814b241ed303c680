"""MAD's kinds at the suite's sizes, and samples of them."""

from typing import Any

import numpy as np

from tests.train.tasks.samples import read_sample
from zoo.train.tasks.base import Split
from zoo.train.tasks.mad import Mad

SIZES: dict[str, dict[str, Any]] = {  # the suite's
    "in_context_recall": {"length": 128, "vocab_size": 16},
    "noisy_in_context_recall": {"length": 128, "vocab_size": 32},
    "fuzzy_in_context_recall": {"length": 128, "vocab_size": 16},
    "memorization": {"length": 32, "vocab_size": 256},
    "compression": {"length": 32, "vocab_size": 16},
    "selective_copying": {"length": 256, "vocab_size": 16},
}
KINDS = list(SIZES)


def mad(kind: Any, **settings: Any) -> Mad:
    return Mad(kind=kind, **SIZES[kind] | settings)


def samples(task: Mad, count: int, split: Split = "val") -> list[tuple[list[int], list[int]]]:
    dataset = task.split(split)
    pairs = (read_sample(dataset, document) for document in range(count))
    return [(tokens.tolist(), targets.tolist()) for tokens, targets in pairs]


def chi_square(counts: Any, shares: Any) -> float:
    expected = np.sum(counts) * np.asarray(shares)
    return float(((np.asarray(counts) - expected) ** 2 / expected).sum())
