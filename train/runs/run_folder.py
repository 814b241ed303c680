"""The folder in which a run trains: created, logged to, and removed again if the run doesn't begin."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from zoo.errors import UserError, printable
from zoo.train.runs.files import LOCK, is_further_rank, lock_folder, missing_folders, new_folder, remove_empty

FOLDER_OF_RANK_0 = "ZOO_RUN_DIR"  # for the further ranks that rank 0 starts
LOGGERS = ("", "zoo.train.commands.train")


@contextlib.contextmanager
def run_folder(cfg: DictConfig, base: Path, log_name: str) -> Iterator[Path]:
    """The folder of `resume` or `run_dir`; without either a new one below `base`, named for task, model,
    size, seed and time, which no other run gets, whatever begins in the same second.

    What is logged in the block goes to a file in the folder.  If the block leaves no config.yaml there, the
    folder is removed, with those above it that were made for it.
    """
    folder, is_named = _folder(cfg, base)
    if printable(str(folder)) != str(folder):
        raise UserError(f"run_dir: expected a name in UTF-8, as TensorBoard needs it, found {folder}")
    created = missing_folders(folder.parent)
    if is_named:
        created = missing_folders(folder)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = new_folder(folder)
        created = [folder, *created]
    if not is_further_rank():
        os.environ[FOLDER_OF_RANK_0] = str(folder)
    try:
        with _logging_to(folder / log_name):
            yield folder
    finally:
        if not is_further_rank():
            _remove_unless_begun(folder, log_name)
            remove_empty(created)


def _folder(cfg: DictConfig, base: Path) -> tuple[Path, bool]:
    """The folder, and False where it has to be a new one."""
    if is_further_rank() and FOLDER_OF_RANK_0 in os.environ:
        return Path(os.environ[FOLDER_OF_RANK_0]), True
    if cfg.resume:
        return Path(os.path.abspath(cfg.resume)), True
    if cfg.run_dir is not None:
        if not cfg.run_dir:
            raise UserError("run_dir: expected a folder, found none")
        return base / cfg.run_dir, True
    name = f"{cfg.names.size}-s{cfg.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return base / "runs" / cfg.names.task / cfg.names.model / name, _is_one_of_several_ranks(cfg)


def _is_one_of_several_ranks(cfg: DictConfig) -> bool:
    """True if other processes that weren't started by this one train the same run, in the same folder."""
    sizes = [os.environ.get(name, "1") for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")]
    return is_further_rank() or cfg.trainer.num_nodes > 1 or any(size != "1" for size in sizes)


class _LogFile(logging.FileHandler):
    """A file whose lines are on the screen too: a full disk costs no more than those in the file."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def _remove_unless_begun(folder: Path, log_name: str) -> None:
    """Removes the lock and the log, whose lines were printed on the screen, if nothing else is there and no
    other process begins a run in the folder."""
    with contextlib.suppress(UserError, OSError), lock_folder(folder):
        names = {path.name for path in folder.iterdir()}
        if names <= {LOCK, log_name}:
            for name in names:
                (folder / name).unlink(missing_ok=True)
