"""Samba: Mamba and sliding-window attention in turn, a feed-forward after each.

Ren et al. 2024, arXiv:2406.07522.

    x += mamba(norm(x))            x += swiglu(norm(x))
    x += attention(norm(x))        x += swiglu(norm(x))        logits = E norm(x)

Carried from segment to segment: every Mamba's state (memory/state_space/mamba_mixer.py), and the last `window
- 1` keys and values of attention.
Differs from the paper: norms add 1e-6, its code 1e-5 (which published weights are read with); initial weights
are those of all our models, but for A, D, dt and the convolution.
"""

from collections.abc import Sequence
from typing import Literal

from zoo.memory.attention.positions import Position
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.memory.mixer import Mixer
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.memory.state_space.selective_scan import Backend
from zoo.models.blocks import Block, FeedForward, Norm, layout
from zoo.models.decoder import Decoder


class Samba(Decoder):
    """`window` counts the tokens that attention sees, the current one included; `channels` is Mamba's inner
    width, 2 D by default; `rotated` features of a head have rotary positions, all by default."""

    learns_through_memory = True
    cuts_anywhere = True
    parallel = "any_length"

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
        rope_base: float = 10000.0,
        rotated: int | None = None,
        norm: Norm = "rms",
        bias: bool = False,
        tied: bool = True,
        dropout: float = 0.0,
        backend: Backend = "torch",
    ) -> None:
        def mixer(kind: str) -> Mixer:
            if kind == "mamba":
                inner = channels or 2 * width
                return MambaMixer(
                    width, inner, state_size=state_size, conv_size=conv_size, dt_rank=dt_rank, backend=backend
                )
            return WindowAttention(
                width,
                heads,
                window=window,
                kv_heads=kv_heads,
                position=position,
                rope_base=rope_base,
                rotated=rotated,
                bias=bias,
                dropout=dropout,
            )

        blocks = (
            Block(mixer(kind), FeedForward(width, mlp_width, dropout=dropout), width, norm, dropout)
            for kind in layout(pattern, depth)
        )
        super().__init__(vocab_size, segment_len, width, blocks, norm=norm, tied=tied, dropout=dropout)
