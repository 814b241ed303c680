"""faiss's IVF index of one row's and head's keys, as the keys of trained models need it."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.memory.retrieval.faiss_package import float_pointer, id_pointer, load_faiss, search_index

MIN_KEYS_PER_LIST = 39  # with fewer, faiss warns when it trains
MAX_PROBES = 3  # limit of the lists that an IVF search reads, times the root of the number of lists
TUNING_QUERIES, TARGET_RECALL = 32, 0.97  # an IVF search reads enough lists for this recall on these queries
SPREAD = 2.5  # standard deviations of a list's products with a query, above their mean, that rank the list
ITERATIONS = 4  # of k-means
MIN_FILLED = 0.9  # share of the requested keys that the lists read must hold; searches that find fewer go on
TUNINGS = 4  # per `capacity` written keys, since the topics of a text change


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
            self.index.train_c(len(sample), float_pointer(sample))
            self.index.set_direct_map_type(faiss.DirectMap.Hashtable)
            self.centres = torch.from_numpy(self.index.quantizer.reconstruct_n(0, self.index.nlist))
            self.max_length = first + len(keys) + self.capacity
        slots = tokens % self.capacity
        if self.index.ntotal and (replaced := slots[tokens >= self.capacity]).numel():
            self.index.remove_ids(faiss.IDSelectorArray(replaced.numpy()))
        squares, lists = (part[:, 0] for part in search_index(self.index.quantizer, keys, 1))
        self.index.add_core(len(keys), float_pointer(keys), id_pointer(slots), id_pointer(lists))
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
            float_pointer(queries),
            count,
            id_pointer(lists),
            float_pointer(best),
            float_pointer(scores),
            id_pointer(slots),
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


def _training_keys(keys: Float[Tensor, "tokens width"], lists: int) -> Float[Tensor, "sample width"]:
    """MIN_KEYS_PER_LIST keys per list: half of them drawn uniformly, half by their squared distance to the
    nearest of a few random keys."""
    count = MIN_KEYS_PER_LIST * lists
    if len(keys) <= count:
        return keys
    random = torch.Generator().manual_seed(0)
    index = load_faiss().IndexFlatL2(keys.shape[1])
    centres = keys[torch.randperm(len(keys), generator=random)[: math.ceil(lists / 16)]]
    index.add_c(len(centres), float_pointer(centres))
    squares = search_index(index, keys, 1)[0][:, 0].clamp(min=0)
    weights = 1 / len(keys) + squares / squares.sum().clamp(min=1e-30)
    drawn = (weights / torch.empty_like(weights).exponential_(generator=random)).topk(count)
    return keys[drawn.indices]  # as multinomial without replacement, which takes 2^24 weights at most


def list_count(capacity: int) -> int:
    """The number of lists of an IVF index of this capacity: no more than it can train."""
    return max(1, min(2 * math.isqrt(capacity), capacity // MIN_KEYS_PER_LIST))
