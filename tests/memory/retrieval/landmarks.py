"""A small layer of Landmark attention, inputs for it, and states of its bank."""

from typing import Any

import torch
from torch import Tensor

from zoo.memory.retrieval.landmark_attention import LandmarkAttention
from zoo.memory.retrieval.landmark_bank import BankState
from zoo.state import tree_map

WIDTH, HEADS, BLOCK, SEGMENT = 8, 2, 3, 9


def make_layer(blocks: int = 7, topk: int = 2, **options: Any) -> LandmarkAttention:
    torch.manual_seed(0)
    layer = LandmarkAttention(
        WIDTH, HEADS, segment_len=SEGMENT, block_len=BLOCK, num_blocks=blocks, topk=topk, **options
    )
    return layer.double().eval()


def random_stream(time: int, rows: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, time, WIDTH, generator=generator, dtype=torch.float64)


def random_state(layer: LandmarkAttention, length: list[int], seed: int = 2) -> BankState:
    """A state full of noise, with these lengths of its rows."""
    generator = torch.Generator().manual_seed(seed)
    state = tree_map(
        lambda leaf: torch.randn(leaf.shape, generator=generator, dtype=torch.float64),
        layer.init_state(len(length))[:4],
    )
    return BankState(*state, torch.tensor(length))
