"""`zoo compare runs/lm … [key=value …]`: finished runs side by side, one row per model.

    folders…    runs, or folders in which they lie, as many as you like
    baseline=   the row whose scores are taken off the others', seed by seed (default transformer)
    loss=       steps to this held-out loss, nats per asked target (default: the loosest that all rows reach)
    mix=        task, data, budget, tokens: runs may differ in these (default: in none of them)
    out=        where the comparison goes (default runs/comparison)

Rows say mean and 95 % interval over seeds (Student's t).  Writes comparison.md, comparison.csv, index.html
(one file that needs nothing else) and a PNG of each plot.  Lengths and depths come from `zoo evaluate`.
"""

import math
import shlex
from pathlib import Path

from zoo.errors import UserError, one_line
from zoo.train.commands.cli import stop, words_or_help
from zoo.train.comparison.comparable import KINDS
from zoo.train.comparison.comparison import compare
from zoo.train.comparison.text import show, write

KEYS = {"baseline": "", "loss": "", "mix": "", "out": "runs/comparison"}


def main() -> None:
    """Exit code 0, or 2 for a slip of the user's and for runs that don't compare."""
    words = words_or_help(__doc__)
    from zoo.train.comparison import page

    try:
        paths, keys = arguments(words)
        comparison = compare(
            paths,
            baseline=keys["baseline"] or None,
            loss=positive(keys["loss"]) if keys["loss"] else None,
            mix=[kind for kind in keys["mix"].split(",") if kind],
            command=shlex.join(["zoo", "compare", *words]),
        )
        out = Path(keys["out"])
        write(comparison, out)
        page.write(comparison, out)
    except UserError as error:
        stop(one_line(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        stop(f"can't use {error.filename}: {error.strerror}", 2)
    show(comparison, out)


# -- what is compared
def arguments(words: list[str]) -> tuple[list[Path], dict[str, str]]:
    paths, keys = [], dict(KEYS)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or Path(word).is_dir():
            paths.append(Path(word))
        elif key not in KEYS:
            raise UserError(f"compare: unknown key {key!r}; expected one of {', '.join(KEYS)}")
        else:
            keys[key] = value
    if not paths:
        raise UserError("compare: expected folders of runs, such as runs/lm, found none")
    if lacking := [str(path) for path in paths if not path.is_dir()]:
        raise UserError(f"compare: no folder {', '.join(lacking)}")
    if unknown := [kind for kind in keys["mix"].split(",") if kind and kind not in KINDS]:
        raise UserError(f"compare: mix: expected some of {', '.join(KINDS)}, found {', '.join(unknown)}")
    return paths, keys


def positive(word: str) -> float:
    try:
        loss = float(word)
    except ValueError:
        loss = math.nan
    if not 0 < loss < math.inf:
        raise UserError(f"compare: loss: expected a number of nats above 0, found {word}")
    return loss
