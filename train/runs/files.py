"""Files and folders written completely or not at all, and locks on folders."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from zoo.errors import UserError, printable


def require_empty(folder: Path) -> None:
    """Raises UserError if the folder holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"expected a new folder, found something in {folder}: nothing is overwritten")


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that don't exist, innermost first."""
    folder = Path(os.path.abspath(folder))
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders that are empty, up to the first that isn't."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def new_folder(folder: Path) -> Path:
    """Creates a folder that no other process creates; where the name is taken, with -2, -3, … appended."""
    numbered, number = folder, 1
    while True:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            numbered.mkdir()
        except FileExistsError:
            number += 1
            numbered = folder.with_name(f"{folder.name}-{number}")
        except FileNotFoundError:  # another process has just removed the empty folder above
            continue
        else:
            return numbered


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` if the block succeeds, and removed if it doesn't."""
    folder = Path(os.path.abspath(folder))
    missing = missing_folders(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        require_empty(folder)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        remove_empty(missing)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[Any]]:
    """A temporary binary file that replaces `path` if the block succeeds, and is removed if it doesn't."""
    missing = missing_folders(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(NotADirectoryError):  # a file stands where a folder was expected
            temporary.unlink(missing_ok=True)
        remove_empty(missing)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(printable(text).encode())


LOCK = ".lock"
INHERITED_LOCK = "ZOO_LOCK"  # a descriptor that the parent, `zoo sweep`, has locked and passes on
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def is_further_rank() -> bool:
    """True in every process of a run of several ranks but the first."""
    return any(os.environ.get(name, "0") != "0" for name in RANKS)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock the folder for the block.  Raises UserError if another process has locked it.

    It is the system's lock, released when the process ends, for any reason.  Of several ranks the first locks
    for all.  A process whose parent passed the lock on (ZOO_LOCK) doesn't lock again.
    """
    if is_further_rank() or _is_inherited(folder / LOCK):
        yield
        return
    while True:
        with (folder / LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{folder} is in use by another run; wait for it, or stop it first"
                ) from error
            except OSError as error:
                raise UserError(f"can't lock {lock.name}: {error.strerror}") from error
            if not _is_file_at(folder / LOCK, lock.fileno()):  # the one before removed it
                continue
            yield
        return


@contextlib.contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Lock the file `path` for the block, once no other process has locked it.  It is there meanwhile."""
    while True:
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                raise UserError(f"can't lock {lock.name}: {error.strerror}") from error
            if not _is_file_at(path, lock.fileno()):  # the one before removed it
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_inherited(path: Path) -> bool:
    descriptor = os.environ.get(INHERITED_LOCK, "")
    return descriptor.isdecimal() and _is_file_at(path, int(descriptor))


def _is_file_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (OSError, OverflowError):
        return False
