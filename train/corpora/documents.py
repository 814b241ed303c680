"""Documents as bytes on disk: extracted from files and archives once, then memory-mapped from a cache."""

import gzip
import hashlib
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from io import BufferedIOBase, BufferedWriter, BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from zoo.errors import UserError

READABLE = "text, .jsonl (field `text`), .gz, .xz, .tar, .zip"
_BROKEN = (OSError, EOFError, RuntimeError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
_CHUNK = 1 << 20  # bytes


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
    """The texts of the sources: names, (first byte, bytes), and the numbers of skipped texts."""

    names: list[str]
    spans: list[tuple[int, int]]
    binary: int
    empty: int


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


def _texts(name: str, stream: BufferedIOBase) -> Iterator[tuple[str, BufferedIOBase]]:
    """Every text in a file, unpacked once per suffix of its name: (name, stream)."""
    stem, suffix = os.path.splitext(name)
    tar = ".tar" if suffix.lower() in (".tgz", ".txz") else ""
    match suffix.lower():
        case ".gz" | ".tgz":
            with gzip.GzipFile(fileobj=stream) as inner:
                yield from _texts(stem + tar, inner)
        case ".xz" | ".txz":
            with lzma.LZMAFile(cast(IO[bytes], stream)) as inner:
                yield from _texts(stem + tar, inner)
        case ".tar":
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    if member.isfile() and not _hidden(member.name):
                        yield from _texts(
                            f"{stem}/{member.name}", cast(BufferedIOBase, archive.extractfile(member))
                        )
        case ".zip":
            with zipfile.ZipFile(stream) as package:
                for entry in package.infolist():
                    if not entry.is_dir() and not _hidden(entry.filename):
                        yield from _texts(
                            f"{stem}/{entry.filename}", cast(BufferedIOBase, package.open(entry))
                        )
        case ".jsonl":
            yield from _rows(name, stream)
        case _:
            yield name, stream


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _rows(name: str, stream: BufferedIOBase) -> Iterator[tuple[str, BufferedIOBase]]:
    """The rows of a .jsonl; a row has no name, so a hash of its text takes its place."""
    for line_number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"].encode("utf-8", "surrogatepass")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(
                f"{name}, line {line_number}: expected a JSON object with a string `text`, "
                f"found {line[:40]!r}"
            ) from None
        yield f"{name}#{digest(text)}", BytesIO(text)


def gather(sources: Sequence[Source], out: BufferedWriter) -> Gathered:
    """Write every text of the sources to `out`, one after the other.

    Binary ones (with a NUL byte) and empty ones are skipped and counted.
    Raises UserError for a file that can't be read, a broken archive and a malformed row of a .jsonl.
    """
    names: list[str] = []
    spans: list[tuple[int, int]] = []
    binary = empty = 0
    for source in sources:
        try:
            with source.path.open("rb") as file:
                for name, stream in _texts(source.name, file):
                    start = out.tell()
                    if not _copy(stream, out):
                        binary += 1
                    elif out.tell() == start:
                        empty += 1
                    else:
                        names.append(name)
                        spans.append((start, out.tell() - start))
        except _BROKEN as error:
            raise UserError(f"cannot read {source.path}: {' '.join(str(error).split())}") from error
    return Gathered(names, spans, binary, empty)


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


def _copy(stream: BufferedIOBase, out: BufferedWriter) -> bool:
    """Append a text to `out`; False, and nothing appended, where it is binary."""
    start = out.tell()
    while chunk := stream.read(_CHUNK):
        if b"\0" in chunk:
            out.seek(start)
            out.truncate()
            return False
        try:
            out.write(chunk)
        except OSError as error:  # not to be reported as an unreadable source
            raise UserError(f"cannot write {out.name}: {error.strerror}") from error
    return True
