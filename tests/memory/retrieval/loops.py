"""The definition of Unlimiformer's attention: query by query, with recomputed keys and values."""

import itertools
import math

import torch
from torch import Tensor

from tests.memory.attention.loops import complex_rotation
from zoo.memory.attention.biases import Alibi
from zoo.memory.attention.positions import Rope
from zoo.memory.retrieval.bank import Bank
from zoo.memory.retrieval.unlimiformer_attention import UnlimiformerAttention


def distance(mixer: UnlimiformerAttention, time: int, rank: int, count: int) -> int:
    """Positions from a query to the stored input that is older than all but `rank` of the `count` stored."""
    if mixer.retrieved_positions == "none":
        return 0
    if mixer.retrieved_positions == "start":
        return time
    if mixer.retrieved_positions == "before":
        return time + mixer.segment_len
    positions = min(count, mixer.segment_len)
    return time + positions - math.floor(rank * positions / count)


def temperature(positions: Rope) -> float:
    """What multiplies the rotated features of queries and keys alike: yarn's and longrope's."""
    return 1.0 if positions.frequencies is None else positions.frequencies.factor


def attend_memory_loop(
    mixer: UnlimiformerAttention, q: Tensor, local: Tensor, v: Tensor, bank: Bank
) -> Tensor:
    """y before W_o, of one segment; no dropout."""
    w_k, w_v, b_k, b_v = mixer.kv_projections()
    v, scale = v.repeat_interleave(mixer.groups, dim=1), mixer.head_dim**-0.5
    y = torch.empty_like(q)
    for row, head, time in itertools.product(*map(range, q.shape[:3])):
        length, capacity = int(bank.length[row]), mixer.knn.capacity
        slots = [token % capacity for token in range(max(0, length - capacity), length)]  # oldest first
        stored = torch.cat(bank.keys, dim=2)[row, 0, slots].to(q.dtype)
        nearest = (stored @ (q[row, head, time] @ w_k[head])).topk(min(mixer.knn.neighbours, len(slots)))
        scores, values = list(local[row, head, time]), list(v[row, head])
        for rank in nearest.indices.tolist():
            key, away = w_k[head] @ stored[rank] + b_k[head], distance(mixer, time, rank, len(slots))
            if isinstance(mixer.positions, Rope):
                rotated = mixer.positions.rotated or len(key)
                turned = complex_rotation(key[:rotated], -away, mixer.positions.base)
                key = torch.cat([temperature(mixer.positions) ** 2 * turned, key[rotated:]])
            slope = 2.0 ** (-8 * (head + 1) / mixer.heads) if isinstance(mixer.positions, Alibi) else 0.0
            scores.append(scale * q[row, head, time] @ key - slope * away)
            values.append(w_v[head] @ stored[rank] + b_v[head])
        y[row, head, time] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return y
