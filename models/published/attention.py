"""What the loaders of models with windowed attention share: how queries, keys and values lie in the published
files, and the keys that are carried as the published codes keep them."""

import torch
from einops import rearrange
from torch import Tensor

from zoo.errors import UserError
from zoo.memory.attention.core import Attention
from zoo.memory.attention.sliding_window import WindowAttention, WindowState
from zoo.models.published.weights import Table, View


def parts(attention: Attention, theirs: str, ours: str) -> Table:
    """Three linear maps, `theirs` with q, k and v for {}, that are one here."""
    lengths = [heads * attention.head_dim for heads in (attention.heads, *[attention.kv_heads] * 2)]

    def part(index: int) -> View:
        return lambda weight: weight.split(lengths)[index]

    return {
        f"{theirs.format(name)}.{kind}": (f"{ours}.{kind}", part(index))
        for index, name in enumerate("qkv")
        for kind in ("weight", "bias")
    }


def by_group(weight: Tensor, groups: int, head_dim: int) -> Tensor:
    """Of our rows (all queries, all keys, all values): each group's queries, its key, its value."""
    heads = weight.unflatten(0, (-1, head_dim))
    q, k, v = heads.split([len(heads) - 2 * groups, groups, groups])
    return torch.cat([q.unflatten(0, (groups, -1)), k[:, None], v[:, None]], dim=1).flatten(0, 2)


def by_part(weight: Tensor, groups: int, head_dim: int) -> Tensor:
    """The inverse of `by_group`."""
    heads = weight.unflatten(0, (groups, -1, head_dim))
    return torch.cat([heads[:, :-2].flatten(0, 2), heads[:, -2].flatten(0, 1), heads[:, -1].flatten(0, 1)])


def attention_state(attention: WindowAttention, state: WindowState) -> dict[str, Tensor]:
    """`attn_k`, `attn_v` (rows, keys, heads, head_dim): the keys that there are, in the order of the text,
    with their rotary positions in it."""
    lengths = state.length.unique().tolist()
    if len(lengths) != 1:
        raise UserError(f"state: expected rows that have read one length, found {lengths}")
    (read,), cache = lengths, attention.window - 1
    length = min(read, cache)
    keys, values = (part[:, :, cache - length :] for part in (state.keys, state.values))
    keys = attention.positions.rotate(keys, torch.arange(read - length, read, device=keys.device))
    return {
        "attn_k": rearrange(keys, "b h t k -> b t h k"),
        "attn_v": rearrange(values, "b h t k -> b t h k"),
    }
