"""Errors that a user can fix, in one line."""

import contextlib
import difflib
import importlib.util
import os
import select
import sys
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A user error: the command line prints its one line and exits with code 2, without a traceback.

    The message says what was expected and what was found.
    """


def refuse_other_systems() -> None:
    """Exits on a system without the file locks that runs need."""
    if importlib.util.find_spec("fcntl") is None:
        sys.exit(f"error: expected Linux or macOS, found {sys.platform}; on Windows the zoo works inside WSL")


def tolerate_any_text() -> None:
    """Has standard output and errors print what they can't encode in escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook captures it
            stream.reconfigure(errors="backslashreplace")


CLOSED_PIPE_CODE = 141
"""Exit code where the reader of the output has closed it: 128 + SIGPIPE, as of programs that SIGPIPE ends."""


@contextlib.contextmanager
def closed_pipe_exits() -> Iterator[None]:
    """A block that prints; where the reader closes the pipe, as `| head` does, it exits without a traceback.

    rich, which catches the error itself, exits with another code, and text that is still in a buffer would be
    written only when Python has shut down.
    """
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        if not discard_closed_outputs():  # a pipe to another process
            raise
        sys.exit(CLOSED_PIPE_CODE)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            sys.exit(CLOSED_PIPE_CODE)
        raise


def discard_closed_outputs() -> bool:
    """Has what is printed to an output whose reader has closed it go nowhere; False if neither is closed."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (AttributeError, OSError, ValueError):  # where a test or a notebook captures it
            continue
        if is_closed_pipe(descriptor):
            closed = True
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)
    return closed


def is_closed_pipe(descriptor: int) -> bool:
    """True for the writing end of a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


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


def counted(number: int, noun: str) -> str:
    """ "1 run", "2,000 runs"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def nearest(word: str, candidates: Iterable[str], prefix: str = "") -> str:
    """ "; did you mean …?" for the candidate that comes closest to a word, whatever their case; "" where none
    is close."""
    of_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(word.lower(), of_lower, 1)
    return f"; did you mean {prefix}{of_lower[close[0]]}?" if close else ""
