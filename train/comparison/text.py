"""A comparison as Markdown, as CSV and on the terminal."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.table import Column, Table

from zoo.train.comparison.columns import cells, columns, format_cell, run_cells
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.notes import notes
from zoo.train.comparison.reproduce import sweep_commands
from zoo.train.plotting.terminal import table_console
from zoo.train.runs.files import write_text

TERMINAL_COLUMNS = ("difference", "val/accuracy", "parameters", "state_bytes", "steps_to_loss")


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
    """Prints the columns that fit a terminal, and the names of the files with all of them."""
    keys = (comparison.score, *TERMINAL_COLUMNS)
    table_columns = [column for column in columns(comparison) if column.key in keys]
    table = Table(
        Column("model", no_wrap=True),
        "seeds",
        *(Column(column.title, justify="right") for column in table_columns),
        box=box.SIMPLE_HEAD,
        title=comparison.title,
    )
    for group in comparison.groups:
        table.add_row(group.label, group.seeds, *(format_cell(column, group) for column in table_columns))
    table_console().print(table)
    for note in notes(comparison):
        print(note)
    print(f"{out / 'index.html'}   {out / 'comparison.md'}   {out / 'comparison.csv'}")
