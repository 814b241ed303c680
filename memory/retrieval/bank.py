"""The kNN memory: the last `capacity` tokens' keys and values in every row and head, found by inner product.

Wu et al. 2022, arXiv:2203.08913 (Memorizing Transformers), section 3; Tworkowski et al. 2023,
arXiv:2307.03170 (Focused Transformer), section 3; Bertsch et al. 2023, arXiv:2305.01625 (Unlimiformer), 2.

    found_i = the k slots j with the largest q_i k_j
    y_i = softmax over [local ; found] of (scale q_i k_j) applied to v_j

Carried: the bank, a ring of equal blocks.  A new bank shares all blocks but those written.
Differs from the papers: nothing.  `backend: torch` searches exactly, `faiss` by
memory/retrieval/faiss_index.py.
"""

import secrets
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.memory.retrieval.faiss_index import Kind
from zoo.memory.retrieval.search import IndexCache, search_exact
from zoo.state import special_fields

Backend = Literal["torch", "faiss"]
ROUNDING = 1e-5  # of a score, by the order of its sum

_stamps = torch.Generator().manual_seed(secrets.randbits(62))  # of its own: no draw of the model's changes


@special_fields(lazy=("keys", "values"), identity=("stamp", "stamp_before"))
class Bank(NamedTuple):
    keys: tuple[Float[Tensor, "rows heads block key_width"], ...]
    values: tuple[Float[Tensor, "rows heads block value_width"], ...]  # () where they come from the keys
    length: Int[Tensor, " rows"]  # tokens stored since the row was fresh; token t lies in slot t % capacity
    stamp: Int[Tensor, " rows"]  # drawn anew at every write, 0 = empty: what an index is known by
    stamp_before: Int[Tensor, " rows"]


class KNNMemory(nn.Module):
    """How a bank is made, written, searched and read; it has no parameters."""

    def __init__(
        self,
        capacity: int,
        heads: int,
        key_width: int,
        value_width: int = 0,
        neighbours: int = 32,
        block: int | None = None,
        backend: Backend = "torch",
        index: Kind = "flat",
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        block = block or capacity
        if capacity < 1 or block < 1 or capacity % block:
            raise ValueError(f"capacity {capacity} is not a multiple of the block of {block} tokens")
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, not {neighbours}")
        if backend == "torch" and index != "flat":
            raise ValueError(f"index {index} needs backend faiss: torch searches all keys")
        if dtype not in (None, "bfloat16"):
            raise ValueError(f"dtype must be bfloat16, or none for the model's own, not {dtype}")
        self.capacity, self.heads, self.block = capacity, heads, block
        self.key_width, self.value_width = key_width, value_width
        self.neighbours = neighbours
        self.topk = min(neighbours, capacity)  # slots that a search names
        self.dtype = None if dtype is None else torch.bfloat16
        self.index_cache = IndexCache(index, capacity) if backend == "faiss" else None

    def init_state(self, rows: int, like: Tensor) -> Bank:
        """An empty bank on the device of `like`, and in its dtype unless another was asked for."""

        def empty(width: int) -> tuple[Tensor, ...]:
            zeros = like.new_zeros((rows, self.heads, self.block, width), dtype=self.dtype or like.dtype)
            return (zeros,) * (self.capacity // self.block)  # nothing is changed in place: one serves for all

        count = torch.zeros(rows, dtype=torch.long, device=like.device)
        values = empty(self.value_width) if self.value_width else ()
        return Bank(empty(self.key_width), values, count, count, count)

    def add(
        self,
        bank: Bank,
        keys: Float[Tensor, "rows heads time key_width"],
        values: Float[Tensor, "rows heads time value_width"] | None = None,
        detach: bool = True,
    ) -> Bank:
        """The bank with these tokens behind its newest, the oldest overwritten; without gradient, unless
        `detach` is False."""
        if not keys.shape[2]:
            return bank
        late = max(0, keys.shape[2] - self.capacity)  # of more tokens than fit, the last ones stay
        start, time = bank.length + late, keys.shape[2] - late
        touched = {
            place % len(bank.keys)
            for first in set(start.tolist())
            for place in range(first // self.block, -(-(first + time) // self.block))
        }

        def filled(old: tuple[Tensor, ...], given: Tensor) -> tuple[Tensor, ...]:
            given = (given.detach() if detach else given)[:, :, late:]
            return tuple(
                self._write(block, given, start, place) if place in touched else block
                for place, block in enumerate(old)
            )

        stamp = torch.randint(1, 2**62, bank.stamp.shape, generator=_stamps).to(bank.stamp.device)
        return Bank(
            filled(bank.keys, keys),
            () if values is None else filled(bank.values, values),
            bank.length + keys.shape[2],
            stamp,
            bank.stamp,
        )

    def _write(self, block: Tensor, given: Tensor, start: Int[Tensor, " rows"], place: int) -> Tensor:
        slots = torch.arange(place * self.block, (place + 1) * self.block, device=block.device)
        token = ((slots - start[:, None]) % self.capacity)[
            :, None, :, None
        ]  # which of the new ones lies there
        index = token.clamp(max=given.shape[2] - 1).expand_as(block)
        return torch.where(token < given.shape[2], given.to(block.dtype).gather(2, index), block)

    @torch.no_grad()
    def search(
        self, queries: Float[Tensor, "rows heads time key_width"], bank: Bank
    ) -> Int[Tensor, "rows heads time neighbours"]:
        """Slots of the nearest keys, the nearest first; -1 where fewer are stored.  No more than the bank has
        are named, however many are asked for."""
        if self.index_cache is None:
            return search_exact(queries, bank.keys, bank.length, self.topk)
        stamps = torch.stack([bank.stamp, bank.stamp_before], dim=1)
        return self.index_cache.search(queries, bank.keys, bank.length, stamps, self.topk, self.training)

    @torch.no_grad()
    def recall(self, bank: Bank) -> float | None:
        """The share of the true neighbours that the index finds in a bank, of queries of the last search;
        None where search is exact, and where there is nothing to find."""
        if self.index_cache is None or (asked := self.index_cache.asked) is None or not bank.length.any():
            return None
        queries = asked.to(bank.keys[0].device).expand(len(bank.length), -1, -1, -1)
        return recall_at_k(queries, bank.keys, bank.length, self.search(queries, bank))

    def gather(
        self, bank: Bank, ids: Int[Tensor, "rows heads time neighbours"]
    ) -> tuple[
        Float[Tensor, "rows heads time neighbours key_width"],
        Float[Tensor, "rows heads time neighbours value_width"] | None,
    ]:
        """What lies in the slots; zeros where an id is -1."""
        keys = _read(bank.keys, ids)
        return keys, _read(bank.values, ids) if bank.values else None


def recall_at_k(
    queries: Float[Tensor, "rows heads time key_width"],
    blocks: tuple[Float[Tensor, "rows heads block key_width"], ...],
    written: Int[Tensor, " rows"],
    found: Int[Tensor, "rows heads time neighbours"],
) -> float:
    """The share of the true nearest that are in these slots, or others with the same scores."""
    wanted = search_exact(queries, blocks, written, found.shape[-1])
    queries = queries.to(torch.promote_types(queries.dtype, torch.float32))

    def scores(ids: Tensor, none: float) -> Tensor:
        keys = _read(blocks, ids).to(queries.dtype)
        return (keys @ queries[..., None])[..., 0].masked_fill(ids < 0, none)

    least = scores(wanted, torch.inf).amin(-1, keepdim=True)
    hits = scores(found, -torch.inf) >= least - ROUNDING * least.abs()
    return int((hits & (found >= 0)).sum()) / int((wanted >= 0).sum())


def recall_diagnostics(memories: Iterable[KNNMemory], banks: Iterable[Bank]) -> dict[str, float]:
    """What a model's diagnostics say of its memories' search: `recall`, where there is one to measure."""
    shares = [memory.recall(bank) for memory, bank in zip(memories, banks, strict=True)]
    found = [share for share in shares if share is not None]
    return {"recall": sum(found) / len(found)} if found else {}


def _read(blocks: tuple[Tensor, ...], ids: Tensor) -> Tensor:
    """Of a bank much smaller than what is read a copy is made; else each block is read by itself."""
    rows, heads, size, width = blocks[0].shape
    line = torch.arange(rows * heads, device=ids.device).view(rows, heads, 1, 1)
    if 4 * size * len(blocks) <= ids[0, 0].numel():
        whole = torch.cat(blocks, dim=2).flatten(0, 2)
        found = F.embedding(line * size * len(blocks) + ids.clamp(min=0), whole)
        absent = (ids < 0)[..., None]
        return found.masked_fill_(absent, 0) if absent.is_cuda or absent.any() else found
    flat = (line * size + ids % size).flatten()
    order = (ids // size).flatten().sort(stable=True)  # -1 // size is -1: those come first
    counts = torch.bincount(order.values + 1, minlength=len(blocks) + 1).tolist()
    absent, *parts = order.indices.split(counts)
    found = blocks[0].new_zeros(len(flat), width)
    if not any(block.requires_grad for block in blocks):
        for block, part in zip(blocks, parts, strict=True):
            found.index_copy_(0, part, block.flatten(0, 2).index_select(0, flat[part]))
        return found.view(*ids.shape, width)
    # a gradient would be copied for every block that is written in place
    read = [found[: len(absent)]]
    read += [block.flatten(0, 2)[flat[part]] for block, part in zip(blocks, parts, strict=True)]
    place = torch.empty_like(flat).scatter_(0, order.indices, torch.arange(len(flat), device=ids.device))
    return torch.cat(read).index_select(0, place).view(*ids.shape, width)


def attend(
    q: Float[Tensor, "rows heads time key_width"],
    keys: Float[Tensor, "rows heads seen key_width"],
    values: Float[Tensor, "rows heads seen value_width"],
    allowed: Bool[Tensor, "*rows time seen"],
    found_keys: Float[Tensor, "rows heads time neighbours key_width"],
    found_values: Float[Tensor, "rows heads time neighbours value_width"],
    found: Bool[Tensor, "rows heads time neighbours"],
    scale: float,
    bias: Float[Tensor, "*any_rows time seen"] | None = None,
) -> Float[Tensor, "rows heads time value_width"]:
    """One softmax over local and retrieved keys; `bias` is added to the local scores."""
    near = q @ keys.mT * scale
    near = (near if bias is None else near + bias).masked_fill(~allowed, -torch.inf)
    far = (found_keys @ q[..., None])[..., 0] * scale
    weights = torch.cat([near, far.masked_fill(~found, -torch.inf)], dim=-1).softmax(-1)
    seen = keys.shape[2]
    return weights[..., :seen] @ values + (weights[..., None, seen:] @ found_values)[..., 0, :]
