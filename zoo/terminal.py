"""The width of what is printed, and help pages that keep to it; nothing but Python's own modules."""

import os
import re
import shutil
import sys
import textwrap
from typing import NamedTuple

ENTRY = re.compile(r"(?P<indent> *)(?P<head>\S+(?: \S+)*?)(?P<gap> {2,})(?P<text>\S.*)")


def output_width(default: int) -> int:
    """Columns of standard output: those of `COLUMNS`, else of the terminal, else the default."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else default


class Paragraph(NamedTuple):
    """Words that wrap together: below an entry's head they begin at its text's column."""

    indent: int
    head: str
    column: int
    words: list[str]

    def takes(self, indent: int) -> bool:
        """True if a line at this indent goes on with the paragraph."""
        return indent > self.indent if self.head else indent == self.indent

    def render(self, width: int) -> str:
        text, first = " ".join(self.words), " " * self.indent
        if not self.head:
            return wrap(text, width, first, first)
        if self.column > width // 2:  # no room beside the head
            below = " " * (self.indent + 4)
            return f"{first}{self.head}\n{wrap(text, width, below, below)}"
        return wrap(text, width, f"{first}{self.head}".ljust(self.column), " " * self.column)


def wrap(text: str, width: int, first: str, further: str) -> str:
    """Lines that break at spaces alone: a path, a key or a command's argument stays whole."""
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def reflow(page: str, width: int) -> str:
    """A page of paragraphs and of entries `head  text`, with no line longer than the width allows.

    A page that fits is returned as it stands.
    """
    if max(map(len, page.splitlines()), default=0) <= width:
        return page
    result: list[str] = []
    current: Paragraph | None = None
    for line in [*page.splitlines(), ""]:
        indent = len(line) - len(line.lstrip())
        if current and line.strip() and current.takes(indent) and not starts_entry(line):
            current.words.append(line.strip())
            continue
        if current:
            result.append(current.render(width))
        current = paragraph(line) if line.strip() else None
        if not current:
            result.append("")
    return "\n".join(result[:-1] if page[-1:] != "\n" else result)


def starts_entry(line: str) -> re.Match[str] | None:
    """An entry's line; two spaces after a full stop are none."""
    match = ENTRY.fullmatch(line)
    is_sentence = match and len(match["gap"]) == 2 and match["head"][-1] in ".?!"
    return None if is_sentence else match


def paragraph(line: str) -> Paragraph:
    if match := starts_entry(line):
        return Paragraph(len(match["indent"]), match["head"], match.start("text"), [match["text"]])
    indent = len(line) - len(line.lstrip())
    return Paragraph(indent, "", indent, [line.strip()])
