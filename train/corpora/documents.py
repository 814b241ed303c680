"""Documents as bytes on disk: extracted from files and archives once, then memory-mapped from a cache."""

import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Sequence
from io import BufferedWriter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from zoo.errors import UserError
from zoo.train.corpora.archives import Peekable, texts_in
from zoo.train.corpora.rows import is_rows, read_rows
from zoo.train.corpora.unread import HEAD, check_format, encoding

FIELD = "text"  # of a row
FIRST_LINE = 1 << 24  # bytes of a first line that are looked at
LOOKAHEAD = 1 << 16  # bytes after it
_BROKEN = (OSError, EOFError, RuntimeError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


class Documents:
    """Consecutive texts in a memory-mapped file: nothing is read before it is needed."""

    def __init__(self, path: Path, spans: Int64[np.ndarray, "documents 2"]) -> None:
        """`spans` holds (first byte, bytes) of every document."""
        self.path = path
        self.spans = spans
        self.lengths: Int64[np.ndarray, " documents"] = np.ascontiguousarray(spans[:, 1])
        """Bytes per document."""
        # A plain view: slices of a np.memmap cost several times as much.
        self._data = np.memmap(path, np.uint8, "r").view(np.ndarray)

    def __reduce__(self) -> tuple[Any, ...]:  # another process maps the file again
        return type(self), (self.path, self.spans)

    def __len__(self) -> int:
        return len(self.lengths)

    def bytes_of(self, document: int, start: int, stop: int) -> UInt8[np.ndarray, " bytes"]:
        """A read-only view of bytes start..stop-1.  Raises IndexError if the document is shorter."""
        first, length = self.spans[document].tolist()
        if not 0 <= start <= stop <= length:
            raise IndexError(f"bytes {start}..{stop} of document {document}, which has {length}")
        return self._data[first + start : first + stop]


class Source(NamedTuple):
    """A file to read, and the name that decides the split of its texts (relative, with /)."""

    name: str
    path: Path


class Gathered(NamedTuple):
    """The texts of the sources: names and (first byte, bytes); those left out: names and reasons."""

    names: list[str]
    spans: list[tuple[int, int]]
    left_out: list[tuple[str, str]]


def digest(content: bytes) -> str:
    """16 hexadecimal digits, the same on every machine."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def files_below(folder: Path, without: Collection[str] = ()) -> list[Source]:
    """Regular files below a folder, sorted by name, without hidden ones and folders named in `without`.

    Links are followed, but no folder is entered twice, so that a loop of links ends.
    Raises UserError for a folder that can't be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    visited: set[tuple[int, int]] = set()
    sources = []
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in without)
        for path in (Path(parent, name) for name in files if not name.startswith(".")):
            if path.is_file():  # neither a broken link nor a pipe, which would block forever
                sources.append(Source(path.relative_to(folder).as_posix(), path))
    return sorted(sources)


def gather(sources: Sequence[Source], out: BufferedWriter, field: str = FIELD) -> Gathered:
    """Write every text of the sources to `out`, one after the other; a row's text is in its `field`.

    Those that aren't text (with a NUL byte, or in UTF-16) and empty ones are left out.
    UserError: a file that can't be read, a broken archive, a format that isn't read, a malformed row.
    """
    texts = Gathered([], [], [])
    for source in sources:
        try:
            with source.path.open("rb") as file:
                for name, stream in texts_in(source.name, file):
                    _gather_text(name, Peekable(stream), out, field, texts)
        except _BROKEN as error:
            raise UserError(f"cannot read {source.path}: {' '.join(str(error).split())}") from error
    return texts


def _gather_text(name: str, stream: Peekable, out: BufferedWriter, field: str, texts: Gathered) -> None:
    """Write a text, or all rows of one."""
    head = stream.peek(HEAD)
    check_format(name, head)
    is_json = name.lower().endswith(".json")
    first_line = stream.peek_line(FIRST_LINE) if head.lstrip()[:1] in (b"{", b"[") else head
    following = stream.peek(len(first_line) + 1 + LOOKAHEAD)[len(first_line) :] if is_json else b""
    if is_rows(name, first_line, following, field):
        for row in read_rows(name, stream.lines(), field):
            text = (row or "").encode("utf-8", "surrogatepass")
            # a row has no name: a hash of its text takes its place
            _write(f"{name}#{digest(text)}", [text], out, texts, "null" if row is None else "")
    else:
        _write(name, stream.chunks(), out, texts, encoding(head))


def _write(name: str, chunks: Iterable[bytes], out: BufferedWriter, texts: Gathered, reason: str) -> None:
    """Append a text to `out`, unless it is binary or empty or there is another reason to leave it out."""
    start = out.tell()
    for chunk in chunks:
        if reason or b"\0" in chunk:
            reason = reason or "binary"
            break
        try:
            out.write(chunk)
        except OSError as error:  # not to be reported as an unreadable source
            raise UserError(f"cannot write {out.name}: {error.strerror}") from error
    reason = reason or ("empty" if out.tell() == start else "")
    if reason:
        out.seek(start)
        out.truncate()
        texts.left_out.append((name, reason))
    else:
        texts.names.append(name)
        texts.spans.append((start, out.tell() - start))


def count_words(chunks: Iterable[Integer[np.ndarray, " bytes"]]) -> tuple[int, int]:
    """Words between white space (as bytes.split has them) and line ends of a text in consecutive chunks."""
    words = lines = 0
    in_word = False
    for chunk in chunks:
        if len(chunk):
            letter = (chunk != 32) & ((chunk < 9) | (chunk > 13))
            words += int(np.count_nonzero(letter[1:] > letter[:-1])) + int(letter[0] and not in_word)
            lines += int(np.count_nonzero(chunk == 10))
            in_word = bool(letter[-1])
    return words, lines
