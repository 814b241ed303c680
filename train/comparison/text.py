"""A comparison as Markdown, as CSV and on the terminal."""

import csv
import io
import sys
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column as TableColumn
from rich.table import Table

from zoo.train.comparison.comparison import (
    RUN_HEAD,
    Comparison,
    cells,
    columns,
    format_cell,
    notes,
    run_facts,
    seeds,
    sweep_commands,
    title,
)
from zoo.train.plotting.terminal import WIDE
from zoo.train.runs.files import write_text

ON_TERMINAL = ("difference", "parameters", "state_bytes", "steps_to_loss")


def write(comparison: Comparison, out: Path) -> None:
    """comparison.md and comparison.csv."""
    write_text(out / "comparison.md", markdown(comparison))
    write_text(out / "comparison.csv", comma_separated(comparison))


def markdown(comparison: Comparison) -> str:
    head, body = cells(comparison)
    lines = [f"# {title(comparison)}", "", f"    {comparison.command}", ""]
    lines += [table_line(head), table_line(["---"] * len(head)), *map(table_line, body), ""]
    lines += [f"* {note}" for note in notes(comparison)]
    lines += ["", "## Runs", "", table_line(RUN_HEAD), table_line(["---"] * len(RUN_HEAD))]
    lines += [table_line(facts) for facts in run_facts(comparison.rows)]
    lines += ["", *(f"    {words}" for words in sweep_commands(comparison))]
    return "\n".join(lines) + "\n"


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
        table.add_row(row.label, seeds(row), *(format_cell(column, row) for column in shown))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)
    for note in notes(comparison):
        print(note)
    print(f"{out / 'index.html'}   {out / 'comparison.md'}   {out / 'comparison.csv'}")
