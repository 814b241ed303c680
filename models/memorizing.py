"""Memorizing Transformer: one layer also attends to the nearest of its stored keys.

Wu, Rabe, Hutchins & Szegedy 2022, arXiv:2203.08913, section 3; the layer's equations:
memory/retrieval/memorizing_attention.py.

    y <- g softmax(s q . k_j) v_j of the k nearest stored keys + (1 - g) attention inside the segment

Carried from segment to segment, by memory layers: the last `capacity` keys and values, which are read first
and then written.  They are constant to the gradient.
Differs from the paper, which has T5's position biases and a Transformer-XL cache: positions are rotary, and
local context is the segment.  s = exp(sharpness) > 0.
Differs from the published code (google-research/meliad): search is exact, fewer than k keys share the softmax
among themselves, and a token sees itself.
"""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import torch

from zoo.memory.attention.core import Attention
from zoo.memory.attention.position_options import Position
from zoo.memory.retrieval.bank import Backend, Bank, KNNMemory, recall_diagnostics
from zoo.memory.retrieval.faiss_index import IndexType
from zoo.memory.retrieval.memorizing_attention import MemorizingAttention
from zoo.models.blocks import layers_with_memory
from zoo.models.decoder import BaseOptions, Decoder, attention_options
from zoo.state import State


class Memorizing(Decoder):
    """`capacity` tokens are stored in blocks of `block`, `neighbours` of them retrieved per query and head,
    in each of `memory_layers`; ValueError for settings that are out of range or don't fit one another."""

    learns_through_memory = False
    reach = None
    parallel = "segments_as_batch"

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        capacity: int,
        neighbours: int = 32,
        block: int | None = None,  # tokens per block of the bank's ring; None: all of `capacity`
        memory_layers: Sequence[int] | None = None,
        backend: Backend = "torch",
        index: IndexType = "flat",
        memory_dtype: Literal["bfloat16"] | None = None,
        rope_base: float = 10000.0,
        position: Position = "rope",
        qk_norm: bool = False,
        **options: Unpack[BaseOptions],
    ) -> None:
        memory_layers = layers_with_memory(depth, memory_layers)
        attention: dict[str, Any] = {
            "position": position,
            "qk_norm": qk_norm,
            "rope_base": rope_base,
            "context": segment_len,
        }
        attention |= attention_options(options)
        head_dim = width // heads

        def mixer(layer: int) -> Attention:
            if layer not in memory_layers:
                return Attention(width, heads, **attention)
            knn = KNNMemory(
                capacity, heads, head_dim, head_dim, neighbours, block, backend, index, memory_dtype, lag=0
            )
            return MemorizingAttention(width, heads, knn, **attention)

        mixers = map(mixer, range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)

    def memories(self) -> list[MemorizingAttention]:
        return [part for part in self.modules() if isinstance(part, MemorizingAttention)]

    @torch.no_grad()
    def diagnostics(self, state: State) -> dict[str, float]:
        """Gate values (1: only the memory is used)."""
        gates = torch.stack([memory.gate for memory in self.memories()]).sigmoid()
        figures = {"gate": gates.mean(), "gate_min": gates.min(), "gate_max": gates.max()}
        return {name: figure.item() for name, figure in figures.items()}

    def costly_diagnostics(self, state: State) -> dict[str, float]:
        """With faiss, the index's recall."""
        banks = [bank for bank in state if isinstance(bank, Bank)]
        return recall_diagnostics([memory.knn for memory in self.memories()], banks)
