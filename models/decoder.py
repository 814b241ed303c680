"""The decoder: token embedding, a stack of blocks around the given mixers, the output projection."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.memory.attention.positions import Positions
from zoo.memory.mixer import Mixer
from zoo.models.blocks import (
    Activation,
    Block,
    FeedForward,
    Norm,
    Stack,
    check_output_options,
    init_weights,
    make_norm,
    output_projection,
    soft_capped,
)
from zoo.module import SequenceModule
from zoo.state import State


class BaseOptions(TypedDict, total=False):
    """Options that every decoder passes through to `Decoder`; their defaults are those of `Decoder`."""

    norm: Norm
    tied: bool
    dropout: float
    soft_cap: float | None
    z_loss: float


class DecoderOptions(BaseOptions, total=False):
    """Options of decoders that let the user choose the feed-forward; `bias` also applies to the attention."""

    activation: Activation
    bias: bool


def attention_options(options: Mapping[str, object]) -> dict[str, Any]:
    """The subset of a decoder's options that its attention layers take as well."""
    shared = ("kv_heads", "position", "rope_base", "qk_norm", "bias", "dropout")
    return {name: options[name] for name in shared if name in options}


class Decoder(SequenceModule):
    """Token embedding, a block with a feed-forward around each mixer, a last norm, the output projection.

    `mixers` may be a generator: mixers and feed-forwards are then created, and draw initial weights, in
    alternation.  With `mlp_width` 0 there are no feed-forwards.  `positions` > 0 adds a learned table of that
    many positions, counted from the start of each call of `body`.  `wrap` is applied to each block before it
    enters the stack.  `soft_cap` c makes logits c tanh(logits / c); `z_loss` is SequenceModule's.
    """

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        width: int,
        mixers: Iterable[Mixer],
        *,
        mlp_width: int,
        positions: int = 0,
        wrap: Callable[[Block], Mixer] = lambda block: block,
        norm: Norm = "rms",
        activation: Activation = "swiglu",
        bias: bool = False,
        tied: bool = True,
        dropout: float = 0.0,
        soft_cap: float | None = None,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        check_output_options(soft_cap, z_loss)
        self.soft_cap, self.z_loss = soft_cap, z_loss

        def block(mixer: Mixer) -> Mixer:
            mlp = FeedForward(width, mlp_width, activation, bias, dropout) if mlp_width else None
            return wrap(Block(mixer, mlp, width, norm, dropout))

        self.vocab_size, self.segment_len, self.width = vocab_size, segment_len, width
        self.embed = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(positions, width)) if positions else None
        self.dropout = nn.Dropout(dropout)
        self.stack = Stack(map(block, mixers))
        self.norm = make_norm(norm, width)
        self.head = output_projection(self.embed, tied)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise by `blocks.init_weights`, and learned positions like embeddings."""
        init_weights(self, len(self.stack))
        if self.positions is not None:
            nn.init.normal_(self.positions, std=self.width**-0.5)

    def init_state(self, rows: int) -> State:
        return self.stack.init_state(rows)

    def body(
        self, x: Float[Tensor, "rows time width"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        """From embeddings to the input of the output projection."""
        if self.positions is not None:
            x = x + self.positions[: x.shape[1]]
        x, state = self.stack(self.dropout(x), state)
        return self.norm(x), state

    def hidden_segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        return self.body(self.embed(tokens), state)

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        return soft_capped(self.head(hidden), self.soft_cap)

    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        x, state = self.hidden_segment(tokens, state)
        return self.logits(x), state

    def init_decode_cache(self, state: State) -> Any:
        """(number of tokens in the cache, the blocks' caches)."""
        return 0, self.stack.init_decode_cache(state)

    def set_progress(self, step: int, steps: int) -> None:
        """Positions that are drawn in training are drawn for this step."""
        for part in self.modules():
            if isinstance(part, Positions):
                part.step = step

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        x, cache = self.decode_body(self.embed(tokens), cache)
        return self.logits(x), cache

    def decode_body(
        self, x: Float[Tensor, "rows time width"], cache: Any
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        """`body` for the tokens after those in the cache."""
        length, blocks = cache
        if self.positions is not None:
            x = x + self.positions[length : length + x.shape[1]]
        x, blocks = self.stack.decode(self.dropout(x), blocks)
        return self.norm(x), (length + x.shape[1], blocks)
