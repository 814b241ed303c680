"""Tokenizers of Hugging Face: a tokenizer.json, read by the optional package `tokenizers`.

Texts go in as bytes and come out as ids.  Nothing is added to them: which symbols open and close a document
is said beside the file (`special_ids`).
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from zoo.errors import UserError, first_line

FILE = "tokenizer.json"
PIECE = 1 << 22  # characters of a text that are encoded together
BLANK = "\u2581"  # a space in the pieces of SentencePiece
TRIALS = ("the keeper reads", " a long text", " and writes  what", " remains 12 times.\nThen", " she rests")


def read_json_file(path: Path) -> dict[str, Any]:
    """A json object.  Raises UserError if the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"expected an object in {path}, found {type(content).__name__}")
    return content


def tokenizer_file(path: Path) -> Path:
    """The tokenizer.json that a file or a folder is or has.  Raises UserError if there is none."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"tokenizer: expected a {FILE} or a folder with one, found none at {path}")
    return file


def count_ids(file: Path) -> int:
    """One more than the largest id of a tokenizer.json; needs no package."""
    content = read_json_file(file)
    try:
        vocab, added = content["model"]["vocab"], content.get("added_tokens") or []
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        return 1 + max([*ids, *(token["id"] for token in added)])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"expected the json of a tokenizer with a vocabulary in {file}") from error


def special_ids(file: Path) -> tuple[int | None, int | None]:
    """The ids that open and close a document, as config.json or tokenizer_config.json beside the tokenizer
    have them; None for what neither has.  A document without a start symbol of its own begins with the end
    symbol."""
    ids: dict[str, int | None] = {}
    texts = {token["content"]: token["id"] for token in read_json_file(file).get("added_tokens") or []}
    for name, key in (("start", "bos_token"), ("end", "eos_token")):
        ids[name] = None
        for beside, field in (("config.json", f"{key}_id"), ("tokenizer_config.json", key)):
            path = file.parent / beside
            value = read_json_file(path).get(field) if path.is_file() else None
            value = value[0] if isinstance(value, list) and value else value
            value = value.get("content") if isinstance(value, dict) else value
            value = texts.get(value) if isinstance(value, str) else value
            if type(value) is int:
                ids[name] = value
                break
    start = ids["start"] if ids["start"] is not None else ids["end"]
    return start, ids["end"]


class Tokenizer:
    """A tokenizer.json.  Raises UserError for a file that isn't one, and without the package."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import tokenizers
        except ImportError as error:
            raise UserError(
                f"expected the package tokenizers, which reads {path}: pip install tokenizers"
            ) from error
        if not path.is_file():
            raise UserError(f"expected a {FILE}, found none at {path}")
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises Exception itself
            raise UserError(
                f"expected a tokenizer in {path}, found something else: {first_line(error)}"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._stream: Any = tokenizers.decoders.DecodeStream

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the file."""
        return hashlib.blake2b(self.path.read_bytes(), digest_size=8).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, text: bytes) -> Int64[np.ndarray, " tokens"]:
        """The ids of a text; bytes that aren't UTF-8 are read as U+FFFD."""
        pieces = self._pieces(text.decode("utf-8", "replace"))
        return np.concatenate([np.zeros(0, np.int64), *(self._ids(piece) for piece in pieces)])

    def _ids(self, text: str) -> Int64[np.ndarray, " tokens"]:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    @cached_property
    def cuts_before_words(self) -> bool:
        """Whether a text may be cut before the space of a word: not where every text is given a space."""
        parts = np.concatenate([self._ids(part) for part in TRIALS])
        return np.array_equal(self._ids("".join(TRIALS)), parts)

    def _pieces(self, text: str) -> Iterator[str]:
        """A long text in parts, if that gives the same ids: an encoding takes hundreds of bytes per token."""
        start = 0
        while self.cuts_before_words and len(text) - start > PIECE:
            end = start + PIECE
            while end < len(text) and not _is_before_word(text, end):
                end += 1
            yield text[start:end]
            start = end
        yield text[start:]

    def token_bytes(self) -> Int64[np.ndarray, " ids"]:
        """How many bytes of a text every id stands for."""
        content = read_json_file(self.path)
        byte_level = "ByteLevel" in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
        sizes = np.zeros(self.vocab_size, np.int64)
        added = {token["content"] for token in content.get("added_tokens") or []}
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if byte_level and token not in added:
                sizes[index] = len(token)  # a character for every byte
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                sizes[index] = 1
            else:
                sizes[index] = len(token.replace(BLANK, " ").encode("utf-8", "surrogatepass"))
        return sizes

    def decode(self, ids: list[int]) -> str:
        """The text of ids; what is no whole character is written as U+FFFD."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def decoded(self, ids: Iterator[int]) -> Iterator[str]:
        """The text of each id, "" until its character is complete."""
        stream = self._stream(skip_special_tokens=False)
        for index in ids:
            try:
                yield stream.step(self._tokenizer, index) or ""
            except Exception as error:  # the package raises Exception itself
                raise UserError(f"{self.path} can't write token {index}: {first_line(error)}") from error


def _is_before_word(text: str, index: int) -> bool:
    return text[index] == " " and text[index - 1].isalpha() and text[index + 1 : index + 2].isalpha()
