"""`zoo evaluate run=<run_dir> [key=value …]`: any trained run on any length or task, streamed.

    run=          a run's folder: its config.yaml and checkpoints
    checkpoint=   last (default) or best
    model=        another architecture that the run's weights fit: unlimiformer or sliding_window read with
                  those of a transformer; model.KEY=… changes one of its settings
    task=         another task than the run's; task.KEY=… changes one of its settings, data.corpus=… its text
    split=        test (default), val or train
    batch_size=   texts read side by side (default 16)
    seq_len=      tokens per row and call (default 4,096): memory doesn't depend on the length of a text
    tokens=       a ceiling: of text, no more than the first so many; of samples, fewer per cell where they
                  would be more tokens than that, but never fewer than 16

Tasks made of samples (passkey, induction, …): accuracy with 95 % Wilson intervals, per target and exact (all
targets of a sample hit), by the task's groups, on a grid of

    lengths=      1000,4000 or multiples of the task's own, 1x,4x,64x (default 1x,4x,16x,64x)
    depths=       per cent, where the task has that axis (default 0,25,50,75,100)
    prompts=      samples per cell (default 50; without axes the whole split)

Text: bits per byte, word perplexity and loss by position, with the memory kept from segment to segment and
with the memory reset at every segment; what the memory is worth is the gap.

    positions=    where buckets of positions begin (default 512,2048,8192,32768,131072)
    stride= context=    instead: a window of `context` tokens that moves on by `stride`, empty at its start

Writes evaluation.json (what was there of other tasks and axes stays), evaluation/*.png, and the same figures
as images for TensorBoard.  Each cell is kept as soon as it is done.
"""

import difflib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from zoo.errors import UserError, one_line
from zoo.train.commands.cli import stop, words_or_help
from zoo.train.evaluation import results, tables
from zoo.train.evaluation.evaluate import FIGURES, evaluate
from zoo.train.evaluation.options import EvalOptions
from zoo.train.tasks.base import Split


def main() -> None:
    """Exit code 0, or 2 for a slip of the user's."""
    words = words_or_help(__doc__)
    try:
        run_dir, asked = arguments(words)
        entry = evaluate(run_dir, asked, said)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        stop(f"can't use {error.filename}: {error.strerror}", 2)
    except KeyboardInterrupt:
        stop(f"interrupted; what was measured before is in {run_dir / results.FILE}", 130)
    else:
        Console().print(*tables.tables(entry))
        print(f"{run_dir / results.FILE}   figures: {run_dir / FIGURES}")


# -- the command line ----------------------------------------------------------------------------------------
def arguments(words: list[str]) -> tuple[Path, EvalOptions]:
    """The run's folder and what is asked; UserError: an unknown key, or a value that is none of its kind."""
    given: dict[str, str] = {}
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if key.startswith(("task.", "data.", "model.")):
            overrides.append(word)
        elif key not in KEYS or not equals:
            near = difflib.get_close_matches(key, KEYS, 1)
            raise UserError(
                f"evaluate: unknown key {key!r}; expected one of {', '.join(KEYS)}, "
                "task.KEY, model.KEY, data.corpus" + (f"; did you mean {near[0]}?" if near else "")
            )
        else:
            given[key] = value
    if not given.get("run"):
        raise UserError("evaluate: expected run=<a run's folder>")
    read = {key: KEYS[key](key, value) for key, value in given.items() if key != "run"}
    return Path(given["run"]), EvalOptions(overrides=tuple(overrides), **read)


def _whole(key: str, value: str) -> int:
    if not value.replace("_", "").isdigit() or int(value) < 1:
        raise UserError(f"evaluate: {key}: expected a whole number of at least 1, found {value}")
    return int(value)


def _listed(key: str, value: str) -> list[str]:
    return [part.strip() for part in value.strip("[]").split(",")]


def _lengths(key: str, value: str) -> list[str]:
    for one in _listed(key, value):
        if not one.endswith("x"):
            _whole(key, one)
        elif not _number(one[:-1]) > 0:
            raise UserError(f"evaluate: {key}: expected a multiple such as 4x, found {one}")
    return _listed(key, value)


def _number(word: str) -> float:
    """NaN where it is none: no comparison holds of it."""
    try:
        return float(word) if math.isfinite(float(word)) else math.nan
    except ValueError:
        return math.nan


def _depths(key: str, value: str) -> list[float]:
    for one in _listed(key, value):
        if not 0 <= _number(one) <= 100:
            raise UserError(f"evaluate: {key}: expected per cent, 0 to 100, found {one}")
    return [float(one) for one in _listed(key, value)]


def _positions(key: str, value: str) -> list[int]:
    edges = [_whole(key, one) for one in _listed(key, value)]
    if edges != sorted(set(edges)):
        raise UserError(f"evaluate: {key}: expected growing numbers, found {value}")
    return edges


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def read(key: str, value: str) -> str:
        if value not in choices:
            raise UserError(f"evaluate: {key}: expected {' | '.join(choices)}, found {value}")
        return value

    return read


KEYS: dict[str, Callable[[str, str], Any]] = {
    "run": lambda key, value: value,
    "checkpoint": _one_of("last", "best"),
    "model": lambda key, value: value,
    "task": lambda key, value: value,
    "split": _one_of(*get_args(Split)),
    "batch_size": _whole,
    "seq_len": _whole,
    "tokens": _whole,
    "lengths": _lengths,
    "depths": _depths,
    "prompts": _whole,
    "positions": _positions,
    "stride": _whole,
    "context": _whole,
}


def said(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
