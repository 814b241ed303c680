"""Corpora as token ids on disk, memory-mapped: what `zoo prepare` writes and the task `token_lm` reads.

tokens.json            version, corpus, digest, vocab_size, start, end, tokenizer (its hash)
tokenizer.json         the tokenizer
token_bytes.npy        bytes of every id
SPLIT.npy              ids of all documents of train, val and test, one after the other, without start and end
SPLIT.documents.npy    (tokens, bytes) of every document
SPLIT.txt              the text: bytes and words are counted in it
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from zoo.errors import UserError
from zoo.train.corpora.cache import cache_folder
from zoo.train.corpora.catalog import Corpus, MissingSplitError
from zoo.train.corpora.documents import Documents
from zoo.train.corpora.tokenizer import FILE, Tokenizer, read_json_file

INDEX, VERSION = "tokens.json", 1
SPLITS = ("train", "val", "test")
OnSplit = Callable[[str, int, int, int], None]
"""Called with a split's name, documents, tokens and bytes when it is written."""


class TokenSplit(NamedTuple):
    """The documents of a split, one after the other."""

    ids: Integer[np.ndarray, " tokens"]
    counts: Int64[np.ndarray, "documents 2"]  # tokens, bytes
    text: Path


class TokenCorpus(NamedTuple):
    """A folder of token ids."""

    folder: Path
    name: str
    digest: str
    vocab_size: int
    start: int | None
    end: int | None
    tokenizer: str
    """The tokenizer's hash."""

    def split(self, name: str) -> TokenSplit:
        """The documents of train, val or test.  Raises UserError if there are none."""
        paths = [self.folder / f"{name}{end}" for end in (".npy", ".documents.npy", ".txt")]
        if not paths[0].is_file():
            existing = [split for split in SPLITS if (self.folder / f"{split}.npy").is_file()]
            raise MissingSplitError(self.folder, name, existing)
        try:
            ids, counts = np.load(paths[0], mmap_mode="r"), np.load(paths[1])
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{paths[0]} is damaged: expected the ids of {INDEX}: {error}") from error
        sums = counts.sum(axis=0).tolist() if counts.ndim == 2 and counts.shape[1] == 2 else None
        if ids.ndim != 1 or sums != [len(ids), paths[2].stat().st_size if paths[2].is_file() else -1]:
            raise UserError(f"{paths[0]} is damaged: its tokens or texts aren't those of {paths[1].name}")
        return TokenSplit(ids.view(np.ndarray), counts, paths[2])

    def token_bytes(self) -> Int64[np.ndarray, " ids"]:
        sizes: Int64[np.ndarray, " ids"] = np.load(self.folder / "token_bytes.npy")
        return sizes


def is_token_folder(path: str | Path) -> bool:
    return bool(str(path)) and (Path(path).expanduser() / INDEX).is_file()


def open_tokens(path: str | Path) -> TokenCorpus:
    """A folder that `zoo prepare` wrote.  Raises UserError for any other."""
    folder = Path(path).expanduser()
    if not is_token_folder(folder):
        raise UserError(f"expected a folder that zoo prepare wrote, with {INDEX}, found none at {folder}")
    index = read_json_file(folder / INDEX)
    if index.get("version") != VERSION:
        raise UserError(f"{folder / INDEX}: expected version {VERSION}, found {index.get('version')!r}")
    try:
        fields = {name: index[name] for name in TokenCorpus._fields if name != "folder"}
    except KeyError as error:
        raise UserError(f"{folder / INDEX}: expected {error.args[0]}, found none") from error
    return TokenCorpus(folder, **fields)


def write_tokens(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    start: int | None,
    end: int | None,
    on_split: OnSplit = lambda split, documents, tokens, size: None,
) -> dict[str, Any]:
    """Write all documents of a corpus as ids; returns the contents of tokens.json."""
    size = tokenizer.vocab_size
    for name, token in (("start", start), ("end", end)):
        if token is not None and not 0 <= token < size:
            raise UserError(f"{name}: expected a token from 0 to {size - 1}, found {token}")
    dtype = np.dtype(np.uint16 if size <= 1 << 16 else np.uint32)
    for split, documents in corpus.parts.items():
        tokens = _write_split(folder, split, documents, tokenizer, dtype)
        on_split(split, len(documents), tokens, int(documents.lengths.sum()))
    sizes = tokenizer.token_bytes()
    sizes[[token for token in (start, end) if token is not None]] = 0
    np.save(folder / "token_bytes.npy", sizes)
    shutil.copyfile(tokenizer.path, folder / FILE)
    index = {
        "version": VERSION,
        "name": corpus.name,
        "digest": corpus.digest,
        "vocab_size": size,
        "start": start,
        "end": end,
        "tokenizer": tokenizer.digest,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index


def _write_split(
    folder: Path, split: str, documents: Documents, tokenizer: Tokenizer, dtype: np.dtype[Any]
) -> int:
    """Returns the number of tokens."""
    counts = np.zeros((len(documents), 2), np.int64)
    unsized = folder / f"{split}.ids"
    with unsized.open("wb") as ids_file, (folder / f"{split}.txt").open("wb") as text_file:
        for document, length in enumerate(documents.lengths.tolist()):
            text = documents.bytes_of(document, 0, length).tobytes()
            ids = tokenizer.encode(text)
            counts[document] = len(ids), length
            ids_file.write(ids.astype(dtype).tobytes())
            text_file.write(text)
    if not counts[:, 0].sum():
        raise UserError(f"tokenizer: expected tokens in the {split} split, found none")
    np.save(folder / f"{split}.npy", np.memmap(unsized, dtype, "r"))
    unsized.unlink()
    np.save(folder / f"{split}.documents.npy", counts)
    return int(counts[:, 0].sum())


def cached_tokens(corpus: Corpus, tokenizer: Tokenizer, start: int | None, end: int | None) -> TokenCorpus:
    """The corpus as ids, written to the cache when it is first read."""
    identity = f"{VERSION} {corpus.name} {corpus.digest} {tokenizer.digest} {start} {end}"
    key = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    folder = cache_folder() / f"{key}.tokens"
    if not is_token_folder(folder):
        part = cache_folder() / f"{key}.{secrets.token_hex(4)}.tokens.part"
        try:
            part.mkdir(parents=True)
            write_tokens(part, corpus, tokenizer, start, end)
            if not is_token_folder(folder):
                os.replace(part, folder)
        except OSError as error:
            if not is_token_folder(folder):  # else another process was faster
                raise UserError(
                    f"cannot write the cache in {cache_folder()} (set ZOO_CACHE): {error.strerror or error}"
                ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return open_tokens(folder)
