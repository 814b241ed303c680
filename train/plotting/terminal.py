"""Tables on a terminal: one style, and no wider than it is."""

import dataclasses
import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text, TextType

from zoo.terminal import output_width

WIDTH = 180  # columns where the output isn't a terminal and COLUMNS doesn't say
PROSE_WIDTH = 24
"""A column of sentences gets so many columns at least."""
PADDING = 3
"""Spaces of a column, its share of those between columns among them; a table has one more."""


def table_console() -> Console:
    """A console as wide as `COLUMNS` says or the terminal is; text without highlighted numbers."""
    width = None if sys.stdout.isatty() else output_width(WIDTH)  # None: as the terminal is resized
    return Console(width=width, highlight=False)


def new_table(
    *head: str | Column,
    title: TextType | None = None,
    caption: TextType | None = None,
    prose: Sequence[str] = (),
) -> Table:
    """An empty table whose cells are kept whole, but for those of columns named in `prose`: their lines break
    at words."""
    columns = [entry if isinstance(entry, Column) else Column(entry) for entry in head]
    for column in columns:
        column.no_wrap = column.header not in prose
        column.overflow = "fold"
    return Table(
        *columns,
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )


def print_table(console: Console, table: Table) -> None:
    """Prints the table, in parts below each other where the console is too narrow for it, and its caption."""
    for part in parts(table, console.width):
        console.print(part)
    if table.caption:
        console.print(table.caption, style="table.caption")


def parts(table: Table, width: int) -> list[Table]:
    """Tables of at most this width that have all columns between them, and the first column each; rows that
    are empty in all other columns of a part but the first part are left out of it."""
    first, *further = table.columns
    room = width - 1 - least_width(first)
    groups: list[list[Column]] = [[]]
    left = room
    for column in further:
        needed = least_width(column)
        if needed > left and groups[-1]:
            groups.append([])
            left = room
        groups[-1].append(column)
        left -= needed
    shown = [part_of(table, [first, *groups[0]], range(table.row_count), table.title)]
    for columns in groups[1:]:
        rows = [row for row in range(table.row_count) if any(list(column.cells)[row] for column in columns)]
        if rows:
            shown.append(part_of(table, [first, *columns], rows, title=None))
    return shown


def least_width(column: Column) -> int:
    """The columns of a terminal that a table's column needs: its longest word, or line where lines are kept
    whole, with its padding."""
    lines = [line for cell in column.cells for line in plain(cell).splitlines()]
    longest = max(map(cell_len, lines), default=0)
    if not column.no_wrap:
        longest = min(
            longest, max([PROSE_WIDTH, *(cell_len(word) for line in lines for word in line.split())])
        )
    return max(cell_len(plain(column.header)), longest) + PADDING


def plain(cell: object) -> str:
    """A cell's text, without markup."""
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)


def part_of(table: Table, columns: Iterable[Column], rows: Sequence[int], title: TextType | None) -> Table:
    """The table with these columns and rows alone, and without its caption."""
    part = new_table(title=title)
    part.columns = [
        dataclasses.replace(
            column,
            _index=index,
            _cells=[list(column.cells)[row] for row in rows],
            min_width=least_width(column) - PADDING,
        )
        for index, column in enumerate(columns)
    ]
    part.rows = [table.rows[row] for row in rows]
    return part
