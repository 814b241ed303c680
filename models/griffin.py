"""Griffin: gated linear recurrences mixed with local attention.

De et al. 2024, arXiv:2402.19427; RecurrentGemma: Botev et al. 2024, arXiv:2404.07839.

    x += temporal(norm(x))        x += W_d (gelu(W_g norm(x)) * W_u norm(x))        logits = E norm(x)
    temporal: recurrent block, recurrent block, local attention, repeated

Recurrent block: memory/state_space/griffin_block.py.  Local attention: one head of keys and values, rotary
positions on the first half of a head.
Carried from segment to segment: the state of every recurrent block, and the attention's last keys and values.
Differs from the paper, as RecurrentGemma does: the recurrence is as wide as the model, embeddings are scaled
by sqrt(D), and logits may be capped, c tanh(logits / c).
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, Unpack

from jaxtyping import Float, Int
from torch import Tensor

from zoo.memory.attention.position_options import Position
from zoo.memory.attention.sliding_window import Backend as AttentionBackend
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.memory.state_space.griffin_block import RecurrentBlock
from zoo.models.decoder import BaseOptions, attention_options
from zoo.models.hybrid import Hybrid, Mixers
from zoo.state import State


class Griffin(Hybrid):
    """`window` is the number of tokens that attention sees, the current one included; `heads` is also the
    number of blocks in the recurrence's gates."""

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        window: int,
        pattern: Sequence[Literal["recurrent", "attention"]] = ("recurrent", "recurrent", "attention"),
        lru_width: int | None = None,
        conv_size: int = 4,
        scaled_embeddings: bool = True,
        position: Position = "rope",
        qk_norm: bool = False,
        attention_backend: AttentionBackend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        attention = partial(WindowAttention, width, heads, window=window, kv_heads=1, out_bias=True)
        attention = partial(attention, position=position, qk_norm=qk_norm, backend=attention_backend)
        mixers: Mixers = {
            "recurrent": partial(RecurrentBlock, width, lru_width or width, heads, conv_size=conv_size),
            "attention": partial(attention, rotated=width // heads // 2, **attention_options(options)),
        }
        super().__init__(
            vocab_size,
            segment_len,
            depth,
            width,
            pattern,
            mixers,
            mlp_width=mlp_width,
            activation="geglu_tanh",
            bias=True,
            **options,
        )
        self.scale = width**0.5 if scaled_embeddings else 1.0

    def hidden_segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        return self.body(self.scale * self.embed(tokens), state)
