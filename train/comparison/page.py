"""A comparison as one HTML file: table, plots, origin of every number.

The page loads nothing (its security policy forbids it), follows the reader's light or dark scheme, and fits a
phone.
"""

import html
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo.train.comparison.column_types import EMPTY_CELL
from zoo.train.comparison.columns import columns
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.facts import facts
from zoo.train.comparison.figures import PageFigure, page_figures
from zoo.train.comparison.method_figures import method_tables
from zoo.train.comparison.notes import notes
from zoo.train.comparison.report import Report
from zoo.train.comparison.tables import AGGREGATE_NOTE, aggregate_cells, rate_cells, run_cells
from zoo.train.plotting import render
from zoo.train.runs.files import atomic_write, write_text

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --ground: #ffffff; --soft: #5d6873; --line: #d9dee3;
  --tint: #f4f6f8; --link: #1f66b0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --ground: #14181c; --soft: #9aa6b2;
  --line: #333b44; --tint: #1d2329; --link: #7db7f0 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1rem clamp(.8rem, 3vw, 2rem) 3rem; color: var(--ink);
  background: var(--ground); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p, li, figcaption { color: var(--soft); font-size: .9rem } ul { padding-left: 1.2rem; margin: .6rem 0 }
code, pre { font: .85rem/1.45 ui-monospace, monospace }
pre { background: var(--tint); padding: .6rem .8rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: .5rem 0 }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .5rem; text-align: right; vertical-align: top }
td { white-space: nowrap; border-top: 1px solid var(--line) }
th { vertical-align: bottom; font-weight: 600; background: var(--tint); min-width: 5rem }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--ground) }
thead th:first-child { background: var(--tint) }
td:first-child, td.best { font-weight: 600 }
.plain td, .plain th { text-align: left }
th button { all: unset; cursor: pointer } th button:hover, th button:focus-visible { color: var(--link) }
th[aria-sort] button::after { content: "\\00a0\\2195"; color: var(--soft) }
th[aria-sort=ascending] button::after { content: "\\00a0\\2191" }
th[aria-sort=descending] button::after { content: "\\00a0\\2193" }
.plots { display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)) }
figure { margin: 0; min-width: 0 } figure.full { grid-column: 1 / -1 }
figure h2 { margin: .8rem 0 0 } figcaption { margin: .1rem 0 .4rem }
svg { display: block; width: 100%; height: auto; max-width: 40rem }
.beside { display: flex; flex-wrap: wrap; gap: .5rem } .beside > div { flex: 1 1 18rem; max-width: 26rem }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(head => head.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value;
    const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b) * (ascending ? 1 : -1);
    const rows = [...body.rows];  // rows without a value are last in either order
    rows.sort((a, b) => value(a) === "" ? (value(b) === "" ? 0 : 1) : value(b) === "" ? -1 :
      compare(value(a), value(b)));
    body.append(...rows);
  }));
}
"""

BEST_NOTE = "Bold: the best mean of a column, whether or not the difference is more than chance."

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{sections}
<h2>This page again</h2>
<pre id="command">{command}</pre>
<script>{script}</script>
</body>
</html>
"""


SECTION = """<section>
{heading}
<p>{facts}</p>
<div class="wide">{table}</div>
<ul>
{notes}
</ul>
{methods}
<div class="plots">
{plots}
</div>
<h2>Runs</h2>
<p>Each run's settings are in the config.yaml of its folder.</p>
<div class="wide">{runs}</div>
{rates}
<h2>These runs again</h2>
<pre>{commands}</pre>
</section>
"""


def write(report: Report, commands: Sequence[Sequence[str]], out: Path, formats: Sequence[str]) -> None:
    """Writes index.html, with the `commands` that train each comparison's runs again, and each figure in
    these formats: png, pdf, svg."""
    figures = [figures_of(report, comparison) for comparison in report.comparisons]
    write_text(out / "index.html", page(report, figures, commands))
    for figure, kind in itertools.product(itertools.chain(*figures), formats):
        with atomic_write(out / f"{figure.name}.{kind}") as file:
            file.write(render.document(figure.draw, kind))


def figures_of(report: Report, comparison: Comparison) -> list[PageFigure]:
    """The figures of a comparison; of several tasks with the task in their names."""
    figures = page_figures(comparison)
    if len(report.comparisons) == 1:
        return figures
    task = comparison.runs[0].config["names.task"]
    return [figure._replace(name=f"{task}-{figure.name}") for figure in figures]


def page(report: Report, figures: Sequence[Sequence[PageFigure]], commands: Sequence[Sequence[str]]) -> str:
    """`figures` and `commands` of each comparison."""
    several = len(report.comparisons) > 1
    sections = [
        section(comparison, of_task, again, str(index) if index else "", several)
        for index, (comparison, of_task, again) in enumerate(
            zip(report.comparisons, figures, commands, strict=True)
        )
    ]
    if report.over_tasks:
        table = plain_table("tasks", *aggregate_cells(report))
        sections.insert(0, f'<div class="wide">{table}</div>\n<p>{html.escape(AGGREGATE_NOTE)}</p>')
    return PAGE.format(
        title=html.escape(report.title),
        style=STYLE,
        command=html.escape(report.command),
        sections="\n".join(sections),
        script=SCRIPT,
    )


def section(
    comparison: Comparison,
    figures: Sequence[PageFigure],
    commands: Sequence[str],
    suffix: str,
    has_heading: bool,
) -> str:
    """`suffix` of the ids of its tables."""
    rates = rate_cells(comparison)
    table = "" if rates is None else f'<div class="wide">{plain_table(f"rates{suffix}", *rates)}</div>'
    return SECTION.format(
        heading=f"<h1>{html.escape(comparison.title)}</h1>" if has_heading else "",
        facts=html.escape(facts(comparison)),
        table=sortable_table(comparison, f"comparison{suffix}"),
        notes="\n".join(f"<li>{html.escape(note)}</li>" for note in [*notes(comparison), BEST_NOTE]),
        methods="\n".join(
            f'<h2>{html.escape(table.title)}</h2>\n<div class="wide">'
            f"{plain_table(f'methods-table{suffix}-{index}', table.head, table.rows)}</div>"
            for index, table in enumerate(method_tables(comparison.groups))
        ),
        plots="\n".join(map(figure_element, figures)),
        runs=plain_table(f"runs{suffix}", *run_cells(comparison)),
        rates=f"<h2>Learning rates that were tried</h2>\n{table}" if table else "",
        commands=html.escape("\n".join(commands)),
    )


def sortable_table(comparison: Comparison, name: str) -> str:
    """A click on a column's head sorts by `data-value`, the plain number."""
    table_columns = columns(comparison)
    head = ["model", "seeds", *(column.title for column in table_columns)]
    best = [column.best(comparison.groups) for column in table_columns]
    rows = []
    for group in comparison.groups:
        values = [group.label, str(len(group.runs))]
        values += ["" if (value := column.value(group)) is None else str(value) for column in table_columns]
        cells = [group.label, group.seeds, *(column.text(group) for column in table_columns)]
        marks = [False, False, *(group.label in labels for labels in best)]
        rows.append(table_row(cells, values, marks))
    buttons = (
        f'<th aria-sort="none"><button type="button">{html.escape(title)}</button></th>' for title in head
    )
    return (
        f'<table id="{name}" class="sortable"><thead><tr>{"".join(buttons)}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table>"
    )


def table_row(cells: Iterable[str], values: Iterable[str], marks: Iterable[bool]) -> str:
    elements = (
        f'<td{" class=best" if is_best else ""} data-value="{html.escape(value)}">{html.escape(cell)}</td>'
        for cell, value, is_best in zip(cells, values, marks, strict=True)
    )
    return f"<tr>{''.join(elements)}</tr>"


def plain_table(name: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    lines = ("".join(f"<td>{html.escape(cell or EMPTY_CELL)}</td>" for cell in row) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<table id="{name}" class="plain"><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table>'
    )


def figure_element(figure: PageFigure) -> str:
    panels = [
        f'<div role="img" aria-label="{html.escape(f"{figure.title} {name}".strip())}">'
        + render.svg(draw, f"{figure.name}{index}", size)
        + "</div>"
        for index, (name, (draw, size)) in enumerate(figure.panels.items())
    ]
    style, content = "", panels[0]
    if len(panels) > 1:
        style, content = " class=full", f'<div class="beside">{"".join(panels)}</div>'
    return (
        f'<figure id="{figure.name}"{style}><h2>{html.escape(figure.title)}</h2>'
        f"<figcaption>{html.escape(figure.caption)}</figcaption>{content}</figure>"
    )
