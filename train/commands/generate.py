"""`zoo generate run=<run_dir> [key=value …]`: let a trained run write on, as it comes.

    run=          a run's folder: its config.yaml and checkpoints
    checkpoint=   last (default) or best
    prompt=       the text to go on from (default: none, a document's beginning); - reads standard input
    prompt_file=  the same from a file
    tokens=       how many to write at most (default 256); text ends at the end of its document
    temperature=  0 always takes the most probable; 1 (default) draws from what the model says
    top_p=        draw from the fewest tokens that hold this share of it (default 1: from all)
    seed=         of the draws (default 0): the same words again give the same text
    echo=         true (default): write the prompt first; false: only what is new

Runs on bytes (lm, passkey, needle, …) read and write UTF-8; what isn't valid in it is written as �.  Others
read and write the numbers of their tokens: prompt="3 1 4".  Memory doesn't grow with the text.
"""

import difflib
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from zoo.errors import UserError, one_line
from zoo.train.commands.cli import stop, words_or_help
from zoo.train.evaluation.sampling import GenerateOptions, generate_text


def main() -> None:
    """Exit code 0, or 2 for a slip of the user's."""
    words = words_or_help(__doc__)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        asked = arguments(words)
        began, made_now = time.perf_counter(), 0
        for made_now, piece in generate_text(asked):  # noqa: B007
            print(piece, end="", flush=True)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            raise
        stop(f"can't use {error.filename}: {error.strerror}", 2)
    except KeyboardInterrupt:
        print()
        stop("interrupted", 130)
    else:
        print()
        speed = made_now / max(time.perf_counter() - began, 1e-9)
        end = "" if made_now == asked.tokens else ", where it ended the document"
        print(f"{made_now:,} tokens{end}; {speed:,.0f} a second", file=sys.stderr)


# -- the command line
def arguments(words: list[str]) -> GenerateOptions:
    """UserError: an unknown key, or a value that is none of its kind."""
    given: dict[str, Any] = {}
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if key in ("model._target_", "task._target_") and equals:
            overrides.append(word)
        elif key not in KEYS or not equals:
            near = difflib.get_close_matches(key, KEYS, 1)
            raise UserError(
                f"generate: unknown key {key!r}; expected one of {', '.join(KEYS)}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
        else:
            given[key] = KEYS[key](key, value)
    if "run" not in given:
        raise UserError("generate: expected run=<a run's folder>")
    if "prompt" in given and "prompt_file" in given:
        raise UserError("generate: expected prompt= or prompt_file=, found both")
    if "prompt_file" in given:
        given["prompt"] = given.pop("prompt_file")
    return GenerateOptions(overrides=tuple(overrides), **given)


def _prompt(key: str, value: str) -> bytes:
    return sys.stdin.buffer.read() if value == "-" else os.fsencode(value)


def _number(least: int | float, most: int | float, kind: type = float) -> Callable[[str, str], Any]:
    def read(key: str, value: str) -> Any:
        try:
            number = kind(value)
            fits = least <= number <= most and math.isfinite(number)
        except ValueError:
            fits = False
        if not fits:
            whole = "a whole number" if kind is int else "a number"
            upper = "on" if most == math.inf else f"to {most:,}"
            raise UserError(f"generate: {key}: expected {whole} from {least} {upper}, found {value}")
        return number

    return read


def _one_of(**choices: Any) -> Callable[[str, str], Any]:
    def read(key: str, value: str) -> Any:
        if value.lower() not in choices:
            raise UserError(f"generate: {key}: expected {' | '.join(choices)}, found {value}")
        return choices[value.lower()]

    return read


KEYS: dict[str, Callable[[str, str], Any]] = {
    "run": lambda key, value: Path(value),
    "checkpoint": _one_of(last="last", best="best"),
    "prompt": _prompt,
    "prompt_file": lambda key, value: Path(value).read_bytes(),
    "tokens": _number(0, math.inf, int),
    "temperature": _number(0, math.inf),
    "top_p": _number(1e-6, 1),
    "seed": _number(0, 2**63 - 1, int),
    "echo": _one_of(true=True, false=False),
}
