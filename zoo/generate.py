"""Continuing a text token by token, in memory that doesn't grow with it."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.module import SequenceModule
from zoo.state import State


def greedy(logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
    """The most probable token."""
    return logits.argmax(-1)


class Reader:
    """Reads a text piece by piece, pieces of any length, and always knows what comes next.

    A model that can't stop inside a segment reads its open segment again from the state before it, which is
    what going on inside a segment means; one that `cuts_anywhere` just goes on.
    """

    def __init__(self, model: SequenceModule, rows: int) -> None:
        self.model = model
        self.state: State = model.init_state(rows)  # after the last closed segment
        self.open = torch.empty(rows, 0, dtype=torch.long, device=model.device)  # read, but not yet closed

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "rows time"]) -> Float[Tensor, "rows vocab"]:
        """Logits for the token after the last one read, without gradient."""
        tokens = torch.cat([self.open, tokens], dim=1)
        if self.model.cuts_anywhere:
            logits, self.state = self.model(tokens, self.state)
            return logits[:, -1]
        whole = tokens.shape[1] // self.model.segment_len * self.model.segment_len
        if whole:
            logits, self.state = self.model(tokens[:, :whole], self.state)
        self.open = tokens[:, whole:]
        if self.open.shape[1]:
            logits, _ = self.model(self.open, self.state)
        return logits[:, -1]


def generate(
    model: SequenceModule,
    prompt: Int[Tensor, "rows time"],
    pick: Callable[[Float[Tensor, "rows vocab"]], Int[Tensor, " rows"]] = greedy,
) -> Iterator[Int[Tensor, " rows"]]:
    """The tokens after the prompt, one a time and without end; `pick` chooses each from its logits."""
    reader = Reader(model, len(prompt))
    tokens = prompt
    while True:
        chosen = pick(reader.read(tokens))
        yield chosen
        tokens = chosen[:, None]
