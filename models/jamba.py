"""Jamba: Mamba with attention once in eight blocks, a feed-forward in each.

Lieber et al. 2024, arXiv:2403.19887.

    x += mixer(norm(x))        x += swiglu(norm(x))        logits = E norm(x)
    mixer: attention in the middle of eight, or of all layers of a shallower model; elsewhere Mamba
    (memory/state_space/mamba_mixer.py) with norms on dt, B and C

Attention has grouped queries and no positions: the recurrence provides the order.
Carried from segment to segment: every Mamba's state, and the last `context` keys and values of attention.
Differs from the paper: attention sees the last `context` tokens, not all; no mixture of experts; embeddings
are tied.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, Unpack

from zoo.memory.attention.sliding_window import WindowAttention
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.memory.state_space.selective_scan import Backend
from zoo.models.decoder import BaseOptions, attention_options
from zoo.models.hybrid import Hybrid, Mixers, attention_in_the_middle

LayerType = Literal["mamba", "attention"]


class Jamba(Hybrid):
    """`context` is the number of tokens before the current one that attention sees; `channels` Mamba's inner
    width, 2 D by default.

    One layer in `attention_period` attends (`attention_in_the_middle`), unless a `pattern` names the types of
    all layers, in turn."""

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        context: int,
        attention_period: int = 8,
        pattern: Sequence[LayerType] | None = None,
        kv_heads: int | None = None,
        qk_norm: bool = False,
        channels: int | None = None,
        state_size: int = 16,
        conv_size: int = 4,
        dt_rank: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        backend: Backend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        mamba = partial(MambaMixer, width, channels or 2 * width, state_size=state_size, conv_size=conv_size)
        mamba = partial(mamba, dt_rank=dt_rank, bias=bias, conv_bias=conv_bias, norm_eps=1e-6)
        attention = partial(WindowAttention, width, heads, window=context + 1, kv_heads=kv_heads)
        attention = partial(attention, qk_norm=qk_norm)
        mixers: Mixers = {
            "mamba": partial(mamba, backend=backend),
            "attention": partial(attention, position="none", **attention_options(options)),
        }
        layers = pattern or attention_in_the_middle("mamba", depth, attention_period)
        super().__init__(
            vocab_size, segment_len, depth, width, layers, mixers, mlp_width=mlp_width, **options
        )
