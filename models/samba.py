"""Samba: Mamba alternating with sliding-window attention, a feed-forward after each.

Ren et al. 2024, arXiv:2406.07522.

    x += mamba(norm(x))            x += swiglu(norm(x))
    x += attention(norm(x))        x += swiglu(norm(x))        logits = E norm(x)

Carried from segment to segment: every Mamba's state (memory/state_space/mamba_mixer.py), and the last `window
- 1` keys and values of attention.
Differs from the paper: norms add 1e-6, its code 1e-5 (which published weights are read with); initial weights
are those of all models here, except for A, D, dt and the convolution.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, Unpack

from zoo.memory.attention.position_options import Position
from zoo.memory.attention.sliding_window import Backend as AttentionBackend
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.memory.state_space.selective_scan import Backend
from zoo.models.decoder import BaseOptions, attention_options
from zoo.models.hybrid import Hybrid, Mixers


class Samba(Hybrid):
    """`window` is the number of tokens that attention sees, the current one included; `channels` Mamba's
    inner width, 2 D by default; `rotated` features of a head have rotary positions, all by default."""

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        window: int,
        pattern: Sequence[Literal["mamba", "attention"]] = ("mamba", "attention"),
        kv_heads: int | None = None,
        channels: int | None = None,
        state_size: int = 16,
        conv_size: int = 4,
        dt_rank: int | None = None,
        position: Position = "rope",
        qk_norm: bool = False,
        rope_base: float = 10000.0,
        rotated: int | None = None,
        bias: bool = False,
        backend: Backend = "torch",
        attention_backend: AttentionBackend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        mamba = partial(MambaMixer, width, channels or 2 * width, state_size=state_size, conv_size=conv_size)
        attention = partial(WindowAttention, width, heads, window=window, kv_heads=kv_heads, rotated=rotated)
        attention = partial(attention, position=position, qk_norm=qk_norm, rope_base=rope_base, bias=bias)
        attention = partial(attention, backend=attention_backend)
        mixers: Mixers = {
            "mamba": partial(mamba, dt_rank=dt_rank, backend=backend),
            "attention": partial(attention, **attention_options(options)),
        }
        super().__init__(
            vocab_size, segment_len, depth, width, pattern, mixers, mlp_width=mlp_width, **options
        )
