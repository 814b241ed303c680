"""What all commands share: the parser of their arguments, the boundary at which errors become one line, help.

Only Python's own modules are imported up here, so that help answers at once and `zoo doctor` runs where other
packages are broken.
"""

import errno
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from zoo.errors import UserError, closed_pipe_exits, nearest, one_line, tolerate_any_text
from zoo.train.commands.help import FLAGS, page
from zoo.train.commands.suggestions import suggestion
from zoo.train.runs.override_key import expand_home, key_of, refuse_repeated

ValueParser = Callable[[str], Any]
"""Turns the text after `key=` into a value, or raises ValueError("expected …, found …")."""


# -- values


def text(value: str) -> str:
    if not value:
        raise ValueError("expected a value, found none")
    return value


def integer(least: int, most: int | None = None) -> ValueParser:
    bounds = f"of at least {least:,}" if most is None else f"from {least:,} to {most:,}"

    def read(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            raise ValueError(f"expected a whole number {bounds}, found {value or 'none'}")
        return number

    return read


def number(least: int | float, most: int | float = math.inf, what: str = "a number") -> ValueParser:
    """`what` is the quantity in words: "per cent" say."""
    bounds = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"

    def read(value: str) -> float:
        result = to_float(value)
        if not least <= result <= most:
            raise ValueError(f"expected {what} {bounds}, found {value or 'none'}")
        return result

    return read


def positive(what: str = "a number") -> ValueParser:
    def read(value: str) -> float:
        result = to_float(value)
        if not result > 0:
            raise ValueError(f"expected {what} above 0, found {value or 'none'}")
        return result

    return read


def to_float(value: str) -> float:
    """NaN for what isn't a finite number: comparisons with it are false."""
    try:
        return float(value) if math.isfinite(float(value)) else math.nan
    except ValueError:
        return math.nan


def one_of(*choices: str) -> ValueParser:
    def read(value: str) -> str:
        if value not in choices:
            raise ValueError(f"expected {' | '.join(choices)}, found {value}")
        return value

    return read


def boolean(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError(f"expected true | false, found {value}")
    return value.lower() == "true"


def list_of(parse_value: ValueParser) -> ValueParser:
    """Values with commas between, in brackets or not."""
    return lambda value: [parse_value(part.strip()) for part in value.strip("[]").split(",")]


def distinct(value: str) -> list[str]:
    """Names with commas between, each once."""
    names = value.strip("[]").split(",")
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"expected names with commas between, each once, found {value}")
    return names


def output_file(*suffixes: str) -> ValueParser:
    """The path of a file that can be written; its suffix is one of these."""

    def read(value: str) -> Path:
        path = Path(value)
        if path.suffix not in suffixes:
            raise ValueError(
                f"expected a file that ends with {' or '.join(suffixes)}, found {value or 'none'}"
            )
        if path.is_dir() or not path.parent.is_dir():
            actual = "a folder" if path.is_dir() else f"no folder {path.parent}"
            raise ValueError(f"expected a file in a folder that exists, found {actual}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"expected a file that can be written, found {value}")
        return path

    return read


# -- arguments


def parse(
    command: str,
    args: Iterable[str],
    parsers: Mapping[str, ValueParser],
    *,
    required: Iterable[str] = (),
    passed_on: tuple[str, ...] = (),
    pass_unknown: bool = False,
    refused: Mapping[str, str] | None = None,
    renamed: Mapping[str, str] | None = None,
    verbatim: tuple[str, ...] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Values by key, and the arguments that are passed on unread to the configuration.

    `passed_on` are keys, or beginnings of keys such as `task.`; with `pass_unknown` an argument whose key is
    none of the command's is passed on. `refused` says for a key what to use instead, `renamed` gives new
    names; a value that begins with ~/ is a path below the home folder, unless its key is one of `verbatim`.
    Raises UserError, in one line, for an argument that isn't key=value, a key that is unknown, given
    twice or refused, a value that its parser refuses, and a required key that is missing.
    """
    values: dict[str, Any] = {}
    rest: list[str] = []
    beginnings = tuple(start for start in passed_on if start.endswith("."))
    for arg in args:
        key, equals, value = arg.partition("=")
        name = key.lstrip("+~")  # as Hydra's grammar has it
        if equals and key in (renamed or {}):
            raise UserError(f"{command}: {key} is called {(renamed or {})[key]} now")
        if name in (refused or {}):
            raise UserError(f"{command}: {name} can't be set here; {(refused or {})[name]}")
        if name != key and name in parsers:
            raise UserError(f"{command}: expected {name}=…, found {arg}")
        passes = pass_unknown or key in passed_on or key.startswith(beginnings)
        if equals and key and key not in parsers and passes:
            rest.append(arg)
            continue
        if not (equals and key):
            is_run = "run" in parsers and Path(arg, "config.yaml").is_file()
            likely = f"; did you mean run={arg}?" if is_run else ""
            raise UserError(f"{command}: expected key=value, found {arg!r}{likely}")
        if key not in parsers:
            expected = ", ".join([*parsers, *(f"{start}…" for start in beginnings)])
            message = f"{command}: unknown key {key!r}; expected one of {expected}"
            raise UserError(message + nearest(key, parsers))
        if key in values:
            raise UserError(f"{command}: {key} is given twice")
        try:
            values[key] = parsers[key](value if key in verbatim else expand_home(value))
        except ValueError as error:
            raise UserError(f"{command}: {key}: {error}") from error
    refuse_repeated(rest)
    if missing := [key for key in required if key not in values]:
        raise UserError(f"{command}: expected {', '.join(f'{key}=…' for key in missing)}")
    return values, rest


def refuse_without_effect(command: str, args: Iterable[str], keys: Iterable[str], subject: str) -> None:
    """Raises UserError for an argument of the configuration that changes nothing about the subject.

    `keys` are keys, or beginnings of keys such as `optim.`.
    """
    keys = tuple(keys)
    groups = tuple(key for key in keys if key.endswith("."))
    for arg in args:
        key = key_of(arg)
        if key in keys or key.startswith(groups):
            raise UserError(f"{command}: {key} has no effect on {subject}")


def require_run(folder: Path) -> None:
    """Raises UserError for a folder without a run, before anything large is imported."""
    if not (folder / "config.yaml").exists():
        from zoo.train.runs.folder import no_run

        raise no_run(folder)


# -- errors


def command(main: Callable[..., int | None]) -> Callable[[], None]:
    """The entry point of a command: calls `main` with the arguments after the command's name.

    Exit code: what `main` returns, 0 for None; 2 with one line for a user error; 130 for Ctrl-C; 141
    where the reader of the output has closed it. `--help`, among other arguments too, prints the docstring
    of the command's module; so does a call without arguments, where `main` needs some (its parameter has no
    default).
    """
    parameter = next(iter(inspect.signature(main).parameters.values()))
    needs_args = parameter.default is inspect.Parameter.empty

    @functools.wraps(main)
    def entry() -> None:
        tolerate_any_text()
        with closed_pipe_exits():
            call()

    def call() -> NoReturn:
        args = sys.argv[1:]
        if any(arg in FLAGS for arg in args) or (needs_args and not args):
            print(page(main.__module__, args), file=sys.stdout if args else sys.stderr)
            sys.exit(0 if args else 2)
        try:
            code = main(args)
        except KeyboardInterrupt:
            stop("interrupted", 130)
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            stop(message, 2)
        sys.exit(code or 0)

    return entry


def user_message(error: BaseException, args: Sequence[str] | None = None) -> str | None:
    """One line about what the user can fix, or None for an error that isn't the user's; `args` are those of
    the command line."""
    args = sys.argv[1:] if args is None else args
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, UserError) or package in ("hydra", "omegaconf"):
        return one_line(error) + suggestion(str(error), args)
    cause = error.__cause__ if isinstance(error, ValueError) else error  # logging wraps the error of open()
    if isinstance(cause, OSError) and cause.filename is not None:
        return f"can't use {cause.filename}: {cause.strerror}"
    if problem := disk_problem(error):
        return f"can't write: {problem}"
    phrases = ("out of memory", "allocate memory")  # torch has no type for these
    if isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases):
        return f"{one_line(error)} (a smaller size, data.batch_size or data.seq_len?)"
    return None


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def disk_problem(error: BaseException | None) -> str:
    """What the system says of a disk that can't be written to, "" for another error.

    torch and other libraries raise errors of their own around the system's, or with its words.
    """
    problems = [os.strerror(number) for number in DISK_ERRORS]
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return str(error.strerror)
        if quoted := next((problem for problem in problems if problem in str(error)), ""):
            return quoted
        error = error.__cause__ or error.__context__
    return ""


def stop(message: str, code: Any) -> NoReturn:
    print(f"error: {message}" if code == 2 else message, file=sys.stderr)
    sys.exit(code)
