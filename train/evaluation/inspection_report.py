"""An inspection as terminal tables."""

from rich.console import Console
from rich.table import Column, Table

from zoo.train.evaluation.inspection import Inspection, SegmentView, Text
from zoo.train.plotting.terminal import new_table, print_table

MOST_READ = 5  # tokens that are listed of each layer
AROUND = 12  # tokens shown on each side of one
MEANING = """\
loss, reset: nats per target with the memory of what stands before the segment, and with an empty one
retention: the part of what was remembered before the segment that is left after it
contribution: nats per target of the question that would be lost if the segment weren't read"""


def show(inspection: Inspection, console: Console) -> None:
    text, segments = inspection.text, inspection.segments
    console.print(
        f"{inspection.model} on {text.title}: {len(text.tokens):,} tokens in {len(segments)} segments; "
        f"{len(inspection.question)} targets are asked for, from token {inspection.question[0] + 1:,} on"
    )
    print_table(console, segment_table(inspection))
    console.print(MEANING, style="italic")
    if inspection.reads:
        print_table(console, read_table(inspection))
    if inspection.diagnostics:
        console.print(", ".join(f"{name} {value:.3g}" for name, value in inspection.diagnostics.items()))


def segment_table(inspection: Inspection) -> Table:
    numbers = ("loss", "reset", "retention", "contribution", "state")
    columns = [Column(name, justify="right") for name in ("from", *numbers)]
    table = new_table(*columns, "text")
    for segment in inspection.segments:
        table.add_row(f"{segment.start:,}", *segment_cells(segment), snippet(inspection.text, segment))
    return table


def segment_cells(segment: SegmentView) -> list[str]:
    rms = sum(norm**2 for norm in segment.norms.values()) ** 0.5 / max(len(segment.norms), 1) ** 0.5
    return [
        number(segment.loss, ".3f"),
        number(segment.reset, ".3f"),
        number(segment.retention, ".1%"),
        number(segment.contribution, "+.3f"),
        number(rms if segment.norms else None, ".3g"),
    ]


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def read_table(inspection: Inspection) -> Table:
    head = ("layer", Column("attention", justify="right"), Column("token", justify="right"), "in its context")
    table = new_table(*head, title="read most by the question")
    for layer, mass in inspection.reads.items():
        share = mass.mean(0)
        for token in share.argsort(descending=True)[:MOST_READ].tolist():
            if share[token] > 0:
                table.add_row(layer, f"{share[token]:.1%}", f"{token:,}", in_context(inspection.text, token))
        rest = float(share.sum())
        table.add_row(layer, f"{rest:.1%}", "all", "before the segments of the question")
    return table


def snippet(text: Text, segment: SegmentView, most: int = 32) -> str:
    stop = min(segment.start + segment.tokens, segment.start + most)
    return words(text, segment.start, stop)


def in_context(text: Text, token: int) -> str:
    before, after = words(text, max(0, token - AROUND), token), words(text, token + 1, token + 1 + AROUND)
    return f"{before}⟦{words(text, token, token + 1)}⟧{after}"


def words(text: Text, start: int, stop: int) -> str:
    """Tokens as a reader sees them, in one line; those that aren't text as numbers."""
    codec = text.codec
    shown = codec.decode([token for token in text.tokens[start:stop].tolist() if token != codec.end])
    shown = shown if codec.is_text else shown.strip()
    return "".join(sign if sign.isprintable() else "·" for sign in shown)
