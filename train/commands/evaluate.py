"""`zoo evaluate run=<run_dir> [key=value …]`: any trained run on any length or task, streamed.

    run=          a run's folder: its config.yaml and checkpoints
    checkpoint=   last (default) or best
    model=        another architecture that the run's weights fit: unlimiformer or sliding_window read with
                  those of a transformer; model.KEY=… changes one of its settings, without model= of the run's
    contexts=     1x,4x,16x: the tokens that the model attends over, as multiples of the run's or as numbers,
                  one evaluation each, of samples of that length or of the last tokens of such windows of text
    methods=      plain,yarn,grouped,…: position methods, one evaluation each (docs/positions.md)
    task=         another task than the run's; task.KEY=… changes one of its settings, data.corpus=… its text
    precision=    of the forward: that of the run's training (default), or 32-true, bf16-mixed, …
    split=        test (default), val or train
    batch_size=   texts read side by side (default 16)
    seq_len=      tokens per row and call (default 4,096): memory doesn't depend on the length of a text
    tokens=       a limit: documents are drawn until they hold it; cells of a grid get fewer samples

Tasks made of samples (passkey, induction, …): exact match (samples of which every target is hit) and accuracy
per target, with 95 % Wilson intervals, by the labels of Task.groups, on a grid of

    lengths=      1000,4000 or multiples of the task's own, 1x,4x,64x (default 1x,4x,16x,64x)
    depths=       per cent, where the task has that axis (default 0,25,50,75,100;
                  none: as the task draws them)
    prompts=      samples per cell (default 50; without depths up to 2,048; without axes the whole split)

Text: bits per byte, word perplexity and loss by position, with the memory carried from segment to segment
and with the memory reset at every segment; the difference is what the memory is worth.

    positions=    starts of the buckets of positions (default 512,2048,8192,32768,131072)
    stride= context=    instead: a sliding window of `context` tokens, read from an empty state every
                  `stride` tokens; stride= beside contexts=: the last tokens of a window that count

Writes evaluation.json (results of other tasks and axes stay), evaluation/*.png, and the same figures as
images for TensorBoard.  Each cell is saved as soon as it is measured.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from zoo.lazy import large_imports
from zoo.train.commands.cli import (
    command,
    integer,
    list_of,
    number,
    one_of,
    parse,
    require_run,
    stop,
    text,
)

if TYPE_CHECKING:
    from zoo.train.evaluation.options import EvalOptions

MOST = 2**48  # beyond all tokens, and still exact in products of 64 bits


def positive_integer(value: str) -> int:
    result = int(integer(least=1)(value))
    if result > MOST:
        raise ValueError(f"expected at most {MOST:,}, found {value}")
    return result


@command
def main(args: list[str]) -> None:
    run_dir, options = parse_args(args)
    with large_imports():
        from zoo.train.evaluation import results, tables
        from zoo.train.evaluation.contexts import evaluate_each
        from zoo.train.evaluation.evaluate import FIGURES, evaluate
        from zoo.train.plotting.terminal import table_console
    try:
        if options.contexts is None and options.methods is None:
            entries = [evaluate(run_dir, options, print_to_stderr)]
        else:
            entries = evaluate_each(run_dir, options, print_to_stderr)
    except KeyboardInterrupt:
        stop(f"interrupted; what was measured before is in {run_dir / results.FILE}", 130)
    for entry in entries:
        tables.show(entry, table_console())
    print(f"{run_dir / results.FILE}   figures: {run_dir / FIGURES}")


def print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def length(value: str) -> str:
    """A number of tokens, or a multiple of the task's own length such as 4x."""
    if not value.endswith("x"):
        positive_integer(value)
        return value
    try:
        number(least=1e-9, most=2**20)(value[:-1])
    except ValueError as error:
        raise ValueError(f"expected a multiple such as 4x, found {value}") from error
    return value


def edges(value: str) -> list[int]:
    numbers: list[int] = list_of(positive_integer)(value)
    if numbers != sorted(set(numbers)):
        raise ValueError(f"expected growing numbers, found {value}")
    return numbers


def precision(value: str) -> str:
    from zoo.train.runs.precision import PRECISIONS

    return str(one_of(*PRECISIONS)(value))


def split(value: str) -> str:
    from zoo.train.tasks.base import Split

    return str(one_of(*get_args(Split))(value))


def depths(value: str) -> list[float]:
    read: list[float] = [] if value == "none" else list_of(number(least=0, most=100, what="per cent"))(value)
    return read


KEYS = {
    "run": text,
    "checkpoint": one_of("last", "best"),
    "model": text,
    "task": text,
    "precision": precision,
    "split": split,
    "batch_size": positive_integer,
    "seq_len": positive_integer,
    "tokens": positive_integer,
    "lengths": list_of(length),
    "depths": depths,
    "prompts": positive_integer,
    "positions": edges,
    "contexts": list_of(length),
    "methods": list_of(text),
    "stride": positive_integer,
    "context": positive_integer,
}
RENAMED = {"rows": "batch_size", "window": "seq_len"}
PASSED_ON = ("task.", "model.", "data.")


def parse_args(args: list[str]) -> "tuple[Path, EvalOptions]":
    """The run's folder, and what to evaluate it on."""
    options, overrides = parse("evaluate", args, KEYS, required=["run"], passed_on=PASSED_ON, renamed=RENAMED)
    run_dir = Path(options.pop("run"))
    require_run(run_dir)
    with large_imports():
        from zoo.train.evaluation.options import EvalOptions
    return run_dir, EvalOptions(overrides=tuple(overrides), **options)
