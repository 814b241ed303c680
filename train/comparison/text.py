"""A comparison as Markdown, as CSV and on the terminal."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

from zoo.train.comparison.columns import cells, columns, format_cell, run_cells
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.notes import notes
from zoo.train.comparison.reproduce import sweep_commands
from zoo.train.plotting.terminal import table_console
from zoo.train.runs.files import write_text

TERMINAL_COLUMNS = ("val/accuracy", "difference", "state_bytes", "parameters", "steps_to_loss")
"""Beside the score; on a narrow terminal the last ones are left out."""


def write(comparison: Comparison, out: Path) -> None:
    """Writes comparison.md and comparison.csv."""
    write_text(out / "comparison.md", to_markdown(comparison))
    write_text(out / "comparison.csv", to_csv(comparison))


def to_markdown(comparison: Comparison) -> str:
    head, rows = cells(comparison)
    lines = [f"# {comparison.title}", "", f"    {comparison.command}", ""]
    lines += [*markdown_table(head, rows), ""]
    lines += [f"* {note}" for note in notes(comparison)]
    lines += ["", "## Runs", "", *markdown_table(*run_cells(comparison))]
    lines += ["", *(f"    {command}" for command in sweep_commands(comparison.groups))]
    return "\n".join(lines) + "\n"


def markdown_table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        for row in (head, ["---"] * len(head), *rows)
    ]


def to_csv(comparison: Comparison) -> str:
    """Plain numbers: mean, half width and number of runs, of every column."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    table_columns = columns(comparison)
    head = [f"{column.key}{part}" for column in table_columns for part in ("", "_half_width", "_runs")]
    writer.writerow(["model", "seeds", *head])
    for group in comparison.groups:
        row = [group.label, group.seeds]
        for column in table_columns:
            estimate = column.estimate(group)
            values = ("", "", 0) if estimate is None else estimate
            row += ["" if value is None else str(value) for value in values]
        writer.writerow(row)
    return file.getvalue()


def show(comparison: Comparison, out: Path) -> None:
    """Prints the columns that fit the terminal, and the names of the files with all of them."""
    console = table_console()
    console.print(fitting_table(comparison, console.width))
    for note in notes(comparison):
        print(note)
    print(f"all columns: {out / 'index.html'}   {out / 'comparison.md'}   {out / 'comparison.csv'}")


def fitting_table(comparison: Comparison, width: int) -> Table:
    """A table of at most this width, if the score alone fits it: heads are wrapped where needed, but no cell,
    and of TERMINAL_COLUMNS the last ones are left out."""
    table = terminal_table(comparison, TERMINAL_COLUMNS)
    for count in range(len(TERMINAL_COLUMNS), -1, -1):
        if table_width(table) <= width:
            break
        table = terminal_table(comparison, TERMINAL_COLUMNS[:count], narrow=True)
    return table


def table_width(table: Table) -> int:
    console = Console(width=1000)
    return Measurement.get(console, console.options, table).maximum


def terminal_table(comparison: Comparison, keys: Sequence[str], narrow: bool = False) -> Table:
    """The score and the columns with these keys; if `narrow` no wider than a cell or a word of the head."""
    shown = [column for column in columns(comparison) if column.key in (comparison.score, *keys)]
    cells_of = [[format_cell(column, group) for group in comparison.groups] for column in shown]
    table = Table(
        Column("model", no_wrap=True),
        Column("seeds", no_wrap=True),
        box=box.SIMPLE_HEAD,
        title=comparison.title,
    )
    for column, column_cells in zip(shown, cells_of, strict=True):
        least = max(map(len, [*column.title.split(), *column_cells]))
        table.add_column(column.title, justify="right", width=least if narrow else None)
    for group, row in zip(comparison.groups, zip(*cells_of, strict=True), strict=True):
        table.add_row(group.label, group.seeds, *row)
    return table
