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

import functools
import importlib
import importlib.metadata
import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.errors import UserError, first_line

IndexType = Literal["flat", "ivf", "hnsw"]

MIN_KEYS_PER_LIST = 39  # with fewer, faiss warns when it trains
MAX_PROBES = 3  # limit of the lists that an IVF search reads, times the root of the number of lists
TUNING_QUERIES, TARGET_RECALL = 32, 0.97  # an IVF search reads enough lists for this recall on these queries
SPREAD = 2.5  # standard deviations of a list's products with a query, above their mean, that rank the list
ITERATIONS = 4  # of k-means
MIN_FILLED = 0.9  # share of the requested keys that the lists read must hold; searches that find fewer go on
TUNINGS = 4  # per `capacity` written keys, since the topics of a text change
LINKS, SEARCH_WIDTH = 32, 512  # links per key in HNSW's graph; candidates per search (faiss's efSearch)
GPU_MEMORY = 2**28  # bytes of faiss's temporary memory; its default is a fifth of the GPU


@functools.cache
def load_faiss() -> Any:
    """The module faiss, imported after torch.

    Raises UserError if it is missing, or if two of its packages are installed, which overwrite each other's
    files.
    """
    names = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")
    installed = [name for name in names if _installed(name)]
    if len(installed) > 1:
        raise UserError(
            f"backend: expected one package of faiss, found {' and '.join(installed)}, which share a folder: "
            f"pip uninstall -y {' '.join(installed)}, then pip install -c constraints/cuda.txt faiss-gpu (or "
            "faiss-cpu, for machines without a GPU)"
        )
    try:
        return importlib.import_module("faiss")
    except Exception as error:  # faiss-gpu without its libraries raises other errors than ImportError
        raise UserError(
            "backend: expected the package faiss-cpu: pip install faiss-cpu (with a GPU: pip install -c "
            f"constraints/cuda.txt faiss-gpu); found {first_line(error)}"
        ) from error


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


@functools.cache
def _gpu() -> Any:
    """This process's GPU resources, on the stream that torch uses by default."""
    resources = load_faiss().StandardGpuResources()
    resources.setTempMemory(GPU_MEMORY)
    resources.setDefaultNullStreamAllDevices()
    return resources


def _float_pointer(vectors: Tensor) -> Any:
    """The address of contiguous float32 vectors: faiss reads and writes tensors without a copy."""
    assert vectors.dtype == torch.float32
    assert vectors.is_contiguous()
    return load_faiss().cast_integer_to_float_ptr(vectors.data_ptr())


def _id_pointer(ids: Tensor) -> Any:
    assert ids.dtype == torch.long
    assert ids.is_contiguous()
    return load_faiss().cast_integer_to_idx_t_ptr(ids.data_ptr())


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
            self.index = faiss.index_cpu_to_gpu(_gpu(), device.index or 0, self.index)

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
        self.index.add_c(new, _float_pointer(keys))
        if new < len(keys):
            stored = load_faiss().rev_swig_ptr(self.index.get_xb(), self.capacity * self.width)
            torch.from_numpy(stored).view(-1, self.width)[slots[new:]] = keys[new:]

    def search(self, queries: Float[Tensor, "queries width"], count: int) -> tuple[Tensor, Tensor]:
        """Scores and slots of the nearest keys; slots are -1 where fewer are stored."""
        return _search(self.index, queries, count)


class IVFIndex:
    """IVF: about 2 sqrt(capacity) lists, of which a search reads a few, at most 3 sqrt(lists).

        m_l, s_l^2 = mean, and variance per channel, of the keys of list l
        lists read for q_i: those with the largest q_i m_l + SPREAD |q_i| s_l

    This is a high quantile of a query's products with the keys of a list, if those scatter alike in all
    directions.  By the mean alone (faiss's choice) a model's rare keys, which share a list because nothing
    lies near them, are found only after most of the lists have been read.

    Lists are trained by k-means on MIN_KEYS_PER_LIST keys per list.  Half of them are drawn uniformly and
    half by their squared distance to the nearest of a few random keys, since a uniform sample of this size
    misses rare keys.  Keys are assigned by distance: by inner product, one list would take all keys that are
    almost equal.

    The number of lists read is tuned repeatedly as keys are written.  A sample of the queries is searched in
    all lists, then in half as many as the last tuning chose, then in 1.5 times as many, and so on until its
    recall is `target_recall`.
    """

    def __init__(self, width: int, capacity: int, target_recall: float = TARGET_RECALL) -> None:
        self.capacity, self.target_recall, faiss = capacity, target_recall, load_faiss()
        lists = list_count(capacity)
        self.index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        self.index.cp.spherical, self.index.cp.niter = False, ITERATIONS
        self.max_probes = self.index.nprobe = min(lists, math.ceil(MAX_PROBES * math.sqrt(lists)))
        self.first_probes = 1  # lists that the next tuning tries first
        self.untuned = 0  # tokens written since the last tuning
        self.max_length = math.inf  # of the row: then all keys that it was trained on are overwritten
        self.centres = torch.empty(lists, width)  # which k-means found
        # of each list's keys since training: number, sum, squared distances to the centre
        self.counts, self.sums = torch.zeros(lists), torch.zeros(lists, width)
        self.squares = torch.zeros(lists)
        self.means, self.spreads = torch.empty(lists, width), torch.empty(lists)  # m_l and SPREAD s_l

    def outdated(self, length: int) -> bool:
        return length >= self.max_length

    def put(self, first: int, keys: Float[Tensor, "tokens width"]) -> None:
        faiss, tokens = load_faiss(), torch.arange(first, first + len(keys))
        if not self.index.is_trained:
            sample = _training_keys(keys, self.index.nlist)
            self.index.train_c(len(sample), _float_pointer(sample))
            self.index.set_direct_map_type(faiss.DirectMap.Hashtable)
            self.centres = torch.from_numpy(self.index.quantizer.reconstruct_n(0, self.index.nlist))
            self.max_length = first + len(keys) + self.capacity
        slots = tokens % self.capacity
        if self.index.ntotal and (replaced := slots[tokens >= self.capacity]).numel():
            self.index.remove_ids(faiss.IDSelectorArray(replaced.numpy()))
        squares, lists = (part[:, 0] for part in _search(self.index.quantizer, keys, 1))
        self.index.add_core(len(keys), _float_pointer(keys), _id_pointer(slots), _id_pointer(lists))
        self._describe(keys, lists, squares)
        self.untuned += len(keys)

    def _describe(
        self,
        keys: Float[Tensor, "tokens width"],
        lists: Int[Tensor, " tokens"],
        squares: Float[Tensor, " tokens"],
    ) -> None:
        """Update the lists' means and spreads by these keys; `squares` are their squared distances to the
        centres."""
        self.counts += torch.bincount(lists, minlength=len(self.counts))
        self.sums.index_add_(0, lists, keys)
        self.squares.index_add_(0, lists, squares)
        counts = self.counts.clamp(min=1)
        self.means = torch.where(self.counts[:, None] > 0, self.sums / counts[:, None], self.centres)
        variances = self.squares / counts - (self.means - self.centres).square().sum(-1)
        self.spreads = SPREAD * (variances.clamp(min=0) / keys.shape[1]).sqrt()

    def search(self, queries: Float[Tensor, "queries width"], count: int) -> tuple[Tensor, Tensor]:
        if len(queries) >= TUNING_QUERIES and TUNINGS * self.untuned >= self.capacity:
            self._tune(queries[:: len(queries) // TUNING_QUERIES].contiguous(), count)
        probes = self.index.nprobe
        scores, slots = self._read_lists(queries, count, probes)
        while probes < self.index.nlist and (short := slots[:, -1] < 0).any():  # lists with too few keys
            probes = min(4 * probes, self.index.nlist)
            scores[short], slots[short] = self._read_lists(queries[short], count, probes)
        return scores, slots

    def _read_lists(
        self, queries: Float[Tensor, "queries width"], count: int, probes: int
    ) -> tuple[Tensor, Tensor]:
        """Scores and slots of the nearest keys in so many lists; slots are -1 where these hold fewer keys."""
        scores = queries.new_empty(len(queries), count)
        slots = torch.empty_like(scores, dtype=torch.long)
        quantiles = torch.addmm(queries.norm(dim=-1)[:, None] * self.spreads, queries, self.means.T)
        best, lists = quantiles.topk(probes)
        self.index.search_preassigned_c(
            len(queries),
            _float_pointer(queries),
            count,
            _id_pointer(lists),
            _float_pointer(best),
            _float_pointer(scores),
            _id_pointer(slots),
            False,
            load_faiss().SearchParametersIVF(nprobe=probes),
        )
        return scores, slots

    def _tune(self, queries: Float[Tensor, "queries width"], count: int) -> None:
        self.untuned = 0
        scores, _ = self._read_lists(queries, count, self.index.nlist)
        kth_score = scores[:, -1:]  # keys that tie with it count
        stored = min(count, self.index.ntotal)
        probes = self.first_probes
        while probes < self.max_probes:
            scores, slots = self._read_lists(queries, count, probes)
            recall = (scores >= kth_score).float().mean()
            if recall >= self.target_recall and (slots >= 0).sum() >= MIN_FILLED * len(queries) * stored:
                break
            probes = math.ceil(1.5 * probes)
        self.index.nprobe = min(probes, self.max_probes)
        self.first_probes = max(1, self.index.nprobe // 2)


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
        self.index.add_c(len(keys), _float_pointer(keys))

    def search(self, queries: Float[Tensor, "queries width"], count: int) -> tuple[Tensor, Tensor]:
        faiss, total = load_faiss(), self.index.ntotal
        parameters = faiss.SearchParametersHNSW()
        parameters.efSearch = max(SEARCH_WIDTH, 4 * count)
        if total > self.capacity:
            stored = faiss.IDSelectorRange(total - self.capacity, total)
            parameters.sel = stored
        scores, ids = _search(self.index, queries, count, parameters)
        return scores, torch.where(ids < 0, -1, (ids + self.first) % self.capacity)


def _training_keys(keys: Float[Tensor, "tokens width"], lists: int) -> Float[Tensor, "sample width"]:
    """MIN_KEYS_PER_LIST keys per list: half of them drawn uniformly, half by their squared distance to the
    nearest of a few random keys."""
    count = MIN_KEYS_PER_LIST * lists
    if len(keys) <= count:
        return keys
    random = torch.Generator().manual_seed(0)
    index = load_faiss().IndexFlatL2(keys.shape[1])
    centres = keys[torch.randperm(len(keys), generator=random)[: math.ceil(lists / 16)]]
    index.add_c(len(centres), _float_pointer(centres))
    squares = _search(index, keys, 1)[0][:, 0].clamp(min=0)
    weights = 1 / len(keys) + squares / squares.sum().clamp(min=1e-30)
    return keys[weights.multinomial(count, generator=random)]


def list_count(capacity: int) -> int:
    """The number of lists of an IVF index of this capacity: no more than it can train."""
    return max(1, min(2 * math.isqrt(capacity), capacity // MIN_KEYS_PER_LIST))


def _search(index: Any, queries: Tensor, count: int, parameters: Any = None) -> tuple[Tensor, Tensor]:
    scores = queries.new_empty(len(queries), count)
    ids = torch.empty_like(scores, dtype=torch.long)
    index.search_c(
        len(queries), _float_pointer(queries), count, _float_pointer(scores), _id_pointer(ids), parameters
    )
    return scores, ids


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
