"""A ring buffer in blocks: each row's last `capacity` entries, entry n of a row in slot n % capacity.

A ring is a tuple of blocks, tensors of equal shape; their third axes, concatenated, are its slots.  Nothing
is changed in place: a write copies only the blocks that receive an entry and shares all others with the
previous ring, so that its cost doesn't depend on the capacity.  Rows may have stored different numbers of
entries.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor

from zoo.host import is_readable

Ring = tuple[Shaped[Tensor, "rows heads block *entry"], ...]


def touched_blocks(
    ring: Ring,
    start: Int[Tensor, " rows"],
    end: Int[Tensor, " rows"],
    known: Iterable[tuple[int, int]] | None = None,
) -> set[int]:
    """Indices of the blocks that storing each row's entries `start` .. `end` - 1 may change.

    `known` are ranges that contain these, as the host knows them.  Without them it is all blocks where the
    host can't read `start` and `end`.
    """
    touched: set[int] = set()
    if not ring:
        return touched
    if known is None and not is_readable(start):
        return set(range(len(ring)))
    block_size, capacity = ring[0].shape[2], len(ring) * ring[0].shape[2]
    for first, stop in set(zip(start.tolist(), end.tolist(), strict=True) if known is None else known):
        first = max(first, stop - capacity)  # earlier entries would be overwritten at once
        if first < stop:
            touched |= {
                index % len(ring) for index in range(first // block_size, (stop - 1) // block_size + 1)
            }
    return touched


def write_entries(
    ring: Ring,
    entries: Shaped[Tensor, "rows heads new *entry"],
    start: Int[Tensor, " rows"],
    end: Int[Tensor, " rows"],
    touched: set[int],
) -> Ring:
    """The ring with each row's entries `start` .. `end` - 1, which are the first of `entries`; the rest is
    ignored.  `touched` is the result of `touched_blocks`."""
    if not ring:
        return ring
    block_size, capacity = ring[0].shape[2], len(ring) * ring[0].shape[2]
    entries = entries.to(ring[0].dtype)

    def write(index: int) -> Tensor:
        slots = torch.arange(index * block_size, (index + 1) * block_size, device=entries.device)
        newest = end[:, None] - 1 - (end[:, None] - 1 - slots) % capacity  # the last entry of each slot
        offset = (newest - start[:, None]).view(len(end), 1, block_size, *[1] * (entries.ndim - 3))
        return torch.where(offset >= 0, entries.take_along_dim(offset.clamp(min=0), 2), ring[index])

    return tuple(write(index) if index in touched else old for index, old in enumerate(ring))


def oldest_first(ring: Ring, length: Int[Tensor, " rows"]) -> Shaped[Tensor, "rows heads capacity *entry"]:
    """A copy of the ring in one tensor, each row's newest entry last; `length` counts the entries that a row
    has stored since its last reset."""
    slots = torch.cat(ring, dim=2)
    order = (length[:, None] + torch.arange(slots.shape[2], device=length.device)) % slots.shape[2]
    return slots.take_along_dim(order.view(len(order), 1, slots.shape[2], *[1] * (slots.ndim - 3)), 2)


def gather_entries(
    ring: tuple[Shaped[Tensor, "rows heads block width"], ...],
    slots: Int[Tensor, "rows heads time neighbours"],
) -> Shaped[Tensor, "rows heads time neighbours width"]:
    """The entries in these slots of each row and head; zeros where a slot is -1.

    A ring much smaller than the result is copied into one table; otherwise each block is read separately."""
    return gather_rings((ring,), slots)[0]


def gather_rings(
    rings: Sequence[tuple[Shaped[Tensor, "rows heads block _"], ...]],
    slots: Int[Tensor, "rows heads time neighbours"],
) -> list[Shaped[Tensor, "rows heads time neighbours _"]]:
    """`gather_entries` of each ring; they differ in the width of their entries alone."""
    rows, heads, block_size, _ = rings[0][0].shape
    capacity = block_size * len(rings[0])
    head = torch.arange(rows * heads, device=slots.device).view(rows, heads, 1, 1)
    if not is_readable(slots):
        index = slots.clamp(min=0)
        block, index, absent = index // block_size, head * block_size + index % block_size, slots < 0
        return [entries_at(ring, block, index).masked_fill(absent[..., None], 0) for ring in rings]
    if 4 * capacity <= slots[0, 0].numel():
        index, absent = head * capacity + slots.clamp(min=0), (slots < 0)[..., None]
        tables = [torch.cat(ring, dim=2).flatten(0, 2) for ring in rings]
        gathered = [F.embedding(index, table) for table in tables]
        return [entries.masked_fill_(absent, 0) for entries in gathered] if absent.any() else gathered
    order = (slots // block_size).flatten().sort(stable=True)  # -1 // block_size is -1: those come first
    counts = torch.bincount(order.values + 1, minlength=len(rings[0]) + 1).tolist()
    absent, *targets = order.indices.split(counts)
    sources = (head * block_size + slots % block_size).flatten()[order.indices].split(counts)[1:]
    return [_gather_blocks(ring, sources, targets, absent).view(*slots.shape, -1) for ring in rings]


def _gather_blocks(
    ring: Ring, sources: Sequence[Tensor], targets: Sequence[Tensor], absent: Int[Tensor, " absent"]
) -> Shaped[Tensor, "entries width"]:
    """Each block's entries at the indices `sources` over its rows, heads and slots, put at `targets` of the
    result; zeros at `absent`."""
    number, blocks = len(absent) + sum(map(len, targets)), [block.flatten(0, 2) for block in ring]
    if not any(block.requires_grad for block in blocks):
        entries = blocks[0].new_empty(number, blocks[0].shape[1])
        entries.index_fill_(0, absent, 0)
        for block, source, target in zip(blocks, sources, targets, strict=True):
            if len(target):
                entries.index_copy_(0, target, block.index_select(0, source))
        return entries
    # a gradient would be copied for every block that is written in place
    sorted_entries = [blocks[0].new_zeros(len(absent), blocks[0].shape[1])]
    sorted_entries += [block[source] for block, source in zip(blocks, sources, strict=True)]
    order = torch.cat([absent, *targets])
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(number, device=order.device))
    return torch.cat(sorted_entries).index_select(0, rank)


def entries_at(
    ring: Ring, block: Int[Tensor, "*shape"], index: Int[Tensor, "*shape"]
) -> Shaped[Tensor, "*shape_and_entry"]:
    """The entries of these blocks, at these indices over all rows, heads and slots of a block.

    No size depends on the indices: either the ring is copied into one table, or each block is read at all of
    them, whichever copies less.
    """
    blocks = [part.flatten(0, 2) for part in ring]
    if len(blocks) == 1 or block.numel() >= len(blocks[0]):
        table = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return table[block * len(blocks[0]) + index]
    entries = blocks[0][index]
    for i, part in enumerate(blocks[1:], start=1):
        chosen = (block == i).view(*block.shape, *[1] * (part.ndim - 1))
        entries = torch.where(chosen, part[index], entries)
    return entries
