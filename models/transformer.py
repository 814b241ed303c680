"""Transformer decoder: the baseline.  LLaMA-shaped by default, GPT-2-shaped by configuration; with a window,
a sliding-window transformer that carries its keys and values.

Vaswani et al. 2017, arXiv:1706.03762; Touvron et al. 2023, arXiv:2302.13971 (pre-RMSNorm, SwiGLU, rotary
positions); Radford et al. 2019 (GPT-2: LayerNorm, GELU, learned positions, biases); window and sinks:
memory/attention/sliding_window.py.

    x += attention(norm(x))        x += mlp(norm(x))        logits = E norm(x)

With `value_residual` every layer but the first attends to lambda_1 v_1 + lambda_2 v instead of its values v,
with the first layer's v_1 (Zhou et al. 2024, arXiv:2410.17897).

Carried from segment to segment: nothing without a window (each segment is read alone: the forgetting
baseline); with a window, the last `window - 1` keys and values of every layer, and those of the first `sinks`
tokens.
Differs from the papers: nothing.
"""

from typing import Any, Unpack

from zoo.interface import Parallel
from zoo.memory.attention.core import Attention
from zoo.memory.attention.position_options import Position, position_kind
from zoo.memory.attention.sliding_window import Backend, WindowAttention, stack_reach
from zoo.memory.attention.value_residual import ValueResidualAttention, ValueResidualWindow
from zoo.models.decoder import Decoder, DecoderOptions, attention_options


class TransformerOptions(DecoderOptions, total=False):
    """Options that subclasses of Transformer pass through to it."""

    kv_heads: int | None
    position: Position
    rope_base: float
    qk_norm: bool
    shifted: int | None


class Transformer(Decoder):
    """`window` is in tokens, the current one included, `sinks` in tokens; with `shifted`, training attends in
    that many groups of a segment.  ValueError for settings that don't fit one another."""

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
        position: Position = "rope",
        qk_norm: bool = False,
        value_residual: bool = False,
        rope_base: float = 10000.0,
        shifted: int | None = None,
        attention_backend: Backend = "torch",
        **options: Unpack[DecoderOptions],
    ) -> None:
        if window is None and sinks:
            raise ValueError(f"sinks={sinks} need a window: without one a segment drops no token")
        attention: dict[str, Any] = {"kv_heads": kv_heads, "position": position, "rope_base": rope_base}
        attention |= {
            "qk_norm": qk_norm,
            "context": segment_len,
            "shifted": shifted,
            **attention_options(options),
        }
        if window is not None and shifted is not None:
            raise ValueError(f"shifted: expected none with a window, found {shifted}")
        if window is None and attention_backend != "torch":
            raise ValueError(f"attention_backend: expected torch without a window, found {attention_backend}")
        if value_residual and depth < 2:
            raise ValueError(f"value_residual: expected at least 2 layers, found {depth}")

        def mixer(layer: int) -> Attention:
            mixes = value_residual and layer > 0
            if window is None:
                attention_class = ValueResidualAttention if mixes else Attention
                return attention_class(width, heads, **attention)
            window_class = ValueResidualWindow if mixes else WindowAttention
            return window_class(
                width, heads, window=window, sinks=sinks, backend=attention_backend, **attention
            )

        super().__init__(
            vocab_size,
            segment_len,
            width,
            map(mixer, range(depth)),
            mlp_width=mlp_width,
            positions=segment_len if position_kind(position) == "learned" else 0,
            **options,
        )
        self.stack.shares_values = value_residual
        windows = (part for part in self.modules() if isinstance(part, WindowAttention))
        self.reach = segment_len if window is None else stack_reach(windows)
        self.remembers = self.learns_through_memory = window is not None and window + sinks > 1
        if window is not None:
            self.cuts_anywhere, self.parallel = True, "any_length"
