"""The texts in a file: archives and compressed files unpacked, as streams."""

import gzip
import lzma
import os
import tarfile
import zipfile
from collections.abc import Iterator
from io import BufferedIOBase
from typing import IO, Any, cast

CHUNK = 1 << 20  # bytes

Stream = BufferedIOBase


def texts_in(name: str, stream: Stream) -> Iterator[tuple[str, Stream]]:
    """Every text in a file, unpacked once per suffix of its name: (name, stream)."""
    stem, suffix = os.path.splitext(name)
    tar = ".tar" if suffix.lower() in (".tgz", ".txz") else ""
    match suffix.lower():
        case ".gz" | ".tgz":
            with gzip.GzipFile(fileobj=stream) as inner:
                yield from texts_in(stem + tar, inner)
        case ".xz" | ".txz":
            with lzma.LZMAFile(cast(IO[bytes], stream)) as inner:
                yield from texts_in(stem + tar, inner)
        case ".tar":
            yield from _tar(stem, stream)
        case ".zip":
            with zipfile.ZipFile(stream) as package:
                for entry in package.infolist():
                    if not entry.is_dir() and not _is_hidden(entry.filename):
                        yield from texts_in(f"{stem}/{entry.filename}", cast(Stream, package.open(entry)))
        case _:
            yield name, stream


class Peekable:
    """A stream whose beginning can be looked at before it is read."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.buffer = stream, b""

    def peek(self, size: int) -> bytes:
        while len(self.buffer) < size and (chunk := self.stream.read(size - len(self.buffer))):
            self.buffer += chunk
        return self.buffer[:size]

    def peek_line(self, most: int) -> bytes:
        """The first line, or its first `most` bytes."""
        size = 4096
        while b"\n" not in self.peek(size) and len(self.buffer) >= size and size < most:
            size *= 4
        return self.buffer[:most].partition(b"\n")[0]

    def chunks(self) -> Iterator[bytes]:
        yield self.buffer
        while chunk := self.stream.read(CHUNK):
            yield chunk

    def lines(self) -> Iterator[bytes]:
        *complete, last = self.buffer.split(b"\n")
        yield from complete
        yield last + self.stream.readline()
        yield from self.stream


class _Member(tarfile.TarInfo):
    """A header that is read or refused: tarfile takes one that it can't read for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Member":
        try:
            return cast(_Member, super().fromtarfile(archive))
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros, the end mark
            _check_rest(archive.fileobj)
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("the archive ends without its end mark") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a header is damaged: {error}") from error


def _check_rest(stream: Any) -> None:
    """Raises ReadError unless only zeros follow the end mark: a header that was overwritten with zeros looks
    like one."""
    while chunk := stream.read(CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("the archive continues after its end mark")


def _tar(stem: str, stream: Stream) -> Iterator[tuple[str, Stream]]:
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
        for member in archive:
            if member.isfile() and not _is_hidden(member.name):
                yield from texts_in(f"{stem}/{member.name}", cast(Stream, archive.extractfile(member)))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
