"""The decoder: token embedding, a stack of blocks, the output projection; and how it reads a long text."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.memory.mixer import Mixer
from zoo.models.blocks import Norm, Stack, init_weights, make_norm
from zoo.module import SequenceModule
from zoo.state import State


class Decoder(SequenceModule):
    """Token embedding, a stack of blocks, a last norm, the output projection (tied by default).

    `positions` > 0 adds a learned table of that many positions, counted from the start of each call of
    `body`.
    """

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        width: int,
        blocks: Iterable[Mixer],
        *,
        norm: Norm = "rms",
        positions: int = 0,
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.vocab_size, self.segment_len, self.width = vocab_size, segment_len, width
        self.embed = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(positions, width)) if positions else None
        self.dropout = nn.Dropout(dropout)
        self.stack = Stack(blocks)
        self.norm = make_norm(norm, width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.init_weights()

    def init_weights(self) -> None:
        """As `init_weights` of this file says; positions like embeddings."""
        init_weights(self, len(self.stack))
        if self.positions is not None:
            nn.init.normal_(self.positions, std=self.width**-0.5)

    def init_state(self, rows: int) -> State:
        return self.stack.init_state(rows)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices decay, but for those that a part names in `undecayed`; the rest doesn't."""
        spared = {
            id(getattr(part, name)) for part in self.modules() for name in getattr(part, "undecayed", ())
        }
        matrices, rest = super().parameter_groups()
        matrices["params"], kept = (
            [weight for weight in matrices["params"] if (id(weight) in spared) == out]
            for out in (False, True)
        )
        return [matrices, {**rest, "params": rest["params"] + kept}]

    def body(
        self, x: Float[Tensor, "rows time width"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        """From embeddings to what the output projection reads."""
        if self.positions is not None:
            x = x + self.positions[: x.shape[1]]
        x, state = self.stack(self.dropout(x), state)
        return self.norm(x), state

    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        x, state = self.body(self.embed(tokens), state)
        return self.head(x), state

    def init_decode_cache(self, state: State) -> Any:
        """The number of positions that `decode_body` has read, and the blocks' caches."""
        return 0, self.stack.init_decode_cache(state)

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        x, cache = self.decode_body(self.embed(tokens), cache)
        return self.head(x), cache

    def decode_body(
        self, x: Float[Tensor, "rows time width"], cache: Any
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        """`body`, behind the positions that the cache knows."""
        read, blocks = cache
        if self.positions is not None:
            x = x + self.positions[read : read + x.shape[1]]
        x, blocks = self.stack.decode(self.dropout(x), blocks)
        return self.norm(x), (read + x.shape[1], blocks)
