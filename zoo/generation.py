"""Generation: a text continued token by token, in memory that doesn't grow with its length."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.host import known_lengths
from zoo.interface import StatefulLM, stateful
from zoo.state import State

MAX_TOKENS_PER_CALL = 4096
"""A longer prompt is read in several calls, which bounds memory; a call has at least one segment."""

Pick = Callable[[Float[Tensor, "rows vocab"]], Int[Tensor, " rows"]]


def greedy(logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
    """The most probable token."""
    return logits.argmax(-1)


def sampler(
    temperature: int | float = 1.0,
    top_p: int | float = 1.0,
    generator: torch.Generator | None = None,
    top_k: int | None = None,
) -> Pick:
    """Samples from softmax(logits / temperature), restricted to the `top_k` most probable tokens and among
    these to the fewest whose probabilities sum to `top_p` (nucleus sampling, Holtzman et al. 2020,
    arXiv:1904.09751); a temperature of 0 is `greedy`.

    Raises ValueError for numbers out of range, and for `top_k` or `top_p` beside a temperature of 0.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, not {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if temperature == 0:
        if top_k is not None or top_p != 1:
            name = "top_p" if top_k is None else "top_k"
            raise ValueError(f"{name} has no effect at temperature 0, which takes the most probable token")
        return greedy

    def pick(logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # a tiny temperature would make positive ones infinite
        logits = logits - logits.amax(-1, keepdim=True)
        probs, tokens = (logits / max(temperature, 1e-30)).softmax(-1).sort(-1, descending=True)
        if top_k is not None:
            probs, tokens = probs[:, :top_k], tokens[:, :top_k]
            probs = probs / probs.sum(-1, keepdim=True)
        mass_before = probs.cumsum(-1) - probs  # of all more probable tokens
        probs = probs.masked_fill(mass_before >= top_p, 0.0)
        rank = torch.multinomial(probs, 1, generator=generator)
        return tokens.gather(-1, rank)[:, 0]

    return pick


class Reader:
    """Reads a text in pieces of any length and predicts the token after each.

    A model that `cuts_anywhere` continues from its state.  Any other reads its open segment again from the
    state before it, which is the definition of continuing it.  If the model `decodes`, it uses a cache
    instead and reads the segment again only once, when it is complete, for the state after it.
    """

    def __init__(self, model: StatefulLM, rows: int) -> None:
        self.model = model
        self.state: State = model.init_state(rows)  # after the last closed segment
        device = next(model.parameters()).device
        self.open_tokens = torch.empty(rows, 0, dtype=torch.long, device=device)  # tokens read since then
        self.cache: Any = None  # of the open segment, if the model `decodes`
        self.length = 0  # tokens of every row that the state has read

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "rows time"]) -> Float[Tensor, "rows vocab"]:
        """Logits for the token after the last one read, without gradient."""
        segment_len = self.model.segment_len
        max_tokens = max(1, MAX_TOKENS_PER_CALL // segment_len) * segment_len
        if self.model.cuts_anywhere:
            for piece in tokens.split(max_tokens, dim=1):
                logits = self._read_closed(piece)
            return logits[:, -1]
        new = tokens.shape[1]
        tokens = torch.cat([self.open_tokens, tokens], dim=1)
        end = tokens.shape[1] // segment_len * segment_len
        for piece in tokens[:, :end].split(max_tokens, dim=1) if end else ():
            logits = self._read_closed(piece)
        self.open_tokens = tokens[:, end:]
        if self.open_tokens.shape[1]:
            logits = self._read_open(min(new, self.open_tokens.shape[1]))
        return logits[:, -1]

    def _known(self, time: int) -> AbstractContextManager[None]:
        return known_lengths((self.length,) * len(self.open_tokens), time)

    def _read_closed(self, tokens: Int[Tensor, "rows time"]) -> Float[Tensor, "rows time vocab"]:
        """Logits of tokens after the state, which then has read them."""
        with self._known(tokens.shape[1]):
            logits, self.state = self.model(tokens, self.state)
        self.length, self.cache = self.length + tokens.shape[1], None
        return logits

    def _read_open(self, new: int) -> Float[Tensor, "rows time vocab"]:
        """Logits of the open segment's last `new` tokens, by the cache, or of all its tokens without one."""
        if self.cache is None and self.model.decodes:
            with self._known(0):
                self.cache = self.model.init_decode_cache(self.state)
        with self._known(self.open_tokens.shape[1]):
            if self.cache is None:
                return self.model(self.open_tokens, self.state)[0]
            logits, self.cache = self.model.decode(self.open_tokens[:, -new:], self.cache)
        return logits


def stream_tokens(
    model: StatefulLM, prompt: Int[Tensor, "rows time"], pick: Pick = greedy
) -> Iterator[Int[Tensor, " rows"]]:
    """Endless iterator over the tokens after the prompt; `pick` selects each from its logits."""
    reader = Reader(model, len(prompt))
    tokens = prompt
    while True:
        token = pick(reader.read(tokens))
        yield token
        tokens = token[:, None]


def stream_ragged(
    model: StatefulLM, prompts: Sequence[Tensor], pick: Pick = greedy
) -> Iterator[tuple[Int[Tensor, " rows"], list[bool]]]:
    """Endless iterator over the tokens of all rows after the shortest prompt, and which of them were picked.

    A prompt is one row of tokens, (time,).  Rows are read side by side, so a row whose prompt is longer takes
    its next token from there: no row is padded, and each has the logits that it has alone, as far as sums of
    another number of rows do.
    """
    reader = Reader(model, len(prompts))
    position = min(map(len, prompts))
    tokens = torch.stack([prompt[:position] for prompt in prompts])
    while True:
        token = pick(reader.read(tokens))
        is_picked = [position >= len(prompt) for prompt in prompts]
        if not all(is_picked):
            given = [prompt[min(position, len(prompt) - 1)] for prompt in prompts]
            mask = torch.tensor(is_picked, device=token.device)
            token = torch.where(mask, token, torch.stack(given))
        yield token, is_picked
        tokens, position = token[:, None], position + 1


def generate(
    model: nn.Module,
    tokens: Int[Tensor, "rows time"],
    length: int,
    *,
    temperature: int | float = 0.0,
    top_p: int | float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "rows length"]:
    """The `length` tokens with which the model continues each row of `tokens`, read in eval mode.

    `model` is a SequenceModule, or any module that the laws take.  At a temperature of 0 every token is the
    most probable one; above, it is sampled (see `sampler`), with `generator` for its random numbers.  Raises
    ValueError for tokens that aren't (rows, time) with at least one token, for one outside the vocabulary,
    for a length below 1, and as `sampler` does.
    """
    if tokens.ndim != 2 or not tokens.numel():
        raise ValueError(f"tokens: expected shape (rows, time), found {tuple(tokens.shape)}")
    if length < 1:
        raise ValueError(f"length: expected at least 1, found {length}")
    reader = stateful(model)
    low, high = (int(bound) for bound in tokens.aminmax())
    if low < 0 or high >= reader.vocab_size:
        raise ValueError(f"tokens: expected 0 .. {reader.vocab_size - 1}, found {low if low < 0 else high}")
    prompt = tokens.to(next(model.parameters()).device)
    pick = sampler(temperature, top_p, generator, top_k)
    modes = [(part, part.training) for part in model.modules()]
    was_training = model.training
    model.eval()
    try:
        return torch.stack(list(itertools.islice(stream_tokens(reader, prompt, pick), length)), dim=1)
    finally:
        model.train(was_training)
        for part, training in modes:  # some may have been in the other mode, such as frozen ones
            part.training = training
