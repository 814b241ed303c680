"""Transformer decoder: the baseline.  LLaMA-shaped by default, GPT-2-shaped by configuration; with a window,
a sliding-window transformer that carries its keys and values.

Vaswani et al. 2017, arXiv:1706.03762; Touvron et al. 2023, arXiv:2302.13971 (pre-RMSNorm, SwiGLU, rotary
positions); Radford et al. 2019 (GPT-2: LayerNorm, GELU, learned positions, biases); window and sinks:
memory/attention/sliding_window.py.

    x += attention(norm(x))        x += mlp(norm(x))        logits = E norm(x)

Carried from segment to segment: nothing without a window (each segment is read alone: the forgetting
baseline); with one, the last `window - 1` keys and values of every layer, and those of the first `sinks`
tokens.
Differs from the papers: nothing.
"""

from typing import Literal

from zoo.memory.attention.core import Attention
from zoo.memory.attention.positions import Position
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.models.blocks import Activation, Block, FeedForward, Norm
from zoo.models.decoder import Decoder
from zoo.module import Parallel


class Transformer(Decoder):
    parallel: Parallel = "segments_as_batch"

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        window: int | None = None,
        sinks: int = 0,
        kv_heads: int | None = None,
        position: Literal["rope", "alibi", "learned", "none"] = "rope",
        rope_base: float = 10000.0,
        norm: Norm = "rms",
        activation: Activation = "swiglu",
        bias: bool = False,
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        if window is None and sinks:
            raise ValueError(
                f"sinks={sinks} need a window: without one nothing is ever dropped from a segment"
            )
        if window is not None and position == "learned":
            raise ValueError(
                "a window needs positions that only count distances: rope, alibi or none, not learned"
            )

        place: Position = "none" if position == "learned" else position

        def mixer() -> Attention:
            if window is None:
                return Attention(
                    width,
                    heads,
                    kv_heads=kv_heads,
                    position=place,
                    rope_base=rope_base,
                    bias=bias,
                    dropout=dropout,
                )
            return WindowAttention(
                width,
                heads,
                window=window,
                sinks=sinks,
                kv_heads=kv_heads,
                position=place,
                rope_base=rope_base,
                bias=bias,
                dropout=dropout,
            )

        super().__init__(
            vocab_size,
            segment_len,
            width,
            [
                Block(mixer(), FeedForward(width, mlp_width, activation, bias, dropout), width, norm, dropout)
                for _ in range(depth)
            ],
            norm=norm,
            positions=segment_len if position == "learned" else 0,
            tied=tied,
            dropout=dropout,
        )
        carries = window is not None and window + sinks > 1
        self.remembers = self.learns_through_memory = carries
        if window is not None:
            self.cuts_anywhere, self.parallel = True, "any_length"
