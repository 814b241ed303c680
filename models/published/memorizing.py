"""The memory layer of lucidrains/memorizing-transformers-pytorch (`KNNAttention`, v0.4.1) as published.

Unlike the paper's it has one head of keys and values for all heads of queries, one index of a row for all
heads, one softmax over retrieved and local keys, and no gate but one over the whole layer, by option.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.mixer import Mixer
from zoo.memory.retrieval.bank import Bank, KNNMemory, attend
from zoo.models.published.weights import Config, Table, build, fill, flag, fraction, gradients, number, same

TABLE: Table = {
    "to_q.weight": ("q.weight", same),
    "to_kv.weight": ("kv.weight", same),
    "to_out.weight": ("out_proj.weight", same),
    "scale": ("sharpness", same),
    "output_gate": ("gate", same),
}


class JointAttention(Mixer):
    """y = W_o softmax([exp(p) q_i . k_found ; exp(p) q_i . k_j + bias_ij]) [their v], times tanh(gate)."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("sharpness",)

    def __init__(
        self, width: int, heads: int, head_dim: int, capacity: int, neighbours: int, gated: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.knn = heads, KNNMemory(capacity, 1, head_dim, head_dim, neighbours)
        self.q = nn.Linear(width, heads * head_dim, bias=False)
        self.kv = nn.Linear(width, 2 * head_dim, bias=False)
        self.out_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.sharpness = nn.Parameter(torch.full((heads, 1, 1), 20.0).log())
        self.gate = nn.Parameter(torch.zeros(1)) if gated else None

    def init_state(self, rows: int) -> Bank:
        return self.knn.init_state(rows, self.q.weight)

    def forward(
        self,
        x: Float[Tensor, "rows time width"],
        state: Bank,
        bias: Float[Tensor, "*rows_or_one heads time time"] | None = None,
    ) -> tuple[Float[Tensor, "rows time width"], Bank]:
        q = F.normalize(rearrange(self.q(x), "b t (h k) -> b h t k", h=self.heads), dim=-1)
        k, v = rearrange(self.kv(x), "b t (two k) -> two b 1 t k", two=2)
        k = F.normalize(k, dim=-1)
        ids = self.knn.search(rearrange(q, "b h t k -> b 1 (h t) k"), state)
        memory_k, memory_v = self.knn.gather(state, ids)
        assert memory_v is not None
        valid, memory_k, memory_v = (
            rearrange(part, "b 1 (h t) ... -> b h t ...", h=self.heads)
            for part in (ids >= 0, memory_k, memory_v)
        )
        local_k, local_v = (repeat(part, "b 1 t k -> b h t k", h=self.heads) for part in (k, v))
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        y = attend(
            q * self.sharpness.exp(),
            local_k,
            local_v,
            causal,
            memory_k,
            memory_v,
            valid,
            scale=1.0,
            bias=bias,
        )
        y = self.out_proj(rearrange(y, "b h t k -> b t (h k)"))
        return y if self.gate is None else y * self.gate.tanh(), self.knn.add(state, k, v)


def shape(config: Config) -> dict[str, Any]:
    """The layer's keywords; its bank holds `max_knn_memories`, or the case's memories and its segment."""
    fraction(config, "dropout", 0.0)
    if config.get("xl_max_memories"):
        raise UserError(f"config: expected no XL memory, found xl_max_memories {config['xl_max_memories']!r}")
    stored = number(config, "memories", least=0, default=0) + number(config, "n", least=0, default=0)
    neighbours = number(config, "num_retrieved_memories", default=32)
    return {
        "width": number(config, "dim"),
        "heads": number(config, "heads", default=8),
        "head_dim": number(config, "dim_head", default=64),
        "capacity": number(config, "max_knn_memories", default=max(stored, neighbours)),
        "neighbours": neighbours,
        "gated": flag(config, "gate_output", False),
    }


def load_layer(weights: dict[str, Tensor], config: Config) -> JointAttention:
    """The published layer with its weights, in their dtype."""
    layer = build(JointAttention, **shape(config))
    fill(layer, weights, TABLE)
    return layer


def published_gradients(layer: JointAttention) -> dict[str, Tensor]:
    return gradients(layer, TABLE)


def published_state(state: Bank) -> Float[Tensor, "rows tokens two head_dim"]:
    """Keys and values in the order in which they came."""
    counts = state.length.unique().tolist()
    if len(counts) != 1:
        raise UserError(f"state: expected rows that remember one length, found {counts}")
    ring = torch.stack([torch.cat(blocks, dim=2)[:, 0] for blocks in (state.keys, state.values)], dim=2)
    capacity = ring.shape[1]
    tokens = torch.arange(max(0, counts[0] - capacity), counts[0], device=ring.device)
    return ring[:, tokens % capacity]
