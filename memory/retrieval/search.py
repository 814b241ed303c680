"""Search for a bank's nearest keys: exactly, or by faiss's indexes, one for each row and head.

    N_i = the k slots j with the largest q_i k_j, in float32 at least; of equal scores the lowest slot

An index (memory/retrieval/faiss_index.py) is a cache of the bank and no part of it.  It is identified by its
row's stamp and brought up to date when the row is searched: under the current stamp it is used as it is,
under the previous one it gets the tokens written since, and under any other it is built anew.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.host import is_readable
from zoo.memory.mixer import no_autocast
from zoo.memory.retrieval.faiss_index import IndexType, make_index
from zoo.memory.retrieval.faiss_package import load_faiss
from zoo.memory.retrieval.ivf_index import TARGET_RECALL

MAX_SCORES = 2**24  # scores that exact search computes at a time


def search_exact(
    queries: Float[Tensor, "rows heads time key_width"],
    blocks: tuple[Float[Tensor, "rows heads block key_width"], ...],
    length: Int[Tensor, " rows"],
    neighbours: int,
    known: tuple[int, int] | None = None,
) -> Int[Tensor, "rows heads time neighbours"]:
    """Slots of the nearest keys; scores are computed for a batch of keys at a time, to limit memory.

    No row's `length` is below the first or above the second of `known`, as the host knows it.  Without them
    all keys are scored where the host can't read `length`.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    best = queries.new_full((*queries.shape[:3], neighbours), -torch.inf, dtype=dtype)
    best_slots, start = torch.full_like(best, -1, dtype=torch.long), 0
    shortest, longest = known or _length_range(length, sum(block.shape[2] for block in blocks))
    size = max(1, MAX_SCORES // max(1, best[..., 0].numel()))
    with no_autocast(queries):
        for keys in _key_batches(blocks, size):
            if start >= longest:
                break
            scores = queries.to(dtype) @ keys.to(dtype).mT
            end = start + keys.shape[2]
            if shortest < end:
                empty = torch.arange(start, end, device=queries.device) >= length[:, None]
                scores.masked_fill_(empty[:, None, None], -torch.inf)
            top, slots = _largest(scores, neighbours)
            if start:  # of equal scores, those of earlier batches have the lower slots
                top, slots = torch.cat([best, top], dim=-1), torch.cat([best_slots, slots + start], dim=-1)
                top, order = _largest(top, neighbours)
                slots = slots.gather(-1, order)
            best[..., : top.shape[-1]], best_slots[..., : top.shape[-1]] = top, slots
            start = end
    return best_slots.masked_fill(best == -torch.inf, -1)


def search_exact_reference(
    queries: Float[Tensor, "rows heads time key_width"],
    blocks: tuple[Float[Tensor, "rows heads block key_width"], ...],
    length: Int[Tensor, " rows"],
    neighbours: int,
) -> Int[Tensor, "rows heads time neighbours"]:
    """The definition: all scores sorted, of equal ones the lowest slot first."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    scores = queries.to(dtype) @ torch.cat(blocks, dim=2).to(dtype).mT
    empty = torch.arange(scores.shape[-1], device=queries.device) >= length[:, None]
    scores = scores.masked_fill(empty[:, None, None], -torch.inf)
    best, slots = (part[..., :neighbours] for part in scores.sort(dim=-1, descending=True, stable=True))
    return slots.masked_fill(best == -torch.inf, -1)


def _length_range(length: Int[Tensor, " rows"], capacity: int) -> tuple[int, int]:
    """The least and the greatest length; 0 and `capacity` where the host can't read them."""
    if not is_readable(length) or not len(length):
        return 0, capacity
    shortest, longest = length.aminmax()
    return int(shortest), int(longest)


def _key_batches(blocks: tuple[Tensor, ...], size: int) -> Iterator[Tensor]:
    """The keys in batches of about `size`: long blocks are cut, short ones joined."""
    pending: list[Tensor] = []
    for part in (part for block in blocks for part in block.split(size, dim=2)):
        if pending and sum(earlier.shape[2] for earlier in pending) + part.shape[2] > size:
            yield torch.cat(pending, dim=2)
            pending = []
        pending.append(part)
    yield torch.cat(pending, dim=2)


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest scores and their indices, the largest first; of equal scores the first indices."""
    best, indices = scores.topk(min(count + 1, scores.shape[-1]))
    if indices.shape[-1] > count:
        last, next_best = best[..., count - 1], best[..., count]
        cut_ties = (last == next_best) & (last > -torch.inf)  # only some of the equal scores are among them
        indices = indices[..., :count]
        if not is_readable(scores):
            indices = _first_largest(scores, last, count)
        elif cut_ties.any():
            indices[cut_ties] = scores[cut_ties].sort(descending=True, stable=True).indices[:, :count]
    indices = indices.sort().values
    best, order = scores.gather(-1, indices).sort(descending=True, stable=True)
    return best, indices.gather(-1, order)


def _first_largest(scores: Tensor, last: Tensor, count: int) -> Tensor:
    """The indices of all scores above `last`, the largest but `count` - 1, and of the first that equal it."""
    number = scores.shape[-1]
    order = (number - 1 - torch.arange(number, device=scores.device)).int()
    for above in (scores >= last[..., None], scores > last[..., None]):
        order = order + above.int() * number
    return order.topk(count).indices


Key = tuple[int, torch.device]  # a row's stamp, and the device of its indexes


class RowIndexes(NamedTuple):
    """One row's indexes."""

    heads: list[Any]  # one per head
    length: int  # tokens that the row had stored when they were last brought up to date
    training: bool  # the mode of the last search


class IndexCache:
    """The faiss indexes of recently searched rows, by their stamps.  A copy of the cache is empty.

    Eviction is by least recent use, separately in training and evaluation, so that an evaluation evicts
    nothing that training uses: each mode keeps twice as many rows as its largest search had.  Where a search
    continues some rows of the mode's last search and not others, the others have ended and are evicted at
    once.
    """

    def __init__(self, index_type: IndexType, capacity: int, target_recall: float = TARGET_RECALL) -> None:
        load_faiss()
        self.index_type, self.capacity, self.target_recall = index_type, capacity, target_recall
        self.rows: OrderedDict[Key, RowIndexes] = OrderedDict()  # least recently used first
        self.last_search: dict[bool, list[Key]] = {True: [], False: []}  # rows of each mode's last search
        self.max_rows = {True: 0, False: 0}  # rows of each mode's largest search
        self.recent_queries: Tensor | None = None  # (heads, queries, width), a few of the last search's
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        return IndexCache, (self.index_type, self.capacity, self.target_recall)

    def search(
        self,
        queries: Float[Tensor, "rows heads time key_width"],
        blocks: tuple[Float[Tensor, "rows heads block key_width"], ...],
        length: Int[Tensor, " rows"],
        stamps: Int[Tensor, "rows two"],
        neighbours: int,
        training: bool = False,
    ) -> Int[Tensor, "rows heads time neighbours"]:
        """As `search_exact`; `stamps` are each row's current and previous one, `training` is the mode."""
        device = queries.device if self.index_type == "flat" else torch.device("cpu")
        vectors = queries.detach().to(device, torch.float32).contiguous()
        scores = vectors.new_full((*vectors.shape[:3], neighbours), -torch.inf)
        slots = torch.full_like(scores, -1, dtype=torch.long)
        with self.lock:
            keys = [((current, device), (previous, device)) for current, previous in stamps.tolist()]
            self._evict_ended(keys, training)
            for row, (current, previous) in enumerate(keys):
                if count := int(length[row]):
                    ring = [block[row] for block in blocks]
                    indexes = self._up_to_date(current, previous, count, ring, training)
                    for head, index in enumerate(indexes.heads):
                        scores[row, head], slots[row, head] = index.search(vectors[row, head], neighbours)
            self._evict_oldest(training)
            self.recent_queries = vectors[0, :, -16:].clone()
        tied = ((scores[..., 1:] == scores[..., :-1]) & (slots[..., 1:] >= 0)).any(-1)
        if tied.any():  # faiss orders equal scores differently
            by_slot, order = slots[tied].sort(stable=True)
            order = scores[tied].gather(-1, order).sort(descending=True, stable=True).indices
            slots[tied] = by_slot.gather(-1, order)
        return slots.to(queries.device)

    def _evict_ended(self, rows: list[tuple[Key, Key]], training: bool) -> None:
        """Evict the rows of the last search that this one doesn't continue, if it continues some."""
        continued, last = {key for row in rows for key in row}, self.last_search[training]
        if len(last) == len(rows) and any(key in continued and key in self.rows for key in last):
            for key in last:
                if key not in continued:
                    self.rows.pop(key, None)
        self.last_search[training] = [current for current, _ in rows]
        self.max_rows[training] = max(self.max_rows[training], len(rows))

    def _evict_oldest(self, training: bool) -> None:
        """Evict the rows that this mode used least recently, down to its limit."""
        keys = [key for key, indexes in self.rows.items() if indexes.training == training]
        for key in keys[: max(0, len(keys) - 2 * self.max_rows[training])]:
            del self.rows[key]

    def _up_to_date(
        self, current: Key, previous: Key, length: int, blocks: list[Tensor], training: bool
    ) -> RowIndexes:
        """The row's indexes: cached, cached and extended by the new tokens, or built from its bank."""
        indexes = self.rows.pop(current, None)
        if indexes is None:
            indexes, device = self.rows.pop(previous, None), current[1]
            stored = min(length, self.capacity)
            if (
                indexes is None
                or not length - stored <= indexes.length <= length
                or any(index.outdated(length) for index in indexes.heads)
            ):
                heads, width = blocks[0].shape[0], blocks[0].shape[2]
                empty = [
                    make_index(self.index_type, width, self.capacity, stored, device, self.target_recall)
                    for _ in range(heads)
                ]
                indexes = RowIndexes(empty, length - stored, training)
            if indexes.length < length:
                new = _token_keys(blocks, indexes.length, length).to(device, torch.float32)
                for index, keys in zip(indexes.heads, new, strict=True):
                    index.put(indexes.length, keys.contiguous())
        self.rows[current] = indexes._replace(length=length, training=training)
        return self.rows[current]


def _token_keys(blocks: list[Tensor], first: int, end: int) -> Float[Tensor, "heads tokens width"]:
    """The keys of a row's tokens `first` .. `end` - 1: token t is in slot t of a ring of blocks."""
    size = blocks[0].shape[1]
    indices = range(first // size, math.ceil(end / size))
    keys = torch.cat([blocks[index % len(blocks)] for index in indices], dim=1)
    return keys[:, first - indices.start * size :][:, : end - first]
