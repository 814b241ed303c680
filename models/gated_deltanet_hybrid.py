"""Gated DeltaNet with sliding-window attention: the hybrids of its paper, H1 and H2.

Yang et al. 2024, arXiv:2412.06464, section 3.4; the mixer: memory/fast_weights/delta_mixer.py.

    x += mixer(norm(x))        x += swiglu(norm(x))        logits = E norm(x)
    mixers: Gated DeltaNet, window attention (H1); or Mamba-2, Gated DeltaNet, window attention (H2)

Carried from segment to segment: every Gated DeltaNet's and Mamba-2's state, and the last `window - 1` keys
and values of attention.
Differs from the paper: initial weights are those of all models here, except for A, dt and the convolutions.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, Unpack

from zoo.memory.attention.position_options import Position
from zoo.memory.attention.sliding_window import Backend as AttentionBackend
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.memory.fast_weights.delta_mixer import DeltaMixer
from zoo.memory.fast_weights.recurrence import Backend
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer
from zoo.models.decoder import BaseOptions, attention_options
from zoo.models.hybrid import Hybrid, Mixers

LayerType = Literal["mamba2", "gated_deltanet", "attention"]


class GatedDeltaNetHybrid(Hybrid):
    """`window` is the number of tokens that attention sees, the current one included.  Mamba-2, where a
    pattern has it, is of width 2 D in heads of `head_dim` with `state_size` states."""

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        window: int,
        head_dim: int,
        value_dim: int,
        pattern: Sequence[LayerType] = ("gated_deltanet", "attention"),
        kv_heads: int | None = None,
        conv_size: int = 4,
        negative_eigenvalues: bool = False,
        steps: int = 1,
        state_size: int = 64,
        chunk_size: int = 32,
        backend: Backend = "torch",
        position: Position = "rope",
        rope_base: float = 10000.0,
        qk_norm: bool = False,
        attention_backend: AttentionBackend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        if "mamba2" in pattern and 2 * width % head_dim:
            raise ValueError(f"2 width {2 * width} is not a multiple of head_dim {head_dim}")
        delta = partial(DeltaMixer, width, heads, rule="gated", head_dim=head_dim, value_dim=value_dim)
        delta = partial(delta, conv_size=conv_size, negative_eigenvalues=negative_eigenvalues, steps=steps)
        mamba2 = partial(Mamba2Mixer, width, 2 * width // head_dim, head_dim=head_dim, state_size=state_size)
        attention = partial(WindowAttention, width, heads, window=window, kv_heads=kv_heads)
        attention = partial(attention, position=position, rope_base=rope_base, backend=attention_backend)
        attention = partial(attention, qk_norm=qk_norm)
        mixers: Mixers = {
            "gated_deltanet": partial(delta, chunk_size=chunk_size, backend=backend),
            "mamba2": partial(mamba2, conv_size=conv_size),
            "attention": partial(attention, **attention_options(options)),
        }
        super().__init__(
            vocab_size, segment_len, depth, width, pattern, mixers, mlp_width=mlp_width, **options
        )
