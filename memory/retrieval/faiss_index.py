"""The indexes of faiss that hold one row's and head's keys: Flat, IVF and HNSW, all by inner product.

Johnson, Douze & Jegou 2017, arXiv:1702.08734 (faiss); Sivic & Zisserman 2003 (IVF: a search reads only the
lists of keys nearest to the query); Malkov & Yashunin 2016, arXiv:1603.09320 (HNSW: it walks a graph).

Token t is stored at slot t % capacity and takes the place of token t - capacity.  `flat` is exact.  `ivf` is
flat until there is enough to train on, and trained again when all its keys have been replaced.  `hnsw` can
delete nothing: overwritten keys are passed over, and once they are as many as the living it is built anew.
What `ivf` and `hnsw` find depends on when they were trained and built: a run that is resumed with them isn't
bit for bit the one that went on.  On a GPU there is only `flat`, filled anew whenever a key is replaced;
the others search on the CPU, wherever the bank lies.
"""

import functools
import importlib
import importlib.metadata
import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.errors import UserError, first_line

Kind = Literal["flat", "ivf", "hnsw"]

TRAINING = 39  # keys per list from which faiss trains without complaint
READ = 3  # times the root of the number of lists: an IVF search reads no more
TUNED_BY, TARGET = 32, 0.97  # so many queries, and the share of their true neighbours that must be found
DRIFT = 4  # times tuned while as many keys as the bank holds are written: a text goes on to other things
LINKS, WALK = 32, 512  # of a key in HNSW's graph; keys that a search keeps in mind
GPU_MEMORY = 2**28  # bytes of faiss's temporary memory; it would take a fifth of the GPU


@functools.cache
def load_faiss() -> Any:
    """faiss, after torch; UserError where it is missing, or there twice: both packages fill one folder."""
    names = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")
    there = [name for name in names if _installed(name)]
    if len(there) > 1:
        raise UserError(
            f"backend: expected one package of faiss, found {' and '.join(there)}, which share a folder: "
            f"pip uninstall -y {' '.join(there)}, then pip install -c constraints/cuda.txt faiss-gpu (or "
            "faiss-cpu, for machines without a GPU)"
        )
    try:
        return importlib.import_module("faiss")
    except Exception as error:  # the GPU's fails in ways of its own without its libraries
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
    """This process's one set of GPU resources, on the stream that torch uses by default."""
    resources = load_faiss().StandardGpuResources()
    resources.setTempMemory(GPU_MEMORY)
    resources.setDefaultNullStreamAllDevices()
    return resources


def _floats(numbers: Tensor) -> Any:
    """The address of contiguous float32 numbers: faiss reads and writes tensors where they lie."""
    assert numbers.dtype == torch.float32
    assert numbers.is_contiguous()
    return load_faiss().cast_integer_to_float_ptr(numbers.data_ptr())


def _ids(numbers: Tensor) -> Any:
    assert numbers.dtype == torch.long
    assert numbers.is_contiguous()
    return load_faiss().cast_integer_to_idx_t_ptr(numbers.data_ptr())


class Flat:
    """All keys, each at its slot; below `until`, keys are too few for the index that was asked for."""

    def __init__(self, width: int, capacity: int, device: torch.device, until: float = math.inf) -> None:
        self.capacity, self.width, self.until, faiss = capacity, width, until, load_faiss()
        self.index = faiss.IndexFlatIP(width)
        self.replaces = device.type == "cpu"
        if not self.replaces:
            if not hasattr(faiss, "StandardGpuResources"):
                raise UserError(
                    f"backend: expected faiss-gpu for a bank on {device}, found faiss-cpu: pip uninstall -y "
                    "faiss-cpu, then pip install -c constraints/cuda.txt faiss-gpu (or backend: torch)"
                )
            self.index = faiss.index_cpu_to_gpu(_gpu(), device.index or 0, self.index)

    def outdated(self, written: int) -> bool:
        """Whether it must be made anew to hold the row's last tokens, `written` of them in all."""
        return min(written, self.capacity) >= self.until or (written > self.capacity and not self.replaces)

    def put(self, first: int, keys: Float[Tensor, "tokens width"]) -> None:
        """Store the keys of tokens `first` and after."""
        slots = torch.arange(first, first + len(keys)) % self.capacity
        if not self.index.ntotal:
            keys = keys[slots.argsort().to(keys.device)].contiguous()
        new = min(len(keys), self.capacity - self.index.ntotal)
        self.index.add_c(new, _floats(keys))
        if new < len(keys):
            held = load_faiss().rev_swig_ptr(self.index.get_xb(), self.capacity * self.width)
            torch.from_numpy(held).view(-1, self.width)[slots[new:]] = keys[new:]

    def search(self, queries: Float[Tensor, "queries width"], count: int) -> tuple[Tensor, Tensor]:
        """Scores and slots of the nearest, -1 where there are fewer."""
        return _search(self.index, queries, count)


class Lists:
    """IVF: about 2 sqrt(capacity) lists, of which a search reads the nearest few, at most 3 sqrt(lists).

    How few is measured, again and again as keys are written: some of the queries that come are searched in
    all lists, and in half as many as last time, half as many more, .. until TARGET of the neighbours are
    found.

    A list's centre is the mean of its keys, at its own length, so that a query's product with it is that with
    the list on average; of centres brought to length 1, as faiss has them for inner products, up to twice as
    many must be read to find as much of a trained model's keys.
    """

    def __init__(self, width: int, capacity: int) -> None:
        self.capacity, faiss = capacity, load_faiss()
        lists = list_count(capacity)
        self.index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        self.index.cp.spherical = False
        self.most = self.index.nprobe = min(lists, math.ceil(READ * math.sqrt(lists)))
        self.until, self.untuned = math.inf, 0  # tokens written since it was tuned
        self.least = 1  # lists to begin with

    def outdated(self, written: int) -> bool:
        return written >= self.until

    def put(self, first: int, keys: Float[Tensor, "tokens width"]) -> None:
        faiss, tokens = load_faiss(), torch.arange(first, first + len(keys))
        if not self.index.is_trained:
            self.index.train_c(len(keys), _floats(keys))
            self.index.set_direct_map_type(faiss.DirectMap.Hashtable)
            self.until = first + len(keys) + self.capacity
        slots = tokens % self.capacity
        if self.index.ntotal and (replaced := slots[tokens >= self.capacity]).numel():
            self.index.remove_ids(faiss.IDSelectorArray(replaced.numpy()))
        self.index.add_with_ids_c(len(keys), _floats(keys), _ids(slots))
        self.untuned += len(keys)

    def search(self, queries: Float[Tensor, "queries width"], count: int) -> tuple[Tensor, Tensor]:
        if len(queries) >= TUNED_BY and DRIFT * self.untuned >= self.capacity:
            self._tune(queries[:: len(queries) // TUNED_BY].contiguous(), count)
        return _search(self.index, queries, count)

    def _tune(self, queries: Float[Tensor, "queries width"], count: int) -> None:
        self.untuned = 0
        self.index.nprobe = self.index.nlist
        least, probes = _search(self.index, queries, count)[0][:, -1:], self.least  # of equals, any will do
        while probes < self.most:
            self.index.nprobe = probes
            if (_search(self.index, queries, count)[0] >= least).float().mean() >= TARGET:
                break
            probes = math.ceil(1.5 * probes)
        self.index.nprobe = min(probes, self.most)
        self.least = max(1, self.index.nprobe // 2)


class Graph:
    """HNSW: its places are tokens in their order, so that what has been overwritten is known by its age."""

    def __init__(self, width: int, capacity: int) -> None:
        self.capacity, faiss = capacity, load_faiss()
        self.index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = WALK // 2
        self.first = 0

    def outdated(self, written: int) -> bool:
        return written - self.first > 2 * self.capacity

    def put(self, first: int, keys: Float[Tensor, "tokens width"]) -> None:
        self.first = self.first if self.index.ntotal else first
        self.index.add_c(len(keys), _floats(keys))

    def search(self, queries: Float[Tensor, "queries width"], count: int) -> tuple[Tensor, Tensor]:
        faiss, total = load_faiss(), self.index.ntotal
        walk = faiss.SearchParametersHNSW()
        walk.efSearch = max(WALK, 4 * count)
        if total > self.capacity:
            living = faiss.IDSelectorRange(total - self.capacity, total)
            walk.sel = living
        scores, ids = _search(self.index, queries, count, walk)
        return scores, torch.where(ids < 0, -1, (ids + self.first) % self.capacity)


def list_count(capacity: int) -> int:
    """How many lists an IVF index of this capacity has: no more than it can train."""
    return max(1, min(2 * math.isqrt(capacity), capacity // TRAINING))


def _search(index: Any, queries: Tensor, count: int, how: Any = None) -> tuple[Tensor, Tensor]:
    scores = queries.new_empty(len(queries), count)
    ids = torch.empty_like(scores, dtype=torch.long)
    index.search_c(len(queries), _floats(queries), count, _floats(scores), _ids(ids), how)
    return scores, ids


def make_index(kind: Kind, width: int, capacity: int, alive: int, device: torch.device) -> Any:
    """An empty index for a bank in which so many keys are alive."""
    least = TRAINING * list_count(capacity)
    if kind == "hnsw":
        return Graph(width, capacity)
    if kind == "ivf" and alive >= least:
        return Lists(width, capacity)
    return Flat(width, capacity, device, until=float(least) if kind == "ivf" else math.inf)
