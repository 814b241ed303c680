"""Several texts generated side by side: of many prompts, or several of each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from zoo.generation import Pick, sampler, stream_ragged
from zoo.module import SequenceModule
from zoo.train.evaluation.codec import run_codec
from zoo.train.evaluation.stop_words import first_stop, spaced
from zoo.train.evaluation.text_generation import GenerateOptions, restrict_vocab
from zoo.train.runs.load import load_trained, silence_lightning
from zoo.train.runs.precision import ForwardContext, make_precision, precision_name
from zoo.train.runs.symbols import check_run_symbols

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class GeneratedText:
    prompt: str
    text: str
    tokens: int
    """Generated ones, with those of a stop word or of the document's end."""
    ended_by: Literal["tokens", "stop", "document"]


class Row:
    """One text while it is generated.  `end` is the symbol that ends a document, None without one."""

    def __init__(self, limit: int, stops: Sequence[str], decode: Decode, end: int | None) -> None:
        self.limit, self.stops, self.decode, self.end = limit, stops, decode, end
        self.tokens: list[int] = []
        self.ended_by: Literal["tokens", "stop", "document"] | None = "tokens" if limit == 0 else None
        self.text = ""

    def add(self, token: int) -> None:
        if self.ended_by is not None:
            return
        self.tokens.append(token)
        self.text = self.decode([token for token in self.tokens if token != self.end])
        if (end := first_stop(self.text, self.stops)) is not None:
            self.text, self.ended_by = self.text[:end], "stop"
        elif token == self.end:
            self.ended_by = "document"
        elif len(self.tokens) == self.limit:
            self.ended_by = "tokens"


def generate_texts(
    options: GenerateOptions, prompts: Sequence[bytes], samples: int = 1, batch_size: int = 16
) -> Iterator[GeneratedText]:
    """`samples` texts of each prompt in order, `batch_size` at a time.

    The draws of a row depend on the rows beside it: the same options give the same texts.  Raises UserError
    as `generate_text` does.
    """
    silence_lightning()
    cfg, model, _ = load_trained(options.run, options.checkpoint, options.overrides)
    check_run_symbols(cfg, model, "generate")
    codec = run_codec(cfg, options.run, "generate")
    context = make_precision(precision_name(cfg), model.device).forward_context
    rng = torch.Generator(model.device).manual_seed(options.seed)
    pick = restrict_vocab(codec.vocab_size, sampler(options.temperature, options.top_p, rng, options.top_k))
    stops = options.stop if codec.is_text else [spaced(stop) for stop in options.stop]
    encoded = [codec.encode(text) for text in prompts]
    queue = [pair for pair in zip(prompts, encoded, strict=True) for _ in range(samples)]
    for start in range(0, len(queue), batch_size):
        batch = queue[start : start + batch_size]
        rows = [Row(options.tokens, stops, codec.decode, codec.end) for _ in batch]
        generate_rows(model, [tokens for _, tokens in batch], rows, pick, context)
        for (prompt, _), row in zip(batch, rows, strict=True):
            assert row.ended_by is not None
            text = row.text if codec.is_text else row.text.strip()
            yield GeneratedText(prompt.decode("utf-8", "replace"), text, len(row.tokens), row.ended_by)


def generate_rows(
    model: SequenceModule, prompts: list[list[int]], rows: list[Row], pick: Pick, context: ForwardContext
) -> None:
    """Fill the rows; those that have ended are read on, unseen, until the last has."""
    stream = stream_ragged(model, [torch.tensor(prompt, device=model.device) for prompt in prompts], pick)
    while any(row.ended_by is None for row in rows):
        with context():
            tokens, is_picked = next(stream)
        for row, token, picked in zip(rows, tokens.tolist(), is_picked, strict=True):
            if picked:
                row.add(token)
