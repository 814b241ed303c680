"""Tables of an evaluation, for the terminal."""

from typing import Any

from rich.table import Table

from zoo.train.evaluation.results import (
    EvalEntry,
    EvalResult,
    axes_of,
    format_value,
    losses,
    memory_gain,
    memory_mode,
    multiple_targets,
)
from zoo.train.plotting.charts import bucket, short


# -- what a person sees --------------------------------------------------------------------------------------
def tables(entry: EvalEntry) -> list[Table]:
    """All rows of an entry."""
    if entry["unit"] == "bits per byte":
        return [_text_table(entry), _position_table(entry)]
    grid = any({"length", "depth"} <= row["axes"].keys() for row in entry["results"])
    return [_grid(entry) if grid else _sample_table(entry)]


def format_share(measured: dict[str, Any]) -> tuple[str, str]:
    """A share and its interval, in per cent."""
    return f"{measured['share']:.1%}", f"{measured['low']:.1%} to {measured['high']:.1%}"


def _sample_table(entry: EvalEntry) -> Table:
    axes, rows, more = axes_of(entry), entry["results"], multiple_targets(entry["results"])
    head = [*axes, "samples", "exact" if more else "accuracy", "95 % interval", *["per target"] * more]
    scores = list(dict.fromkeys(name for row in rows for name in row.get("scores", {})))
    head += scores
    shown = Table(*head, "tokens read/s", "peak memory", title=entry["title"], caption=_caption(entry))
    for row in rows:
        cells = [format_value(row["axes"].get(axis)) for axis in axes]
        cost = f"{row['tokens_per_s']:,.0f}", f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB"
        means = [f"{row['scores'][name]:.1%}" if name in row.get("scores", {}) else "" for name in scores]
        shown.add_row(*cells, *_shares(row, more), *means, *cost)
        for name, members in row["groups"].items() if len(rows) == 1 else ():
            shown.add_section()
            for member in members:
                blank, label = [""] * len(axes), f"{name} {format_value(member['value'])}"
                shown.add_row(*blank, *_shares(member, more), *[""] * len(scores), label)
    return shown


def _shares(row: EvalResult, more: bool) -> list[str]:
    exact = row["exact"]
    return [f"{exact['of']:,}", *format_share(exact), *[format_share(row["targets"])[0]] * more]


def _caption(entry: EvalEntry) -> str:
    """What is reached without learning; of targets, not of whole samples."""
    reference = entry["results"][-1]["reference"].items() if entry["results"] else ()
    said = ", ".join(f"{name} {value:.1%}" for name, value in reference)
    return f"learning nothing{' (per target)' * multiple_targets(entry['results'])}: {said}" if said else ""


def _grid(entry: EvalEntry) -> Table:
    """Depth down, length across: exact match and its interval in per cent."""
    rows = [row for row in entry["results"] if {"length", "depth"} <= row["axes"].keys()]
    lengths = sorted({row["axes"]["length"] for row in rows})
    head = [f"{short(length)} tokens" for length in lengths]
    shown = Table(
        "depth", *head, title=f"{entry['title']}: exact match, 95 % interval", caption=_caption(entry)
    )
    by_place = {(row["axes"]["length"], row["axes"]["depth"]): row for row in rows}
    for depth in sorted({row["axes"]["depth"] for row in rows}):
        cells = [by_place.get((length, depth)) for length in lengths]
        shown.add_row(f"{depth:g} %", *(_brief(cell["exact"]) if cell else "" for cell in cells))
    return shown


def _brief(measured: dict[str, Any]) -> str:
    return f"{measured['share']:.0%}\n{100 * measured['low']:.0f}-{100 * measured['high']:.0f}"


def _text_table(entry: EvalEntry) -> Table:
    rows = entry["results"]
    reference = ", ".join(f"{name} {value:.3f}" for name, value in rows[-1]["reference"].items())
    said = [f"bits per byte there: {reference}"] * bool(reference)
    said += [f"perplexity per {rows[-1]['word_unit']}"] * ("word_unit" in rows[-1])
    head = ("read with", "bytes", "bits per byte", "word perplexity", "tokens asked/s")
    shown = Table(*head, title=entry["title"], caption="; ".join(said))
    for row in rows:
        words = _perplexity(row["word_perplexity"]) if "word_perplexity" in row else ""
        cells = f"{row['bytes']:,}", f"{row['bits_per_byte']:.4f}", words, f"{row['tokens_per_s']:,.0f}"
        shown.add_row(memory_mode(row["axes"]), *cells)
    return shown


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def _position_table(entry: EvalEntry) -> Table:
    """Loss by bucket, and what the memory is worth: how much is lost where it is reset."""
    rows = entry["results"]
    shown = Table("position", title="nats per token by position in the document")
    for row in rows:
        shown.add_column(memory_mode(row["axes"]))
    pairs = memory_gain(rows)
    if pairs:
        shown.add_column("memory is worth")
    every = [losses(row) for row in rows]
    for edge in sorted({edge for here in every for edge in here}, key=lambda pair: pair[0]):
        cells = [f"{here[edge]:.4f}" if edge in here else "" for here in every]
        shown.add_row(bucket(*edge), *cells, *[f"{pairs[edge]:+.4f}" if edge in pairs else ""] * bool(pairs))
    return shown
