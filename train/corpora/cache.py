"""A cache on disk, keyed by the content of its source files."""

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from io import BufferedWriter
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.train.corpora.documents import Source, digest

VERSION = 3  # raise it when the same sources would be read, cut or ordered differently

_DAY = 86_400  # seconds


def cache_folder() -> Path:
    """$ZOO_CACHE, or zoo/ in $XDG_CACHE_HOME, or ~/.cache/zoo."""
    if folder := os.environ.get("ZOO_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo"


def key_of(rule: str, sources: Sequence[Source]) -> str:
    """A hash of the names and bytes of the sources, the rule that splits them and VERSION."""
    total = hashlib.blake2b(f"{VERSION} {rule}".encode(), digest_size=16)
    for source in sources:
        try:
            with source.path.open("rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        except OSError as error:
            raise UserError(f"cannot read {source.path}: {error.strerror}") from error
        total.update(digest(source.name.encode("utf-8", "surrogatepass")).encode() + content)
    return total.hexdigest()


def cached(key: str, build: Callable[[BufferedWriter], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The data file of a key, and its index; if missing, `build` writes the data and returns the index.

    Both are written to another name and renamed, the index last and with the data's size in it: a writer that
    is killed leaves nothing or a complete entry, simultaneous writers don't disturb one another, and a file
    cut short is built again.
    """
    folder = cache_folder()
    data, index = folder / f"{key}.bin", folder / f"{key}.json"
    content = _read_index(data, index)
    if content is not None:
        return data, content
    part = folder / f"{key}.{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        with part.open("xb") as out:
            content = build(out)
            out.flush()
            os.fsync(out.fileno())
            content["size"] = out.tell()
        os.replace(part, data)
        part.write_text(json.dumps(content))
        os.replace(part, index)
    except OSError as error:
        raise UserError(
            f"cannot write the cache in {cache_folder()} (set ZOO_CACHE): {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return data, content


def _read_index(data: Path, index: Path) -> dict[str, Any] | None:
    """None where an entry is missing or incomplete."""
    try:
        content = json.loads(index.read_bytes())
        return content if content["size"] == data.stat().st_size else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _remove_abandoned(folder: Path) -> None:
    """Remove the parts of killed writers; that of a running one is never a day old."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # finished, or removed, since it was listed
            if time.time() - part.stat().st_mtime > _DAY:
                part.unlink()
