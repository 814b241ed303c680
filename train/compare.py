"""`zoo compare runs/lm … [key=value …]`: finished runs side by side, one row per model.

    folders…    runs, or folders in which they lie, as many as you like
    baseline=   the row whose scores are taken off the others', seed by seed (default transformer)
    loss=       steps to this held-out loss, nats per asked target (default: the loosest that all rows reach)
    mix=        task, data, budget, tokens: runs may differ in these (default: in none of them)
    out=        where the comparison goes (default runs/comparison)

Rows say mean and 95 % interval over seeds (Student's t).  Writes comparison.md, comparison.csv, index.html
(one file that needs nothing else) and a PNG of each plot.  Lengths and depths come from `zoo evaluate`.
"""

import csv
import io
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Column as TableColumn
from rich.table import Table

from zoo.errors import UserError
from zoo.train import build
from zoo.train.cli import one_line, stop, words_or_help
from zoo.train.files import write_text
from zoo.train.intervals import Estimate, paired
from zoo.train.listing import WIDE
from zoo.train.rows import KINDS, RUN_HEAD, Row, Run, command, ends, grouped, read_run, run_facts, unlike
from zoo.train.runs import folders

KEYS = {"baseline": "", "loss": "", "mix": "", "out": "runs/comparison"}
FORGETTING = "transformer"  # the baseline where none is named and it is there


NOTHING = "-"
ON_TERMINAL = ("difference", "parameters", "state_bytes", "steps_to_loss")


class Comparison(NamedTuple):
    """All there is to say, before it is written in any format."""

    rows: list[Row]
    score: str
    """Tag of the score: "val/bits_per_byte" or "val/accuracy"."""
    baseline: Row | None
    loss: float
    mixed: list[str]
    """In what the runs differ although they shouldn't, in words."""
    command: str

    @property
    def unit(self) -> str:
        return "bits per byte" if self.score == "val/bits_per_byte" else "accuracy"


def main() -> None:
    """Exit code 0, or 2 for a slip of the user's and for runs that don't compare."""
    words = words_or_help(__doc__)
    from zoo.train import report

    try:
        paths, keys = arguments(words)
        comparison = compare(paths, keys, shlex.join(["zoo", "compare", *words]))
        out = Path(keys["out"])
        write(comparison, out)
        report.write(comparison, out)
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


def compare(paths: Sequence[Path], keys: dict[str, str], command: str) -> Comparison:
    """UserError: no runs, or some that don't compare."""
    finished, begun = folders(paths)
    if begun:
        print(f"left out, not finished: {', '.join(map(str, begun))}", file=sys.stderr)
    if not finished:
        raise UserError(f"compare: no finished run below {', '.join(map(str, paths))}")
    runs = [read_run(folder) for folder in finished]
    mixed = unlike(runs, [kind for kind in keys["mix"].split(",") if kind])
    rows = grouped(runs)
    score = score_of(runs)
    named = {row.label: row for row in rows}
    if keys["baseline"] and keys["baseline"] not in named:
        raise UserError(f"compare: baseline: expected one of {', '.join(named)}, found {keys['baseline']}")
    loss = given_loss(keys["loss"]) if keys["loss"] else loosest(rows)
    return Comparison(rows, score, named.get(keys["baseline"] or FORGETTING), loss, mixed, command)


def score_of(runs: list[Run]) -> str:
    """Bits per byte if any run has them: accuracy of bytes is said for text as well."""
    some = [run for run in runs if "val/bits_per_byte" in run.metrics]
    if some and len(some) < len(runs):
        without = next(run for run in runs if run not in some)
        raise UserError(
            f"compare: {some[0].name} is scored in bits per byte, {without.name} in accuracy; name one kind"
        )
    return "val/bits_per_byte" if some else "val/accuracy"


def given_loss(word: str) -> float:
    try:
        loss = float(word)
    except ValueError:
        loss = math.nan
    if not 0 < loss < math.inf:
        raise UserError(f"compare: loss: expected a number of nats above 0, found {word}")
    return loss


def loosest(rows: list[Row]) -> float:
    """The highest of the rows' final losses, rounded up: every run that ended no worse has reached it."""
    highest = max(run.metrics["val/loss"] for row in rows for run in row.runs)
    return math.ceil(highest * 1000) / 1000


# -- numbers


class Column(NamedTuple):
    """One quantity of a row: its title, how it is said, and whether its interval is worth saying."""

    key: str
    title: str
    value: Callable[[Row], Estimate | None]
    form: Callable[[float], str]
    spread: bool


def columns(comparison: Comparison) -> list[Column]:
    """In the order in which they are shown."""
    score, baseline = comparison.score, comparison.baseline
    if comparison.unit == "accuracy":
        form, change = (lambda x: f"{x:.1%}"), (lambda x: f"{100 * x:+.1f}")
    else:
        form, change = (lambda x: f"{x:.3f}"), (lambda x: f"{x:+.3f}")

    def plain(key: str) -> Callable[[Row], Estimate | None]:
        return lambda row: row.estimate(lambda run: run.metrics.get(key))

    def whole(number: float) -> str:
        return f"{number:,.0f}"

    found = [Column(score, f"held-out {comparison.unit}", plain(score), form, True)]
    if baseline is not None:
        points = " (points)" if comparison.unit == "accuracy" else ""
        base = baseline.by_seed(lambda run: run.metrics[score])

        def difference(row: Row) -> Estimate | None:
            return None if row is baseline else paired(row.by_seed(lambda run: run.metrics[score]), base)

        found.append(Column("difference", f"against {baseline.label}{points}", difference, change, True))
    if comparison.unit == "accuracy":
        found.append(
            Column("val/loss", "held-out loss (nats)", plain("val/loss"), lambda x: f"{x:.3f}", True)
        )
    found += [
        Column("parameters", "parameters", plain("parameters"), whole, False),
        Column("state_bytes", "state bytes per row", plain("state_bytes"), whole, False),
        Column("tokens_seen", "tokens seen", plain("tokens_seen"), whole, False),
        Column("tokens_per_s", "training asked tokens/s", plain("tokens_per_s"), whole, False),
        Column("eval_tokens_per_s", "evaluation asked tokens/s", plain("eval_tokens_per_s"), whole, False),
        Column(
            "peak_memory_bytes",
            "peak memory",
            plain("peak_memory_bytes"),
            lambda x: f"{x / 2**20:,.0f} MiB",
            False,
        ),
        Column(
            "steps_to_loss",
            f"steps to held-out loss {comparison.loss:g}",
            lambda row: row.estimate(lambda run: steps_to(run, comparison.loss)),
            whole,
            True,
        ),
    ]
    return found


def steps_to(run: Run, loss: float) -> float | None:
    """The step of the first validation at or below a loss; None where there was none, or no curve is kept."""
    return next(
        (float(point["step"]) for point in run.metrics.get("curve", []) if point["val/loss"] <= loss), None
    )


def said(column: Column, row: Row) -> str:
    """A cell: mean ± half the interval's width; fewer runs than the row has are counted."""
    found = column.value(row)
    if found is None:
        return NOTHING
    width = column.form(found.half).lstrip("+") if column.spread and found.half is not None else None
    count = f" ({found.runs} of {len(row.runs)})" if found.runs < len(row.runs) else ""
    return column.form(found.mean) + (f" ± {width}" if width else "") + count


def seeds(row: Row) -> str:
    return ", ".join(str(run.config["seed"]) for run in row.runs)


def notes(comparison: Comparison) -> list[str]:
    """What a reader has to know of the numbers."""
    runs = [run for row in comparison.rows for run in row.runs]
    said = [f"The runs differ: {line}." for line in comparison.mixed]
    said.append(
        "Mean ± half the width of the 95 % interval over seeds (Student's t); a single seed has none."
    )
    free = any(run.config.get("size.budget") is None for run in runs)
    if free and (apart := ends(runs, "parameters", build.BUDGET_TOLERANCE)):
        said.append(f"The size has no budget, the models aren't equally large: {apart}.")
    if comparison.baseline is not None:
        said.append(f"Against {comparison.baseline.label}: differences of runs of the same seed.")
    if (held := runs[0].metrics.get("val_bytes")) and not comparison.mixed:
        said.append(f"Scores and references are those of {held:,} held-out bytes.")
    machines = {
        (run.metrics.get("device"), run.metrics.get("threads"), run.metrics.get("torch")) for run in runs
    }
    told = [
        f"{device}, {threads} threads, torch {torch}" for device, threads, torch in sorted(machines, key=str)
    ]
    said.append(
        ("Measured on " if len(told) == 1 else "Speeds don't compare, measured on ") + "; ".join(told) + "."
    )
    beside = {name: value for run in runs for name, value in run.metrics.get("reference", {}).items()}
    if beside and not comparison.mixed:
        form = (lambda x: f"{x:.1%}") if comparison.unit == "accuracy" else (lambda x: f"{x:.3f}")
        told = [f"{name} {form(value)}" for name, value in beside.items()]
        said.append(f"Without learning: {', '.join(told)} {comparison.unit}.")
    if any("curve" in run.metrics for run in runs):
        every = sorted({run.config["val_every"] for run in runs})
        said.append(
            f"Steps to a loss are those of a validation, held every {' or '.join(map(str, every))} steps."
        )
    return said


# -- formats


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text."""
    shown = columns(comparison)
    head = ["model", "seeds", *(column.title for column in shown)]
    return head, [
        [row.label, seeds(row), *(said(column, row) for column in shown)] for row in comparison.rows
    ]


def write(comparison: Comparison, out: Path) -> None:
    """comparison.md and comparison.csv."""
    write_text(out / "comparison.md", markdown(comparison))
    write_text(out / "comparison.csv", comma_separated(comparison))


def title(comparison: Comparison) -> str:
    names = [
        sorted({str(row.runs[0].config[f"names.{kind}"]) for row in comparison.rows})
        for kind in ("task", "size")
    ]
    return f"{len(comparison.rows)} models on {', '.join(names[0])}, size {', '.join(names[1])}"


def markdown(comparison: Comparison) -> str:
    head, body = cells(comparison)
    lines = [f"# {title(comparison)}", "", f"    {comparison.command}", ""]
    lines += [table_line(head), table_line(["---"] * len(head)), *map(table_line, body), ""]
    lines += [f"* {note}" for note in notes(comparison)]
    lines += ["", "## Runs", "", table_line(RUN_HEAD), table_line(["---"] * len(RUN_HEAD))]
    lines += [table_line(facts) for facts in run_facts(comparison.rows)]
    lines += ["", *(f"    {words}" for words in commands(comparison))]
    return "\n".join(lines) + "\n"


def commands(comparison: Comparison) -> list[str]:
    """How each row was trained."""
    return [words for row in comparison.rows if (words := command(row))]


def table_line(words: Iterable[str]) -> str:
    return f"| {' | '.join(word.replace('|', chr(92) + '|') for word in words)} |"


def comma_separated(comparison: Comparison) -> str:
    """Plain numbers: mean, half width and how many runs, of every column."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    shown = columns(comparison)
    head = [f"{column.key}{part}" for column in shown for part in ("", "_half_width", "_runs")]
    writer.writerow(["model", "seeds", *head])
    for row in comparison.rows:
        found = [column.value(row) for column in shown]
        flat = [part for one in found for part in (one if one is not None else ("", "", 0))]
        writer.writerow([row.label, seeds(row), *("" if part is None else part for part in flat)])
    return file.getvalue()


def show(comparison: Comparison, out: Path) -> None:
    """What fits a terminal; the rest is in the files."""
    shown = [
        column
        for column in columns(comparison)
        if column.key in ON_TERMINAL or column.key == comparison.score
    ]
    table = Table(
        TableColumn("model", no_wrap=True),
        "seeds",
        *(TableColumn(column.title, justify="right") for column in shown),
        box=box.SIMPLE_HEAD,
        title=title(comparison),
    )
    for row in comparison.rows:
        table.add_row(row.label, seeds(row), *(said(column, row) for column in shown))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)
    for note in notes(comparison):
        print(note)
    print(f"{out / 'index.html'}   {out / 'comparison.md'}   {out / 'comparison.csv'}")
