"""A comparison as Markdown, as CSV and on the terminal."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from zoo.train.comparison.column_types import Column
from zoo.train.comparison.columns import columns
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.facts import facts
from zoo.train.comparison.groups import RunGroup
from zoo.train.comparison.latex import to_latex
from zoo.train.comparison.method_figures import method_tables
from zoo.train.comparison.notes import notes
from zoo.train.comparison.report import Report
from zoo.train.comparison.tables import AGGREGATE_NOTE, aggregate_cells, cells, rate_cells, run_cells
from zoo.train.plotting.terminal import new_table, print_table, table_console
from zoo.train.runs.files import write_text

TERMINAL_COLUMNS = (
    "val/accuracy",
    "solved",
    "steps_to_solve",
    "difference",
    "cant_tell",
    "state_bytes",
    "parameters",
    "steps_to_loss",
)
"""Beside the score; on a narrow terminal the last ones are left out."""


def write(report: Report, commands: Sequence[Sequence[str]], out: Path, latex: bool = False) -> None:
    """Writes comparison.md, with the `commands` that train each comparison's runs again, and comparison.csv,
    and with `latex` comparison.tex."""
    write_text(out / "comparison.md", to_markdown(report, commands))
    write_text(out / "comparison.csv", to_csv(report.comparisons))
    if latex:
        write_text(out / "comparison.tex", to_latex(report))


def to_markdown(report: Report, commands: Sequence[Sequence[str]]) -> str:
    lines = [f"# {report.title}", "", f"    {report.command}"]
    if report.over_tasks:
        lines += ["", *markdown_table(*aggregate_cells(report)), "", f"* {AGGREGATE_NOTE}"]
    several = len(report.comparisons) > 1
    for comparison in report.comparisons:
        if several:
            lines += ["", f"## {comparison.title}"]
        lines += ["", f"{facts(comparison)}.", "", *markdown_table(*cells(comparison)), ""]
        lines += [f"* {note}" for note in notes(comparison)]
        for title, head, rows in method_tables(comparison.groups):
            lines += ["", f"{title}:", "", *markdown_table(head, rows)]
    for comparison, of_comparison in zip(report.comparisons, commands, strict=True):
        lines += ["", f"## Runs{f' on {comparison.subject}' if several else ''}", ""]
        lines += markdown_table(*run_cells(comparison))
        if tried := rate_cells(comparison):
            lines += ["", "Learning rates that were tried:", "", *markdown_table(*tried)]
        lines += ["", *(f"    {command}" for command in of_comparison)]
    return "\n".join(lines) + "\n"


def markdown_table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        for row in (head, ["---"] * len(head), *rows)
    ]


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """Plain numbers, a row of every model: mean, half width and number of runs, where a column has them; of
    several tasks with the task, and empty where a column isn't the task's."""
    rows = [
        {"task": comparison.runs[0].config["names.task"]} | csv_row(group, columns(comparison))
        for comparison in comparisons
        for group in comparison.groups
    ]
    head = list(dict.fromkeys(key for row in rows for key in row))
    if len(comparisons) == 1:
        head.remove("task")
    file = io.StringIO()
    writer = csv.DictWriter(file, head, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def csv_row(group: RunGroup, table_columns: Sequence[Column]) -> dict[str, str]:
    row = {"model": group.label, "seeds": group.seeds}
    for column in table_columns:
        row |= {key: "" if value is None else str(value) for key, value in column.fields(group).items()}
    return row


def show(report: Report, out: Path) -> None:
    """Prints the columns that fit the terminal, and the names of the files with all of them."""
    console = table_console()
    for comparison in report.comparisons:
        console.print(fitting_table(comparison, console.width))
        for note in notes(comparison):
            console.print(note, markup=False)
    if report.over_tasks:
        head, rows = aggregate_cells(report)
        table = new_table(*head, title=report.title)
        for row in rows:
            table.add_row(*row)
        print_table(console, table)
        print(AGGREGATE_NOTE)
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
    cells_of = [[column.text(group) for group in comparison.groups] for column in shown]
    table = new_table("model", "seeds", title=comparison.title)
    for column, column_cells in zip(shown, cells_of, strict=True):
        least = max(map(len, [*column.title.split(), *column_cells]))
        table.add_column(column.title, justify="right", width=least if narrow else None)
    for group, row in zip(comparison.groups, zip(*cells_of, strict=True), strict=True):
        table.add_row(group.label, group.seeds, *row)
    return table
