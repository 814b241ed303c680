"""The bank of Landmark attention: each row's last closed blocks of keys and values, and the block still open.

Mohtashami & Jaggi 2023, arXiv:2305.16300, section 3.2; it is read in memory/retrieval/landmark_attention.py.

    closed block n of a row lies in slot n mod `blocks`

The slots are held in equal pieces: a new state shares all but those written.  A row's line is its open block
and what is new behind it, in whole blocks.
Differs from the paper: nothing.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.memory.attention.chunked import gather_slots
from zoo.state import special_fields

Ring = tuple[Float[Tensor, "rows heads piece block head_dim"], ...]


@special_fields(lazy=("closed_keys", "closed_values"))
class BankState(NamedTuple):
    closed_keys: Ring  # without positions; a block's landmark last
    closed_values: Ring
    open_keys: Float[Tensor, "rows heads open head_dim"]  # of the open block, its first first, 0 behind
    open_values: Float[Tensor, "rows heads open head_dim"]
    length: Int[Tensor, " rows"]  # slots read since the row was fresh: tokens, landmarks included

    @property
    def block(self) -> int:
        return self.open_keys.shape[2] + 1

    @property
    def closed(self) -> Int[Tensor, " rows"]:
        """Blocks closed since the row was fresh."""
        return self.length // self.block

    @property
    def begun(self) -> Int[Tensor, " rows"]:
        """How much of the open block is there."""
        return self.length % self.block

    @property
    def keys(self) -> Float[Tensor, "rows heads blocks block head_dim"]:
        """A copy of the whole bank, the newest block last."""
        return oldest_first(self.closed_keys, self.closed)

    @property
    def values(self) -> Float[Tensor, "rows heads blocks block head_dim"]:
        """As `keys`."""
        return oldest_first(self.closed_values, self.closed)


def oldest_first(
    ring: tuple[Float[Tensor, "rows heads piece places width"], ...], closed: Int[Tensor, " rows"]
) -> Float[Tensor, "rows heads blocks places width"]:
    """The ring of rows that have closed so many blocks in one tensor, the newest last."""
    whole = torch.cat(ring, dim=2)
    slots = (closed[:, None] + torch.arange(whole.shape[2], device=closed.device)) % whole.shape[2]
    return whole.take_along_dim(slots[:, None, :, None, None], 2)


def lines(
    state: BankState,
    k: Float[Tensor, "rows heads time head_dim"],
    v: Float[Tensor, "rows heads time head_dim"],
) -> tuple[
    Int[Tensor, "rows line"],
    Float[Tensor, "rows heads line head_dim"],
    Float[Tensor, "rows heads line head_dim"],
]:
    """The places 0, 1, .. of each row's line, and the keys and values there; behind the last one whatever."""
    count = -(-(state.block - 1 + k.shape[2]) // state.block)
    places = torch.arange(count * state.block, device=k.device).expand(len(k), -1)
    keys, values = (
        gather_slots(new, kept, state.begun, places)
        for new, kept in ((k, state.open_keys), (v, state.open_values))
    )
    return places, keys, values


@torch.no_grad()
def add(
    state: BankState,
    keys: Float[Tensor, "rows heads line head_dim"],
    values: Float[Tensor, "rows heads line head_dim"],
    time: int,
) -> BankState:
    """The state with the lines of `time` new slots: what they close goes into the bank, the rest is open."""
    before, after, block = state.closed, (state.length + time) // state.block, state.block
    rest = ((after - before) * block)[:, None] + torch.arange(block - 1, device=keys.device)
    none = (rest >= (state.begun + time)[:, None])[:, None, :, None]
    at = rest.clamp(max=keys.shape[2] - 1)[:, None, :, None]

    def put(line: Tensor, ring: Ring) -> tuple[Ring, Tensor]:
        return _put(line.unflatten(2, (-1, block)), ring, before, after), line.take_along_dim(at, 2)

    dtype = state.open_keys.dtype
    closed_keys, open_keys = put(keys.to(dtype), state.closed_keys)
    closed_values, open_values = put(values.to(dtype), state.closed_values)
    return BankState(
        closed_keys,
        closed_values,
        open_keys.masked_fill(none, 0),
        open_values.masked_fill(none, 0),
        state.length + time,
    )


def _put(new: Tensor, ring: Ring, before: Tensor, after: Tensor) -> Ring:
    """The ring with the blocks `before` .. `after - 1` of each row, of which `new` holds the first first."""
    if not ring:
        return ring
    piece, blocks = ring[0].shape[2], len(ring) * ring[0].shape[2]
    touched = {
        number % blocks // piece
        for first, end in set(zip(before.tolist(), after.tolist(), strict=True))
        for number in range(max(first, end - blocks), end)
    }

    def written(place: int) -> Tensor:
        slots = torch.arange(place * piece, (place + 1) * piece, device=new.device)
        newest = after[:, None] - 1 - (after[:, None] - 1 - slots) % blocks  # whose slot it is by now
        index = (newest - before[:, None])[:, None, :, None, None]
        return torch.where(index >= 0, new.take_along_dim(index.clamp(min=0), 2), ring[place])

    return tuple(written(place) if place in touched else old for place, old in enumerate(ring))


def gather(
    state: BankState, ids: Int[Tensor, "rows heads time topk"]
) -> tuple[
    Float[Tensor, "found block head_dim"],
    Float[Tensor, "found block head_dim"],
    Int[Tensor, "rows heads time topk"],
]:
    """Keys and values of the blocks named, each once and no others, and which of them each id is.

    An id is a place in `state.keys`: 0 the oldest, -1 none, for which any block stands.
    """
    (rows, heads), piece, pieces = ids.shape[:2], state.closed_keys[0].shape[2], len(state.closed_keys)
    slots = (state.closed.view(-1, 1, 1, 1) + ids.clamp(min=0)) % (pieces * piece)
    line = torch.arange(rows * heads, device=ids.device).view(rows, heads, 1, 1)
    size = max(1, rows * heads * piece)
    places, which = (slots // piece * size + line * piece + slots % piece).unique(return_inverse=True)
    parts = (places % size).split((places // size).bincount(minlength=pieces).tolist())
    keys, values = (
        torch.cat([one.flatten(0, 2)[part] for one, part in zip(ring, parts, strict=True)])
        for ring in (state.closed_keys, state.closed_values)
    )
    return keys, values, which
