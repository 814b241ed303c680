"""What all commands share: help, one line for an error, its exit code."""

import difflib
import re
import sys
from typing import Any, NoReturn

from omegaconf.errors import OmegaConfBaseException

from zoo.errors import UserError, one_line
from zoo.train.runs.stored import renamed_key


def in_words(error: Exception) -> str | None:
    """What the user can do about an error, in one line; None for a fault of ours."""
    if isinstance(error, (UserError, OmegaConfBaseException)):
        return one_line(error)
    cause = error.__cause__ if isinstance(error, ValueError) else error  # logging wraps what open says
    if isinstance(cause, OSError) and cause.filename is not None:
        return f"can't use {cause.filename}: {cause.strerror}"
    memory = ("out of memory", "allocate memory")  # torch says so in words alone
    if isinstance(error, MemoryError) or any(words in str(error) for words in memory):
        return f"{one_line(error)} (a smaller size, data.batch_size or data.seq_len?)"
    return None


def did_you_mean(message: str) -> str:
    """For a key that doesn't exist: its new name, or the key that comes closest, as a question."""
    if new_name := renamed_key(message):
        return new_name
    if option := re.search(r"Could not find '([^']+)/([^']+)'", message):
        near = difflib.get_close_matches(option[2], re.findall(r"\S+", message.rpartition("':")[2]), 1)
        return f"; did you mean {near[0]}?" if near else ""
    found = re.search(r"Could not override '([^']+)'", message)
    if not found:
        return ""
    from zoo.train.runs.config import compose, to_dict

    groups = ("model=", "task=", "size=", "optim=", "trainer=", "experiment=", "hydra.searchpath=")
    try:
        cfg = to_dict(compose([word for word in sys.argv[1:] if word.startswith(groups)]))
    except Exception:  # it says too little to help; the error itself is said anyway
        return ""
    inner = [f"{group}.{key}" for group, keys in cfg.items() if isinstance(keys, dict) for key in keys]
    near = difflib.get_close_matches(found[1], [*cfg, *inner], 1)
    return f"; did you mean {near[0]}?" if near else ""


def words_or_help(text: str | None) -> list[str]:
    """The words after a command's name; without any, or where they ask for it, leaves with its help."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(text, file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    return words


def stop(message: str, code: Any) -> NoReturn:
    print(f"error: {message}" if code == 2 else message, file=sys.stderr)
    sys.exit(code)
