"""A comparison's tables for LaTeX, with the package booktabs; the best of each column is bold."""

import re
from collections.abc import Iterable

from zoo.train.comparison.columns import columns
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.facts import facts
from zoo.train.comparison.report import Report
from zoo.train.comparison.tables import cells

ESCAPES = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "∞": r"$\infty$",
        "<": "$<$",
        ">": "$>$",
    }
)


def to_latex(report: Report) -> str:
    """A tabular of each comparison, below comments with its title and its command."""
    lines = [f"% {report.command}", "% needs \\usepackage{booktabs}"]
    for comparison in report.comparisons:
        lines += [f"% {comparison.title}: {facts(comparison)}", *tabular(comparison)]
    return "\n".join(lines) + "\n"


def tabular(comparison: Comparison) -> list[str]:
    head, rows = cells(comparison)
    best = [set(), set(), *(column.best(comparison.groups) for column in columns(comparison))]
    body = [
        [
            f"\\textbf{{{escape(cell)}}}" if group.label in labels else escape(cell)
            for cell, labels in zip(row, best, strict=True)
        ]
        for group, row in zip(comparison.groups, rows, strict=True)
    ]
    return [
        f"\\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
        r"\toprule",
        table_line(map(escape, head)),
        r"\midrule",
        *map(table_line, body),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def table_line(row: Iterable[str]) -> str:
    return " & ".join(row) + r" \\"


def escape(text: str) -> str:
    """Text that LaTeX prints as it is, with a minus before a negative number."""
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", text.translate(ESCAPES))
