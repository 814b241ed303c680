"""A run's symbols as text, and text as its symbols: bytes, words of its tokenizer, or numbers."""

import codecs
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.train.runs.tokens import Tokenizer, run_tokenizer
from zoo.train.tasks.lm import END, VOCAB_SIZE

Pieces = Iterator[tuple[int, str]]
"""A text piece by piece, each with the number of symbols so far."""


class Codec(NamedTuple):
    vocab_size: int
    """Of the symbols alone: a model may round its vocabulary up."""
    end: int | None
    """The symbol that ends a document; None where none does."""
    is_text: bool
    """False for symbols that are written as numbers."""
    encode: Callable[[bytes], list[int]]
    """The symbols of a prompt, after the one that opens a document.  Raises UserError for a text that has no
    symbols, or others."""
    decode: Callable[[list[int]], str]
    """The text of symbols, `end` not among them; numbers with a space on both sides of each."""
    pieces: Callable[[Iterator[int]], Pieces]
    """The text of each symbol up to the first `end`; "" until a character is complete."""


def run_codec(cfg: DictConfig, run_dir: Path, command: str) -> Codec:
    """Of the run's task; `command` names itself in errors."""
    vocab_size = int(cfg.task.vocab_size)
    tokenizer = run_tokenizer(cfg, run_dir)
    if tokenizer is not None:
        start, end = cfg.task.get("start"), cfg.task.get("end")
        encode = partial(_encode_words, tokenizer=tokenizer, start=start, command=command)
        pieces = partial(_word_pieces, tokenizer=tokenizer, end=end)
        return Codec(tokenizer.vocab_size, end, True, encode, tokenizer.decode, pieces)
    if vocab_size == VOCAB_SIZE:
        return Codec(vocab_size, END, True, _encode_bytes, _decode_bytes, _byte_pieces)
    encode = partial(_parse_numbers, vocab_size=vocab_size, command=command)
    return Codec(vocab_size, None, False, encode, _decode_numbers, _number_pieces)


# -- bytes


def _encode_bytes(text: bytes) -> list[int]:
    """As in training, where every document opens with END."""
    return [END, *text]


def _decode_bytes(symbols: list[int]) -> str:
    return bytes(symbols).decode("utf-8", "replace")


def _byte_pieces(symbols: Iterator[int]) -> Pieces:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    count = 0
    for count, symbol in enumerate(symbols, start=1):
        if symbol == END:
            break
        yield count, decoder.decode(bytes([symbol]))
    yield count, decoder.decode(b"", final=True)


# -- words of a tokenizer


def _encode_words(text: bytes, tokenizer: Tokenizer, start: int | None, command: str) -> list[int]:
    symbols = [*([] if start is None else [int(start)]), *tokenizer.encode(text).tolist()]
    if not symbols:
        raise UserError(f"{command}: the run's tokenizer has no start symbol: expected a prompt, found none")
    return symbols


def _word_pieces(symbols: Iterator[int], tokenizer: Tokenizer, end: int | None) -> Pieces:
    return enumerate(tokenizer.decoded(itertools.takewhile(lambda symbol: symbol != end, symbols)), start=1)


# -- numbers


def _parse_numbers(text: bytes, vocab_size: int, command: str) -> list[int]:
    words = text.decode("utf-8", "replace").replace(",", " ").split()
    if not words:
        raise UserError(
            f"{command}: this run's tokens are numbers from 0 to {vocab_size - 1}, found no prompt; "
            'expected one such as prompt="0 1"'
        )
    for word in words:
        if not word.isdecimal() or int(word) >= vocab_size:
            raise UserError(
                f"{command}: prompt: expected numbers of tokens from 0 to {vocab_size - 1}, found {word!r}"
            )
    return [int(word) for word in words]


def _decode_numbers(symbols: list[int]) -> str:
    return " " + "".join(f"{symbol} " for symbol in symbols)


def _number_pieces(symbols: Iterator[int]) -> Pieces:
    return ((count, f"{symbol} ") for count, symbol in enumerate(symbols, start=1))
