"""A comparison as one HTML file that needs nothing else: table, plots, where every number comes from.

It loads nothing (its own policy forbids it), follows the reader's light or dark scheme, and fits a telephone.
"""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo.train.comparison.comparison import (
    EMPTY_CELL,
    RUN_HEAD,
    Comparison,
    columns,
    format_cell,
    notes,
    run_facts,
    seeds,
    sweep_commands,
    title,
)
from zoo.train.comparison.figures import PageFigure, page_figures
from zoo.train.plotting import render
from zoo.train.runs.files import replacing, write_text

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
th, td { padding: .4rem .7rem; text-align: right; vertical-align: top }
td { white-space: nowrap; border-top: 1px solid var(--line) }
th { vertical-align: bottom; font-weight: 600; background: var(--tint); min-width: 5.5rem }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--ground) }
thead th:first-child { background: var(--tint) }
td:first-child { font-weight: 600 }
#runs td, #runs th { text-align: left }
th button { all: unset; cursor: pointer } th button:hover, th button:focus-visible { color: var(--link) }
th[aria-sort] button::after { content: " \\2195"; color: var(--soft) }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
.plots { display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)) }
figure { margin: 0; min-width: 0 } figure.whole { grid-column: 1 / -1 }
figure h2 { margin: .8rem 0 0 } figcaption { margin: .1rem 0 .4rem }
svg { display: block; width: 100%; height: auto; max-width: 40rem }
.beside { display: flex; flex-wrap: wrap; gap: .5rem } .beside > div { flex: 1 1 18rem; max-width: 26rem }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, place) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(one => one.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[place].dataset.value;
    const compared = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b) * (up ? 1 : -1);
    const rows = [...body.rows];  // what isn't known stands last, either way
    rows.sort((a, b) => value(a) === "" ? (value(b) === "" ? 0 : 1) : value(b) === "" ? -1 :
      compared(value(a), value(b)));
    body.append(...rows);
  }));
}
"""

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
<pre>{command}</pre>
<div class="wide">{table}</div>
<ul>
{notes}
</ul>
<div class="plots">
{plots}
</div>
<h2>Runs</h2>
<p>Each run's settings are in the config.yaml of its folder.</p>
<div class="wide">{runs}</div>
<pre>{commands}</pre>
<script>{script}</script>
</body>
</html>
"""


def write(comparison: Comparison, out: Path) -> None:
    """index.html, and a PNG of each plot."""
    drawn = page_figures(comparison)
    write_text(out / "index.html", page(comparison, drawn))
    for picture in drawn:
        with replacing(out / f"{picture.name}.png") as file:
            file.write(render.png(picture.whole))


def page(comparison: Comparison, drawn: Sequence[PageFigure]) -> str:
    return PAGE.format(
        title=html.escape(title(comparison)),
        style=STYLE,
        command=html.escape(comparison.command),
        table=table(comparison),
        notes="\n".join(f"<li>{html.escape(note)}</li>" for note in notes(comparison)),
        plots="\n".join(map(figure, drawn)),
        runs=plain_table("runs", RUN_HEAD, run_facts(comparison.rows)),
        commands=html.escape("\n".join(sweep_commands(comparison))),
        script=SCRIPT,
    )


def table(comparison: Comparison) -> str:
    """Sorted by a click on a column's head; `data-value` is the plain number."""
    shown = columns(comparison)
    head = ["model", "seeds", *(column.title for column in shown)]
    body = []
    for row in comparison.rows:
        values = [row.label, str(len(row.runs))]
        words = [row.label, seeds(row)]
        for column in shown:
            found = column.value(row)
            values.append("" if found is None else repr(found.mean))
            words.append(format_cell(column, row))
        body.append(cells(words, values))
    return (
        '<table id="comparison" class="sortable"><thead><tr>'
        + "".join(
            f'<th aria-sort="none"><button type="button">{html.escape(name)}</button></th>' for name in head
        )
        + "</tr></thead><tbody>\n"
        + "\n".join(body)
        + "\n</tbody></table>"
    )


def cells(words: Iterable[str], values: Iterable[str]) -> str:
    pairs = zip(words, values, strict=True)
    inner = "".join(
        f'<td data-value="{html.escape(value)}">{html.escape(word)}</td>' for word, value in pairs
    )
    return f"<tr>{inner}</tr>"


def plain_table(name: str, head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    heads = "".join(f"<th>{html.escape(word)}</th>" for word in head)
    lines = ("".join(f"<td>{html.escape(word or EMPTY_CELL)}</td>" for word in words) for words in body)
    inner = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table id="{name}"><thead><tr>{heads}</tr></thead><tbody>\n{inner}\n</tbody></table>'


def figure(picture: PageFigure) -> str:
    parts = [
        f'<div role="img" aria-label="{html.escape(f"{picture.title} {part}".strip())}">'
        + render.svg(draw, f"{picture.name}{number}", size)
        + "</div>"
        for number, (part, (draw, size)) in enumerate(picture.parts.items())
    ]
    several, name = len(parts) > 1, html.escape(picture.title)
    inner = f'<div class="beside">{"".join(parts)}</div>' if several else parts[0]
    return (
        f'<figure id="{picture.name}"{" class=whole" if several else ""}><h2>{name}</h2>'
        f"<figcaption>{html.escape(picture.note)}</figcaption>{inner}</figure>"
    )
