"""Where a bank's nearest keys lie: by exact search, or by faiss's indexes, one for each row and head.

    found_i = the k slots j with the largest q_i k_j, in float32 at least; of equals the lowest slot

An index (memory/retrieval/faiss_index.py) is a cache of the bank and no part of it.  It is known by its row's
stamp and brought up to date when the row is searched: with its own stamp it is used, with the one before it
gets what was written since, with any other it is made anew.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.memory.retrieval.faiss_index import Kind, load_faiss, make_index

MAX_SCORES = 2**24  # scores that exact search holds at a time


def search_exact(
    queries: Float[Tensor, "rows heads time key_width"],
    blocks: tuple[Float[Tensor, "rows heads block key_width"], ...],
    written: Int[Tensor, " rows"],
    neighbours: int,
) -> Int[Tensor, "rows heads time neighbours"]:
    """Piece after piece of the bank: the scores of all of it are never held."""
    exactly = torch.promote_types(queries.dtype, torch.float32)
    best = queries.new_full((*queries.shape[:3], neighbours), -torch.inf, dtype=exactly)
    ids, start = torch.full_like(best, -1, dtype=torch.long), 0
    least, most = written.aminmax()
    size = max(1, MAX_SCORES // max(1, best[..., 0].numel()))
    with torch.autocast(queries.device.type, enabled=False):
        for keys in _pieces(blocks, size):
            if start >= most:
                break
            scores = queries.to(exactly) @ keys.to(exactly).mT
            end = start + keys.shape[2]
            if least < end:
                empty = torch.arange(start, end, device=queries.device) >= written[:, None]
                scores.masked_fill_(empty[:, None, None], -torch.inf)
            found, places = _largest(scores, neighbours)
            if start:  # of equals, those found before lie lower
                found, places = torch.cat([best, found], dim=-1), torch.cat([ids, places + start], dim=-1)
                found, chosen = _largest(found, neighbours)
                places = places.gather(-1, chosen)
            best[..., : found.shape[-1]], ids[..., : found.shape[-1]] = found, places
            start = end
    return ids.masked_fill(best == -torch.inf, -1)


def search_exact_reference(
    queries: Float[Tensor, "rows heads time key_width"],
    blocks: tuple[Float[Tensor, "rows heads block key_width"], ...],
    written: Int[Tensor, " rows"],
    neighbours: int,
) -> Int[Tensor, "rows heads time neighbours"]:
    """The definition: all scores in order, of equals the lowest slot first."""
    exactly = torch.promote_types(queries.dtype, torch.float32)
    scores = queries.to(exactly) @ torch.cat(blocks, dim=2).to(exactly).mT
    empty = torch.arange(scores.shape[-1], device=queries.device) >= written[:, None]
    scores = scores.masked_fill(empty[:, None, None], -torch.inf)
    best, ids = (part[..., :neighbours] for part in scores.sort(dim=-1, descending=True, stable=True))
    return ids.masked_fill(best == -torch.inf, -1)


def _pieces(blocks: tuple[Tensor, ...], size: int) -> Iterator[Tensor]:
    """The same keys in pieces of about `size`: long blocks are cut, short ones joined."""
    held: list[Tensor] = []
    for part in (part for block in blocks for part in block.split(size, dim=2)):
        if held and sum(other.shape[2] for other in held) + part.shape[2] > size:
            yield torch.cat(held, dim=2)
            held = []
        held.append(part)
    yield torch.cat(held, dim=2)


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest scores and their places, the largest first; of equals the first places."""
    best, places = scores.topk(min(count + 1, scores.shape[-1]))
    if places.shape[-1] > count:
        last, next_best = best[..., count - 1], best[..., count]
        torn = (last == next_best) & (last > -torch.inf)  # of equals, some are taken and some aren't
        places = places[..., :count]
        if torn.any():
            places[torn] = scores[torn].sort(descending=True, stable=True).indices[:, :count]
    places = places.sort().values
    best, order = scores.gather(-1, places).sort(descending=True, stable=True)
    return best, places.gather(-1, order)


Key = tuple[int, torch.device]  # a stamp, and where its index lies


class Kept(NamedTuple):
    """One row's indexes, one per head, and how many tokens had been written when they were up to date."""

    heads: list[Any]
    written: int
    training: bool  # the mode of the last search


class IndexCache:
    """faiss's side of a memory: the indexes of rows lately searched, by their stamps.  A copy has none.

    Each mode, training and evaluation, keeps those of twice as many rows as it has ever searched at once, the
    ones used last; an evaluation takes none from training.  Where some rows of a search go on from the one
    before and others don't, those have ended, and their indexes go at once.
    """

    def __init__(self, kind: Kind, capacity: int) -> None:
        load_faiss()
        self.kind, self.capacity = kind, capacity
        self.rows: OrderedDict[Key, Kept] = OrderedDict()
        self.last: dict[bool, list[Key]] = {True: [], False: []}  # whose rows the last search of a mode read
        self.most = {True: 0, False: 0}  # rows that a search of the mode had
        self.asked: Tensor | None = None  # a few queries (heads, queries, width) of the last search
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        return IndexCache, (self.kind, self.capacity)

    def search(
        self,
        queries: Float[Tensor, "rows heads time key_width"],
        blocks: tuple[Float[Tensor, "rows heads block key_width"], ...],
        written: Int[Tensor, " rows"],
        stamps: Int[Tensor, "rows two"],
        neighbours: int,
        training: bool = False,
    ) -> Int[Tensor, "rows heads time neighbours"]:
        """As `search_exact`; `stamps` hold each row's current and previous one; `training` is the mode."""
        place = queries.device if self.kind == "flat" else torch.device("cpu")
        asked = queries.detach().to(place, torch.float32).contiguous()
        scores = asked.new_full((*asked.shape[:3], neighbours), -torch.inf)
        ids = torch.full_like(scores, -1, dtype=torch.long)
        with self.lock:
            self._end([[(stamp, place) for stamp in both] for both in stamps.tolist()], training)
            for row, (stamp, before) in enumerate(stamps.tolist()):
                if count := int(written[row]):
                    keys = [block[row] for block in blocks]
                    kept = self._current((stamp, place), (before, place), count, keys, training)
                    for head, index in enumerate(kept.heads):
                        scores[row, head], ids[row, head] = index.search(asked[row, head], neighbours)
            self._forget(training)
            self.asked = asked[0, :, -16:].clone()
        tied = (scores[..., 1:] == scores[..., :-1]) & (ids[..., 1:] >= 0)
        if tied.any():  # faiss has an order of its own of them
            ids, order = ids.sort(stable=True)
            order = scores.gather(-1, order).sort(descending=True, stable=True).indices
            ids = ids.gather(-1, order)
        return ids.to(queries.device)

    def _end(self, rows: list[list[Key]], training: bool) -> None:
        """Drop the rows of the last search that this one doesn't go on with, though it does with others."""
        known, last = {key for row in rows for key in row}, self.last[training]
        if len(last) == len(rows) and any(key in known and key in self.rows for key in last):
            for key in last:
                if key not in known:
                    self.rows.pop(key, None)
        self.last[training] = [own for own, _ in rows]
        self.most[training] = max(self.most[training], len(rows))

    def _forget(self, training: bool) -> None:
        """Drop what this mode hasn't used for longest and has no room for."""
        mine = [key for key, kept in self.rows.items() if kept.training == training]
        for key in mine[: max(0, len(mine) - 2 * self.most[training])]:
            del self.rows[key]

    def _current(self, own: Key, before: Key, written: int, blocks: list[Tensor], training: bool) -> Kept:
        """The row's indexes: as they are, with what is new, or made from its bank."""
        kept = self.rows.pop(own, None)
        if kept is None:
            old = self.rows.pop(before, None)
            alive, place = min(written, self.capacity), own[1]
            if (
                old is None
                or not written - alive <= old.written <= written
                or any(index.outdated(written) for index in old.heads)
            ):
                heads, width = blocks[0].shape[0], blocks[0].shape[2]
                made = [make_index(self.kind, width, self.capacity, alive, place) for _ in range(heads)]
                old = Kept(made, written - alive, training)
            if old.written < written:
                new = _tokens(blocks, old.written, written).to(place, torch.float32)
                for index, keys in zip(old.heads, new, strict=True):
                    index.put(old.written, keys.contiguous())
            kept = Kept(old.heads, written, training)
        self.rows[own] = kept._replace(training=training)
        return kept


def _tokens(blocks: list[Tensor], first: int, end: int) -> Float[Tensor, "heads tokens width"]:
    """The keys of tokens `first` .. `end` - 1 of a row: token t lies at slot t of a ring of blocks."""
    size = blocks[0].shape[1]
    places = range(first // size, math.ceil(end / size))
    keys = torch.cat([blocks[place % len(blocks)] for place in places], dim=1)
    return keys[:, first - places.start * size :][:, : end - first]
