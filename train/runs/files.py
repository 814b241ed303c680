"""Files that are whole or not there, and folders that one process at a time may write to."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from zoo.errors import UserError


def require_empty(folder: Path) -> None:
    """UserError where something lies there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"expected a new folder, found something in {folder}: nothing is overwritten")


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name if the block ends well, and is gone if it doesn't."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        beside.mkdir()
        yield beside
        require_empty(folder)
        os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


LOCK = ".lock"
HELD = "ZOO_LOCK"  # a descriptor that the parent has locked and handed down: zoo sweep's
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[Any]]:
    """A binary file beside `path` that takes its place if the block ends well, and is gone if it doesn't."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock for the block; UserError where another process has it.

    The lock is the system's: it ends with the process, however that ends.  Of several ranks the first holds
    it for all.  A process that was handed the lock by its parent (ZOO_LOCK) holds it already.
    """
    if any(os.environ.get(name, "0") != "0" for name in RANKS) or _handed_down(folder / LOCK):
        yield
        return
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder} is in use by another run; wait for it, or stop it first") from error
        except OSError as error:
            raise UserError(f"can't lock {lock.name}: {error.strerror}") from error
        yield


def _handed_down(path: Path) -> bool:
    held = os.environ.get(HELD, "")
    try:
        return held.isdecimal() and os.path.samestat(os.fstat(int(held)), path.stat())
    except (OSError, OverflowError):
        return False
