"""Based: linear attention with Taylor features, alternating with a short sliding window.

Arora et al. 2024, arXiv:2402.18668; linear attention: memory/fast_weights/linear_attention.py.

    x += linear(norm(x))           x += swiglu(norm(x))
    x += attention(norm(x))        x += swiglu(norm(x))        logits = E norm(x)
    linear: o_t = sum_{j<=t} w_tj v_j / sum_{j<=t} w_tj,  w_tj = 1 + s + s^2 / 2 with s = q_t k_j / sqrt(K)

Carried from segment to segment: linear attention's sums per head, the last `window - 1` keys and values.
Differs from the paper: its short gated convolutions are left out; initial weights are those of all models.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, Unpack

from zoo.memory.attention.sliding_window import WindowAttention
from zoo.memory.fast_weights.linear_attention import LinearAttention
from zoo.models.decoder import BaseOptions, attention_options
from zoo.models.hybrid import Hybrid, Mixers


class Based(Hybrid):
    """`feature_dim` d of queries and keys: 1 + d + d^2 features; `window` counts the current token."""

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        window: int,
        pattern: Sequence[Literal["linear", "attention"]] = ("linear", "attention"),
        feature_dim: int = 16,
        chunk_size: int = 32,
        qk_norm: bool = False,
        **options: Unpack[BaseOptions],
    ) -> None:
        linear = partial(LinearAttention, width, heads, feature_map="taylor", head_dim=feature_dim)
        linear = partial(linear, value_dim=width // heads, chunk_size=chunk_size)
        attention = partial(WindowAttention, width, heads, window=window, **attention_options(options))
        attention = partial(attention, qk_norm=qk_norm)
        mixers: Mixers = {"linear": linear, "attention": attention}
        super().__init__(
            vocab_size, segment_len, depth, width, pattern, mixers, mlp_width=mlp_width, **options
        )
