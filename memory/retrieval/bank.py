"""The kNN memory: keys and values of each row's and head's last `capacity` tokens, searched by inner product.

Wu et al. 2022, arXiv:2203.08913 (Memorizing Transformers), section 3; Tworkowski et al. 2023,
arXiv:2307.03170 (Focused Transformer), section 3; Bertsch et al. 2023, arXiv:2305.01625 (Unlimiformer),
section 2.

    N_i = the k slots j with the largest q_i k_j
    y_i = softmax over [local ; N_i] of (scale q_i k_j) applied to v_j

The joint softmax is the Focused Transformer's and Unlimiformer's; the Memorizing Transformer gates instead
(memory/retrieval/memorizing_attention.py).  `backend: torch` searches exactly, `faiss` by
memory/retrieval/faiss_index.py.
Carried: the bank, rings of equal blocks (memory/retrieval/ring_buffer.py).
Differs from the papers: see each model's file.
"""

import secrets
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.host import row_lengths
from zoo.memory.retrieval.faiss_index import IndexType
from zoo.memory.retrieval.ivf_index import TARGET_RECALL
from zoo.memory.retrieval.ring_buffer import gather_entries, gather_rings, touched_blocks, write_entries
from zoo.memory.retrieval.search import IndexCache, search_exact
from zoo.state import special_fields

Backend = Literal["torch", "faiss"]
SCORE_RTOL = 1e-5  # relative rounding error of a score, which depends on the order of its sum


@special_fields(lazy=("keys", "values"), identity=("stamp", "stamp_before"))
class Bank(NamedTuple):
    """Rings of keys and values: token t is in slot t % capacity, so that new tokens evict the oldest.

    Lazy: a reset row's `length` of 0 marks its old keys and values as invalid, so they aren't cleared.
    Identity: stamps are versions, under which IndexCache holds faiss indexes: a row's index belongs to the
    bank with its stamp, and is extended for the bank that has it as `stamp_before`.  They aren't part of a
    bank's contents.
    """

    keys: tuple[Float[Tensor, "rows heads block key_width"], ...]
    values: tuple[Float[Tensor, "rows heads block value_width"], ...]  # () if computed from the keys
    length: Int[Tensor, " rows"]  # tokens added since the last reset, evicted ones too: may exceed capacity
    stamp: Int[Tensor, " rows"]  # a number drawn anew at every write; 0 when empty
    stamp_before: Int[Tensor, " rows"]  # the stamp before the last write


class KNNMemory(nn.Module):
    """Creates, writes, searches and reads banks; has no parameters."""

    def __init__(
        self,
        capacity: int,
        heads: int,
        key_width: int,
        value_width: int = 0,
        neighbours: int = 32,
        block_size: int | None = None,
        backend: Backend = "torch",
        index: IndexType = "flat",
        dtype: str | None = None,
        lag: int | None = None,
        target_recall: float = TARGET_RECALL,
    ) -> None:
        """`lag`: the most tokens that a row has read and not yet added, if every token that the model reads
        is added in the end; None if the bank's lengths don't follow from the number of tokens read.
        `target_recall`: the share of the true nearest keys for which an `ivf` index is tuned."""
        super().__init__()
        block_size = block_size or capacity
        if capacity < 1 or block_size < 1 or capacity % block_size:
            raise ValueError(f"capacity {capacity} is not a multiple of the block of {block_size} tokens")
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, not {neighbours}")
        if backend == "torch" and index != "flat":
            raise ValueError(f"index {index} needs backend faiss: torch searches all keys")
        if dtype not in (None, "bfloat16"):
            raise ValueError(f"dtype must be bfloat16, or none for the model's, not {dtype}")
        if not 0 < target_recall <= 1:
            raise ValueError(f"target_recall must be above 0 and at most 1, not {target_recall}")
        self.capacity, self.heads, self.block_size = capacity, heads, block_size
        self.key_width, self.value_width = key_width, value_width
        self.neighbours, self.lag = neighbours, lag
        self.topk = min(neighbours, capacity)  # slots that a search returns
        self.dtype = None if dtype is None else torch.bfloat16
        self.index_cache = IndexCache(index, capacity, target_recall) if backend == "faiss" else None

    def init_state(self, rows: int, reference: Tensor) -> Bank:
        """An empty bank on the device of `reference`, and in its dtype unless `dtype` is set."""

        def zero_blocks(width: int) -> tuple[Tensor, ...]:
            zero = reference.new_zeros((), dtype=self.dtype or reference.dtype)
            zeros = zero.expand(rows, self.heads, self.block_size, width)  # takes no memory before a write
            return (zeros,) * (self.capacity // self.block_size)  # never changed in place, so shared

        count = torch.zeros(rows, dtype=torch.long, device=reference.device)
        values = zero_blocks(self.value_width) if self.value_width else ()
        return Bank(zero_blocks(self.key_width), values, count, count, count)

    def add(
        self,
        bank: Bank,
        keys: Float[Tensor, "rows heads time key_width"],
        values: Float[Tensor, "rows heads time value_width"] | None = None,
        detach: bool = True,
        counts: Int[Tensor, " rows"] | None = None,
    ) -> Bank:
        """The bank with these tokens appended, or each row's first `counts` of them, evicting the oldest;
        without gradient, unless `detach` is False."""
        if not keys.shape[2]:
            return bank
        start, end = bank.length, bank.length + (keys.shape[2] if counts is None else counts)
        touched = touched_blocks(bank.keys, start, end, self._known_ranges(len(start)))

        def write(ring: tuple[Tensor, ...], new: Tensor) -> tuple[Tensor, ...]:
            return write_entries(ring, new.detach() if detach else new, start, end, touched)

        before = bank.stamp
        stamp = torch.arange(len(before), device=before.device) + _draw_stamp()
        if counts is not None:  # a row without tokens keeps its stamps
            stamp = torch.where(counts > 0, stamp, bank.stamp)
            before = torch.where(counts > 0, bank.stamp, bank.stamp_before)
        new_values = () if values is None else write(bank.values, values)
        return Bank(write(bank.keys, keys), new_values, end, stamp, before)

    def _known_ranges(self, rows: int) -> list[tuple[int, int]] | None:
        """The first token that each row may write in this window, and the one after the last, as the host
        knows them."""
        lengths, lag = row_lengths(rows), self.lag
        if lengths is None or lag is None:
            return None
        return [(max(0, before - lag), before + lengths.time) for before in lengths.before]

    @torch.no_grad()
    def search(
        self, queries: Float[Tensor, "rows heads time key_width"], bank: Bank
    ) -> Int[Tensor, "rows heads time neighbours"]:
        """Slots of the min(neighbours, capacity) nearest keys, nearest first; -1 where fewer are stored."""
        if self.index_cache is None:
            ranges = self._known_ranges(len(bank.length))
            known = (min(first for first, _ in ranges), max(stop for _, stop in ranges)) if ranges else None
            return search_exact(queries, bank.keys, bank.length, self.topk, known)
        stamps = torch.stack([bank.stamp, bank.stamp_before], dim=1)
        return self.index_cache.search(queries, bank.keys, bank.length, stamps, self.topk, self.training)

    @torch.no_grad()
    def index_recall(self, bank: Bank) -> float | None:
        """`recall_at_k` of the index for a few queries of the last search; None where search is exact or the
        bank is empty."""
        if self.index_cache is None or self.index_cache.recent_queries is None or not bank.length.any():
            return None
        queries = self.index_cache.recent_queries.to(bank.keys[0].device)
        queries = queries.expand(len(bank.length), -1, -1, -1)
        return recall_at_k(queries, bank.keys, bank.length, self.search(queries, bank))

    def gather(
        self, bank: Bank, slots: Int[Tensor, "rows heads time neighbours"]
    ) -> tuple[
        Float[Tensor, "rows heads time neighbours key_width"],
        Float[Tensor, "rows heads time neighbours value_width"] | None,
    ]:
        """Keys and values in these slots; zeros where a slot is -1."""
        keys, *values = gather_rings([bank.keys, bank.values] if bank.values else [bank.keys], slots)
        return keys, values[0] if values else None


@torch.compiler.disable  # compiled code would draw it once
def _draw_stamp() -> int:
    """Drawn on the host, and not from torch's global RNG, which training would find advanced."""
    return 1 + secrets.randbits(61)


def recall_at_k(
    queries: Float[Tensor, "rows heads time key_width"],
    blocks: tuple[Float[Tensor, "rows heads block key_width"], ...],
    length: Int[Tensor, " rows"],
    slots: Int[Tensor, "rows heads time neighbours"],
) -> float:
    """The share of the true nearest keys that are in these slots; keys that tie with the k-th count."""
    nearest = search_exact(queries, blocks, length, slots.shape[-1])
    queries = queries.to(torch.promote_types(queries.dtype, torch.float32))

    def scores(slots: Tensor, fill_value: float) -> Tensor:
        keys = gather_entries(blocks, slots).to(queries.dtype)
        return (keys @ queries[..., None])[..., 0].masked_fill(slots < 0, fill_value)

    kth_score = scores(nearest, torch.inf).amin(-1, keepdim=True)
    hits = scores(slots, -torch.inf) >= kth_score - SCORE_RTOL * kth_score.abs()
    return int((hits & (slots >= 0)).sum()) / int((nearest >= 0).sum())


def recall_diagnostics(memories: Iterable[KNNMemory], banks: Iterable[Bank]) -> dict[str, float]:
    """The mean `index_recall` of a model's memories, for its diagnostics; an empty dict if every search is
    exact or every bank is empty."""
    recalls = [memory.index_recall(bank) for memory, bank in zip(memories, banks, strict=True)]
    measured = [recall for recall in recalls if recall is not None]
    return {"recall": sum(measured) / len(measured)} if measured else {}


def attend(
    q: Float[Tensor, "rows heads time key_width"],
    keys: Float[Tensor, "rows heads local key_width"],
    values: Float[Tensor, "rows heads local value_width"],
    mask: Bool[Tensor, "*rows time local"],
    retrieved_keys: Float[Tensor, "rows heads time neighbours key_width"],
    retrieved_values: Float[Tensor, "rows heads time neighbours value_width"],
    retrieved_mask: Bool[Tensor, "rows heads time neighbours"],
    scale: float,
    bias: Float[Tensor, "*any_rows time local"] | None = None,
) -> Float[Tensor, "rows heads time value_width"]:
    """One softmax over local and retrieved keys; `bias` is added to the local scores."""
    local_scores = q @ keys.mT * scale
    local_scores = local_scores if bias is None else local_scores + bias
    local_scores = local_scores.masked_fill(~mask, -torch.inf)
    retrieved_scores = (retrieved_keys @ q[..., None])[..., 0] * scale
    retrieved_scores = retrieved_scores.masked_fill(~retrieved_mask, -torch.inf)
    weights = torch.cat([local_scores, retrieved_scores], dim=-1).softmax(-1)
    local_weights, retrieved_weights = weights.tensor_split([keys.shape[2]], dim=-1)
    return local_weights @ values + (retrieved_weights[..., None, :] @ retrieved_values)[..., 0, :]
