"""The key and the value of an override; needs nothing but Python, for help and errors that come at once."""

import os


def key_of(override: str) -> str:
    """`model.width` of `model.width=64`, `+model.width=64`, `++model.width=64` and `~model.width`."""
    return override.lstrip("+~").partition("=")[0]


def expand_home(value: str) -> str:
    """A value that begins with ~/, below the user's home folder: shells do this behind some keys alone."""
    return os.path.expanduser(value) if value.startswith("~/") else value
