"""Mamba-2 with a little attention and a feed-forward in each block: the hybrid of mamba_ssm.

Dao & Gu 2024, arXiv:2405.21060, section 9.2.3 (Mamba-2-MLP-Attention): about a tenth attention is best.

    x += mixer(norm(x))        x += swiglu(norm(x))        logits = E norm(x)
    mixer: attention in the middle of eight, or of all layers of a shallower model; Mamba-2
    (memory/state_space/mamba2_mixer.py) elsewhere

Carried from segment to segment: every Mamba-2's state, and the last `context` keys and values of attention.
Differs from the paper: attention sees the last `context` tokens, not all, and has neither positions nor a
short convolution.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, Unpack

from zoo.memory.attention.sliding_window import WindowAttention
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer
from zoo.memory.state_space.ssd import Backend
from zoo.models.decoder import BaseOptions, attention_options
from zoo.models.hybrid import Hybrid, Mixers, attention_in_the_middle

LayerType = Literal["mamba2", "attention"]


class Mamba2Hybrid(Hybrid):
    """`context` is the number of tokens before the current one that attention sees; the recurrence has
    `channels` (2 D by default) in heads of `head_dim`.

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
        head_dim: int = 64,
        state_size: int = 64,
        groups: int = 1,
        conv_size: int = 4,
        chunk_size: int = 64,
        backend: Backend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        channels = channels or 2 * width
        if channels % head_dim:
            raise ValueError(f"channels {channels} is not a multiple of head_dim {head_dim}")
        mamba2 = partial(Mamba2Mixer, width, channels // head_dim, head_dim=head_dim, state_size=state_size)
        attention = partial(WindowAttention, width, heads, window=context + 1, kv_heads=kv_heads)
        attention = partial(attention, qk_norm=qk_norm)
        mixers: Mixers = {
            "mamba2": partial(
                mamba2, groups=groups, conv_size=conv_size, chunk_size=chunk_size, backend=backend
            ),
            "attention": partial(attention, position="none", **attention_options(options)),
        }
        layers = pattern or attention_in_the_middle("mamba2", depth, attention_period)
        super().__init__(
            vocab_size, segment_len, depth, width, layers, mixers, mlp_width=mlp_width, **options
        )
