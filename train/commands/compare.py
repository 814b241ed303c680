"""`zoo compare runs/lm … [key=value …]`: finished runs side by side, one row per model.

    folders…    runs, or folders that contain them, any number
    baseline=   the row whose scores are subtracted from the others', seed by seed (default
                transformer)
    loss=       steps to this held-out loss, nats per target (default: the task's at this size, or else
                the highest final loss)
    group=      largest, newest or a number: where runs don't compare, one of the groups that do
    mix=        task, data, budget, tokens, protocol, code: runs may differ in these (default: in none)
    formats=    png, pdf, svg: of the figures; tex: the tables as LaTeX (default png)
    out=        where the comparison goes (default runs/comparison)

Rows have mean and 95 % interval over seeds (Student's t) of bits per byte, of exact match with accuracy per
target beside it, or of accuracy where samples have one target.  Writes comparison.md, comparison.csv,
index.html (one self-contained file) and a file of each plot.  Lengths and depths come from `zoo evaluate`.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.lazy import large_imports
from zoo.train.commands.cli import command, list_of, one_of, parse, positive, text


def kinds(value: str) -> list[str]:
    with large_imports():
        from zoo.train.comparison.comparable import KINDS
    return list(list_of(one_of(*KINDS))(value))


FORMATS = ("png", "pdf", "svg", "tex")
KEYS = {
    "baseline": text,
    "loss": positive("a number of nats"),
    "mix": kinds,
    "group": text,
    "formats": list_of(one_of(*FORMATS)),
    "out": text,
}


@command
def main(args: list[str]) -> int:
    """Exit code 2 where runs don't compare; then the groups that do follow the error's line."""
    folders, options = parse_args(args)
    with large_imports():
        from zoo.train.comparison import page
        from zoo.train.comparison.comparable import IncomparableError
        from zoo.train.comparison.partition import describe, partition
        from zoo.train.comparison.report import read_finished, report
        from zoo.train.comparison.reproduce import sweep_commands
        from zoo.train.comparison.text import show, write
    out = Path(options.pop("out", "runs/comparison"))
    formats = options.pop("formats", ["png"])
    command_line = shlex.join(["zoo", "compare", *args])
    try:
        result = report(folders, **options, command=command_line)
    except IncomparableError as error:
        print(f"error: {error}", file=sys.stderr)
        groups = [] if "group" in options else partition(read_finished(folders))
        if len(groups) > 1:
            print(*describe(groups, command_line), sep="\n", file=sys.stderr)
        return 2
    commands = [sweep_commands(comparison) for comparison in result.comparisons]
    write(result, commands, out, latex="tex" in formats)
    page.write(result, commands, out, [kind for kind in dict.fromkeys(formats) if kind != "tex"])
    show(result, out)
    return 0


def parse_args(args: list[str]) -> tuple[list[Path], dict[str, Any]]:
    """The folders, of which a name may contain "=", and the options."""
    folders = [arg for arg in args if "=" not in arg or Path(arg).is_dir()]
    options, _ = parse("compare", [arg for arg in args if arg not in folders], KEYS)
    if not folders:
        raise UserError("compare: expected folders of runs, such as runs/lm, found none")
    if missing := [folder for folder in folders if not Path(folder).is_dir()]:
        raise UserError(f"compare: no folder {', '.join(missing)}")
    return [Path(folder) for folder in folders], options
