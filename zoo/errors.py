"""Errors that a user can fix, in one line."""

import difflib
import sys
from collections.abc import Iterable


class UserError(Exception):
    """A user error: the command line prints its one line and exits with code 2, without a traceback.

    The message says what was expected and what was found.
    """


def tolerate_any_text() -> None:
    """Has standard output and errors print what they can't encode in escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook captures it
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """The text with escapes for the bytes of file names that aren't UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, "" where it has none."""
    return str(error).strip().partition("\n")[0]


def one_line(error: BaseException) -> str:
    """The message on one line, with Hydra's cause, without the trailers of Hydra and OmegaConf."""
    hydras = type(error).__module__.startswith("hydra.")
    lines = [line.strip() for line in str(error).splitlines()]
    lines += [line.strip() for line in str(error.__cause__ or "").splitlines()] if hydras else []
    if "Config search path:" in lines:
        lines = lines[: lines.index("Config search path:")]
    noise = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "See https://hydra.cc",
        "To append to your config",
    )
    return " ".join(line for line in lines if line and not line.startswith(noise)) or type(error).__name__


def nearest(word: str, candidates: Iterable[str], prefix: str = "") -> str:
    """ "; did you mean …?" for the candidate that comes closest to a word, "" where none is close."""
    close = difflib.get_close_matches(word, list(candidates), 1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
