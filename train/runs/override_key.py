"""The key and the value of an override; needs nothing but Python, for help and errors that come at once."""

import os
from collections import Counter
from collections.abc import Iterable

from zoo.errors import UserError


def key_of(override: str) -> str:
    """`model.width` of `model.width=64`, `+model.width=64`, `++model.width=64` and `~model.width`."""
    return override.lstrip("+~").partition("=")[0]


def expand_home(value: str) -> str:
    """A value that begins with ~/, below the user's home folder: shells do this behind some keys alone."""
    return os.path.expanduser(value) if value.startswith("~/") else value


def refuse_repeated(args: Iterable[str]) -> None:
    """Raises UserError for a key that is given twice: Hydra would take the last and say nothing."""
    keys = Counter(key_of(arg) for arg in args if "=" in arg)
    for key, count in keys.items():
        if count > 1 and not key.startswith("hydra."):
            raise UserError(f"{key} is given {'twice' if count == 2 else f'{count} times'}")
