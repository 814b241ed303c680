"""The kNN memory: keys and values of the last `capacity` tokens of every row and head, searched by inner product.

Wu et al. 2022, arXiv:2203.08913 (Memorizing Transformers), section 3; Tworkowski et al. 2023, arXiv:2307.03170
(Focused Transformer), section 3; Bertsch et al. 2023, arXiv:2305.01625 (Unlimiformer), section 2.

    found_i = the k slots j with the largest q_i k_j
    y_i = softmax over [local ; found] of (scale q_i k_j) applied to v_j

Carried: the bank, a ring of equal blocks.  A new bank shares all blocks but those written.
Differs from the papers: nothing; the search is exact with `backend: torch`.
"""

import secrets
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Backend = Literal["torch", "faiss"]
Index = Literal["flat", "ivf", "hnsw"]

_stamps = torch.Generator().manual_seed(secrets.randbits(62))  # of its own: no draw of the model's changes


class Bank(NamedTuple):
    keys: tuple[Float[Tensor, "rows heads block key_width"], ...]
    values: tuple[Float[Tensor, "rows heads block value_width"], ...]  # () where they come from the keys
    written: Int[Tensor, " rows"]  # tokens stored since the row was fresh; token t lies in slot t % capacity
    stamp: Int[Tensor, " rows"]  # drawn anew at every write, 0 = empty: what an index is known by
    stamp_before: Int[Tensor, " rows"]


class KNN(nn.Module):
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
        index: Index = "flat",
        dtype: Literal["bfloat16"] | None = None,
    ) -> None:
        super().__init__()
        block = block or capacity
        if capacity < 1 or capacity % block:
            raise ValueError(f"capacity {capacity} is not a multiple of the block of {block} tokens")
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, not {neighbours}")
        self.capacity, self.heads, self.block = capacity, heads, block
        self.key_width, self.value_width = key_width, value_width
        self.neighbours = min(neighbours, capacity)
        self.dtype = None if dtype is None else torch.bfloat16

    def init_state(self, rows: int, like: Tensor) -> Bank:
        """An empty bank on the device of `like`, and in its dtype unless another was asked for."""

        def empty(width: int) -> tuple[Tensor, ...]:
            shape, dtype = (rows, self.heads, self.block, width), self.dtype or like.dtype
            return tuple(like.new_zeros(shape, dtype=dtype) for _ in range(self.capacity // self.block))

        count = torch.zeros(rows, dtype=torch.long, device=like.device)
        values = empty(self.value_width) if self.value_width else ()
        return Bank(empty(self.key_width), values, count, count, count)

    def add(
        self,
        bank: Bank,
        keys: Float[Tensor, "rows heads time key_width"],
        values: Float[Tensor, "rows heads time value_width"] | None = None,
    ) -> Bank:
        """The bank with these tokens behind its newest, the oldest overwritten; without gradient."""
        time = keys.shape[2]
        late = max(0, time - self.capacity)  # of more tokens than fit, the last ones stay
        start = bank.written + late
        touched = {
            slot % self.capacity // self.block
            for first in set(start.tolist())
            for slot in range(first, first + time - late)
        }
        new = rearrange(torch.arange(self.capacity, device=keys.device), "(n s) -> n 1 s", s=self.block)
        token = (new - start[:, None]) % self.capacity  # (blocks, rows, block): which of the new ones lies there

        def written(old: tuple[Tensor, ...], given: Tensor) -> tuple[Tensor, ...]:
            given = given.detach()[:, :, late:]
            return tuple(
                self._write(block, given, token[place]) if place in touched else block
                for place, block in enumerate(old)
            )

        stamp = torch.randint(1, 2**62, bank.stamp.shape, generator=_stamps).to(bank.stamp.device)
        return Bank(
            written(bank.keys, keys),
            () if values is None else written(bank.values, values),
            bank.written + time,
            stamp,
            bank.stamp,
        )

    @staticmethod
    def _write(block: Tensor, given: Tensor, token: Int[Tensor, "rows block"]) -> Tensor:
        here = (token < given.shape[2])[:, None, :, None]
        index = token.clamp(max=given.shape[2] - 1)[:, None, :, None]
        return torch.where(here, given.to(block.dtype).gather(2, index.expand_as(block)), block)

    @torch.no_grad()
    def search(
        self, queries: Float[Tensor, "rows heads time key_width"], bank: Bank
    ) -> Int[Tensor, "rows heads time neighbours"]:
        """Slots of the nearest keys, the nearest first; -1 where fewer are stored.  Block after block: the
        scores of a whole bank are never held."""
        best = queries.new_full((*queries.shape[:3], 0), -torch.inf)
        ids = torch.zeros_like(best, dtype=torch.long)
        for place, block in enumerate(bank.keys):
            slots = torch.arange(self.block, device=queries.device) + place * self.block
            scores = queries @ block.to(queries.dtype).mT
            empty = slots >= bank.written[:, None]
            scores = scores.masked_fill(empty[:, None, None], -torch.inf)
            best = torch.cat([best, scores], dim=-1)
            ids = torch.cat([ids, slots.expand_as(scores)], dim=-1)
            best, chosen = best.topk(min(self.neighbours, best.shape[-1]))
            ids = ids.gather(-1, chosen)
        return ids.masked_fill(best == -torch.inf, -1)

    def gather(
        self, bank: Bank, ids: Int[Tensor, "rows heads time neighbours"]
    ) -> tuple[
        Float[Tensor, "rows heads time neighbours key_width"],
        Float[Tensor, "rows heads time neighbours value_width"] | None,
    ]:
        """What lies in the slots; zeros where an id is -1."""
        keys = self._read(bank.keys, ids)
        return keys, self._read(bank.values, ids) if bank.values else None

    def _read(self, blocks: tuple[Tensor, ...], ids: Tensor) -> Tensor:
        found = blocks[0].new_zeros(*ids.shape, blocks[0].shape[-1])
        for place, block in enumerate(blocks):
            slot = ids - place * self.block
            row, head, time, rank = ((slot >= 0) & (slot < self.block)).nonzero(as_tuple=True)
            found[row, head, time, rank] = block[row, head, slot[row, head, time, rank]]
        return found


def attend(
    q: Float[Tensor, "rows heads time key_width"],
    keys: Float[Tensor, "rows heads seen key_width"],
    values: Float[Tensor, "rows heads seen value_width"],
    allowed: Bool[Tensor, "*rows time seen"],
    found_keys: Float[Tensor, "rows heads time neighbours key_width"],
    found_values: Float[Tensor, "rows heads time neighbours value_width"],
    found: Bool[Tensor, "rows heads time neighbours"],
    scale: float,
) -> Float[Tensor, "rows heads time value_width"]:
    """One softmax over local and retrieved keys."""
    near = (q @ keys.mT * scale).masked_fill(~allowed, -torch.inf)
    far = (found_keys @ q[..., None])[..., 0] * scale
    weights = torch.cat([near, far.masked_fill(~found, -torch.inf)], dim=-1).softmax(-1)
    seen = keys.shape[2]
    return weights[..., :seen] @ values + (weights[..., None, seen:] @ found_values)[..., 0, :]
