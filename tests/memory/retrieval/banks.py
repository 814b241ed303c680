"""Random tensors and banks, and the overlap of two searches."""

import pytest
import torch
from torch import Tensor

from zoo.memory.retrieval.bank import Bank, KNNMemory
from zoo.memory.retrieval.faiss_index import IndexType

INDEX_TYPES: tuple[IndexType, ...] = ("flat", "ivf", "hnsw")
faiss_only = pytest.mark.usefixtures("faiss")


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def add(knn: KNNMemory, bank: Bank, time: int, seed: int = 0) -> Bank:
    rows = len(bank.length)
    values = randn(seed + 1, rows, knn.heads, time, knn.value_width) if knn.value_width else None
    return knn.add(bank, randn(seed, rows, knn.heads, time, knn.key_width), values)


def overlap(expected: Tensor, slots: Tensor) -> float:
    """The share of the expected slots that are among `slots`."""
    hits = ((expected[..., None] == slots[..., None, :]) & (expected >= 0)[..., None]).any(-1)
    return hits.sum().item() / max(1, int((expected >= 0).sum()))
