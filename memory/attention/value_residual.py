"""Attention whose values are mixed with those of the first layer.

Zhou et al. 2024, arXiv:2410.17897 (ResFormer), with learned weights (Learnable-ResFormer):

    V = lambda_1 V_1 + lambda_2 W_v x      lambda_1 = lambda_2 = 1/2 at the start

V_1 are the first layer's values of the same tokens, which the stack of blocks hands to every later layer.
Caches and windows hold the mixed values.
Differs from the paper: nothing.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.attention.core import Attention
from zoo.memory.attention.sliding_window import WindowAttention, WindowState
from zoo.state import State


class ValueWeights(nn.Module):
    """lambda_1 and lambda_2."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((2,), 0.5))

    def forward(
        self,
        first_values: Float[Tensor, "rows kv_heads time head_dim"],
        v: Float[Tensor, "rows kv_heads time head_dim"],
    ) -> Float[Tensor, "rows kv_heads time head_dim"]:
        weights = self.weights.to(v.dtype)
        return weights[0] * first_values + weights[1] * v


class ValueResidualAttention(Attention):
    """Attention inside a segment; `first_values` are those of the first layer."""

    decodes = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.value_weights = ValueWeights()

    def forward(
        self,
        x: Float[Tensor, "rows time width"],
        state: State,
        *first_values: Float[Tensor, "rows kv_heads time head_dim"],
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        q, k, v = self.project(x)
        return self.mix_segment(q, k, self.value_weights(*first_values, v)), state

    def decode(
        self,
        x: Float[Tensor, "rows time width"],
        cache: Any,
        *first_values: Float[Tensor, "rows kv_heads time head_dim"],
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        q, k, v = self.project(x)
        return self.extend(q, k, self.value_weights(*first_values, v), cache)


class ValueResidualWindow(WindowAttention):
    """Sliding-window attention; `first_values` are those of the first layer."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.value_weights = ValueWeights()

    def forward(
        self,
        x: Float[Tensor, "rows time width"],
        state: WindowState,
        *first_values: Float[Tensor, "rows kv_heads time head_dim"],
    ) -> tuple[Float[Tensor, "rows time width"], WindowState]:
        q, k, v = self.project(x)
        y, after = self.mix(q, k, self.value_weights(*first_values, v), state)
        return self.out_proj(y), after
