"""faiss indexes of one row's and head's keys: Flat, IVF and HNSW, all by inner product.

Johnson, Douze & Jegou 2017, arXiv:1702.08734 (faiss); Sivic & Zisserman 2003 (IVF: a search reads only the
lists of keys nearest to the query); Malkov & Yashunin 2016, arXiv:1603.09320 (HNSW: it walks a graph).

Token t is stored in slot t % capacity and replaces token t - capacity.  `flat` is exact.  `ivf` is flat until
there are enough keys to train on, and trained again when all its keys have been replaced.  `hnsw` can't
delete: overwritten keys are skipped, and once there are as many of them as stored ones the index is rebuilt.
Results of `ivf` and `hnsw` depend on when they were trained and built: a run resumed with them isn't bit for
bit the uninterrupted one.  On a GPU there is only `flat`, filled anew whenever a key is replaced; the others
search on the CPU, wherever the bank is.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.errors import UserError
from zoo.memory.retrieval.faiss_package import float_pointer, gpu, load_faiss, search_index
from zoo.memory.retrieval.ivf_index import MIN_KEYS_PER_LIST, TARGET_RECALL, IVFIndex, list_count

IndexType = Literal["flat", "ivf", "hnsw"]

LINKS, SEARCH_WIDTH = 32, 512  # links per key in HNSW's graph; candidates per search (faiss's efSearch)


class FlatIndex:
    """All keys, each at its slot; from `max_keys` keys on, an index of another type takes over."""

    def __init__(self, width: int, capacity: int, device: torch.device, max_keys: float = math.inf) -> None:
        self.capacity, self.width, self.max_keys, faiss = capacity, width, max_keys, load_faiss()
        self.index = faiss.IndexFlatIP(width)
        self.overwrites = device.type == "cpu"
        if not self.overwrites:
            if not hasattr(faiss, "StandardGpuResources"):
                raise UserError(
                    f"backend: expected faiss-gpu for a bank on {device}, found faiss-cpu: pip uninstall -y "
                    "faiss-cpu, then pip install -c constraints/cuda.txt faiss-gpu (or backend: torch)"
                )
            self.index = faiss.index_cpu_to_gpu(gpu(), device.index or 0, self.index)

    def outdated(self, length: int) -> bool:
        """True if a row that has stored `length` tokens needs a new index."""
        if length > self.capacity and not self.overwrites:
            return True
        return min(length, self.capacity) >= self.max_keys

    def put(self, first: int, keys: Float[Tensor, "tokens width"]) -> None:
        """Store the keys of tokens `first` and after."""
        slots = torch.arange(first, first + len(keys)) % self.capacity
        if not self.index.ntotal:
            keys = keys[slots.argsort().to(keys.device)].contiguous()
        new = min(len(keys), self.capacity - self.index.ntotal)
        self.index.add_c(new, float_pointer(keys))
        if new < len(keys):
            stored = load_faiss().rev_swig_ptr(self.index.get_xb(), self.capacity * self.width)
            torch.from_numpy(stored).view(-1, self.width)[slots[new:]] = keys[new:]

    def search(self, queries: Float[Tensor, "queries width"], count: int) -> tuple[Tensor, Tensor]:
        """Scores and slots of the nearest keys; slots are -1 where fewer are stored."""
        return search_index(self.index, queries, count)


class HNSWIndex:
    """HNSW: ids are token numbers minus `first`, so that overwritten tokens have the lowest ids."""

    def __init__(self, width: int, capacity: int) -> None:
        self.capacity, faiss = capacity, load_faiss()
        self.index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = SEARCH_WIDTH // 2
        self.first = 0

    def outdated(self, length: int) -> bool:
        return length - self.first > 2 * self.capacity

    def put(self, first: int, keys: Float[Tensor, "tokens width"]) -> None:
        self.first = self.first if self.index.ntotal else first
        self.index.add_c(len(keys), float_pointer(keys))

    def search(self, queries: Float[Tensor, "queries width"], count: int) -> tuple[Tensor, Tensor]:
        faiss, total = load_faiss(), self.index.ntotal
        parameters = faiss.SearchParametersHNSW()
        parameters.efSearch = max(SEARCH_WIDTH, 4 * count)
        if total > self.capacity:
            stored = faiss.IDSelectorRange(total - self.capacity, total)
            parameters.sel = stored
        scores, ids = search_index(self.index, queries, count, parameters)
        return scores, torch.where(ids < 0, -1, (ids + self.first) % self.capacity)


def make_index(
    index_type: IndexType,
    width: int,
    capacity: int,
    stored: int,
    device: torch.device,
    target_recall: float = TARGET_RECALL,
) -> Any:
    """An empty index for a bank of `stored` keys."""
    trainable = MIN_KEYS_PER_LIST * list_count(capacity)
    if index_type == "hnsw":
        return HNSWIndex(width, capacity)
    if index_type == "ivf" and stored >= trainable:
        return IVFIndex(width, capacity, target_recall)
    return FlatIndex(width, capacity, device, max_keys=float(trainable) if index_type == "ivf" else math.inf)
