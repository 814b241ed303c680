"""A cache on disk, keyed by the content of the files it was made from."""

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

VERSION = 1  # raise it when the same sources would be read, cut or ordered differently

_DAY = 86_400  # seconds


def cache_folder() -> Path:
    """$ZOO_CACHE, or zoo/ in $XDG_CACHE_HOME, or ~/.cache/zoo."""
    if chosen := os.environ.get("ZOO_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo"


def key_of(rule: str, sources: Sequence[Source]) -> str:
    """Stands for the names and bytes of the sources, the rule that splits them and VERSION."""
    total = hashlib.blake2b(f"{VERSION} {rule}".encode(), digest_size=16)
    for source in sources:
        try:
            with source.path.open("rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        except OSError as problem:
            raise UserError(f"cannot read {source.path}: {problem.strerror}") from problem
        total.update(digest(source.name.encode("utf-8", "surrogatepass")).encode() + content)
    return total.hexdigest()


def cached(key: str, build: Callable[[BufferedWriter], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The data file kept under a key, and its index; `build` writes the one and returns the other if missing.

    Both are written beside and renamed, the index last and with the data's size in it: whoever is killed, or
    writes at the same time, leaves nothing or the whole, and a file cut short is built again.
    """
    folder = cache_folder()
    data, index = folder / f"{key}.bin", folder / f"{key}.json"
    found = _whole(data, index)
    if found is not None:
        return data, found
    part = folder / f"{key}.{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.part"):  # by killed writers; a living one is never a day old
            with contextlib.suppress(FileNotFoundError):  # finished, or removed, since it was listed
                if time.time() - left.stat().st_mtime > _DAY:
                    left.unlink()
        with part.open("xb") as out:
            found = build(out)
            out.flush()
            os.fsync(out.fileno())
            found["size"] = out.tell()
        os.replace(part, data)
        part.write_text(json.dumps(found))
        os.replace(part, index)
    except OSError as problem:
        raise _unwritable(problem) from problem
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return data, found


def _whole(data: Path, index: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(index.read_bytes())
        return found if found["size"] == data.stat().st_size else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _unwritable(problem: OSError) -> UserError:
    return UserError(
        f"cannot write the cache in {cache_folder()} (set ZOO_CACHE): {problem.strerror or problem}"
    )
