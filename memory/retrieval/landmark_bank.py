"""The bank of Landmark attention: each row's last closed blocks of keys and values, and its open block.

Mohtashami & Jaggi 2023, arXiv:2305.16300, section 3.2; used by memory/retrieval/landmark_attention.py.

A block is the paper's, `mem_freq` tokens and their landmark.  Closed blocks are the entries of a ring buffer
(memory/retrieval/ring_buffer.py), whose blocks are called ring blocks here.  A row's local context is
its open block followed by the new tokens, in whole blocks.
Differs from the paper: nothing.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.host import is_readable, row_lengths
from zoo.memory.attention.chunked import gather_slots
from zoo.memory.retrieval.ring_buffer import entries_at, oldest_first, touched_blocks, write_entries
from zoo.state import special_fields

BlockRing = tuple[Float[Tensor, "rows heads ring_block block head_dim"], ...]


@special_fields(lazy=("closed_keys", "closed_values"))
class BankState(NamedTuple):
    closed_keys: BlockRing  # without positions; a block's landmark is its last token
    closed_values: BlockRing
    open_keys: Float[Tensor, "rows heads open head_dim"]  # the open block's tokens in order, then zeros
    open_values: Float[Tensor, "rows heads open head_dim"]
    length: Int[Tensor, " rows"]  # tokens read since the last reset, landmarks included

    @property
    def block_len(self) -> int:
        """Tokens of a block, its landmark included."""
        return self.open_keys.shape[2] + 1

    @property
    def num_closed(self) -> Int[Tensor, " rows"]:
        """Blocks closed since the last reset."""
        return self.length // self.block_len

    @property
    def open_length(self) -> Int[Tensor, " rows"]:
        """Tokens of the open block."""
        return self.length % self.block_len

    @property
    def keys(self) -> Float[Tensor, "rows heads blocks block head_dim"]:
        """A copy of all closed blocks, the newest last."""
        return oldest_first(self.closed_keys, self.num_closed)

    @property
    def values(self) -> Float[Tensor, "rows heads blocks block head_dim"]:
        """As `keys`."""
        return oldest_first(self.closed_values, self.num_closed)


class LocalContext(NamedTuple):
    """Each row's open block and the new tokens after it; keys and values past the last one are undefined."""

    positions: Int[Tensor, "rows local"]  # 0, 1, .. from the start of the open block
    keys: Float[Tensor, "rows heads local head_dim"]
    values: Float[Tensor, "rows heads local head_dim"]


def local_context(
    state: BankState,
    k: Float[Tensor, "rows heads time head_dim"],
    v: Float[Tensor, "rows heads time head_dim"],
) -> LocalContext:
    """The local context of a segment's keys, without positions, and values."""
    num_blocks = -(-(state.block_len - 1 + k.shape[2]) // state.block_len)
    positions = torch.arange(num_blocks * state.block_len, device=k.device).expand(len(k), -1)
    keys = gather_slots(k, state.open_keys, state.open_length, positions)
    return LocalContext(positions, keys, gather_slots(v, state.open_values, state.open_length, positions))


@torch.no_grad()
def append(state: BankState, local: LocalContext, time: int) -> BankState:
    """The state after the `time` new tokens of a local context: blocks that they close go into the bank."""
    block_len, end = state.block_len, state.length + time
    closed, num_closed = state.num_closed, end // block_len
    open_start = (num_closed - closed) * block_len  # in the local context
    positions = open_start[:, None] + torch.arange(block_len - 1, device=end.device)
    past_end = (positions >= (state.open_length + time)[:, None])[:, None, :, None]
    index = positions.clamp(max=local.keys.shape[2] - 1)[:, None, :, None]
    touched = touched_blocks(state.closed_keys, closed, num_closed, _known_blocks(state))

    def write(context: Tensor, ring: BlockRing) -> tuple[BlockRing, Tensor]:
        context = context.to(state.open_keys.dtype)
        open_tokens = context.take_along_dim(index, 2).masked_fill(past_end, 0)
        blocks = context.unflatten(2, (-1, block_len))
        return write_entries(ring, blocks, closed, num_closed, touched), open_tokens

    closed_keys, open_keys = write(local.keys, state.closed_keys)
    closed_values, open_values = write(local.values, state.closed_values)
    return BankState(closed_keys, closed_values, open_keys, open_values, end)


def _known_blocks(state: BankState) -> list[tuple[int, int]] | None:
    """The first block that each row may close in this window, and the one after the last, as the host knows
    them."""
    lengths, block_tokens = row_lengths(len(state.length)), state.block_len - 1
    if lengths is None:
        return None
    return [(before // block_tokens, (before + lengths.time) // block_tokens) for before in lengths.before]


class SelectedBlocks(NamedTuple):
    """Keys and values of selected blocks, each block once."""

    keys: Float[Tensor, "distinct block head_dim"]
    values: Float[Tensor, "distinct block head_dim"]
    indices: Int[Tensor, "rows heads time topk"]  # of each selected block in `keys`; undefined where it is -1


def gather_blocks(state: BankState, ids: Int[Tensor, "rows heads time topk"]) -> SelectedBlocks:
    """The blocks with these indices in `state.keys`: 0 the oldest, -1 none.

    Where the host can't read `ids`, blocks may stand there twice, or others that aren't selected.
    """
    (rows, heads), ring_block, num_ring_blocks = (
        ids.shape[:2],
        state.closed_keys[0].shape[2],
        len(state.closed_keys),
    )
    slots = (state.num_closed.view(-1, 1, 1, 1) + ids.clamp(min=0)) % (num_ring_blocks * ring_block)
    head = torch.arange(rows * heads, device=ids.device).view(rows, heads, 1, 1)
    size = max(1, rows * heads * ring_block)  # closed blocks in one ring block of all rows and heads
    block, index = slots // ring_block, head * ring_block + slots % ring_block
    if not is_readable(ids):
        rings = (state.closed_keys, state.closed_values)
        if ids.numel() >= size * num_ring_blocks:
            keys, values = (torch.cat([blocks.flatten(0, 2) for blocks in ring]) for ring in rings)
            return SelectedBlocks(keys, values, block * size + index)
        keys, values = (entries_at(ring, block, index).flatten(0, 3) for ring in rings)
        return SelectedBlocks(keys, values, torch.arange(ids.numel(), device=ids.device).view(ids.shape))
    distinct, indices = (block * size + index).unique(return_inverse=True)
    parts = (distinct % size).split((distinct // size).bincount(minlength=num_ring_blocks).tolist())
    keys, values = (
        torch.cat([blocks.flatten(0, 2)[part] for blocks, part in zip(ring, parts, strict=True)])
        for ring in (state.closed_keys, state.closed_values)
    )
    return SelectedBlocks(keys, values, indices)
