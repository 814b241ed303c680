"""evaluation.json: all that was ever measured of a finished run, one object.

    run, model, task, size, seed …      the run itself: where it was trained
    evaluations: [                      one per task, settings, split, checkpoint and architecture
      task, version, settings, split, checkpoint, step, tokens_seen, unit, label, title
      read_by, reading                another architecture, and its settings that the run hasn't; else null
      results: [                        one per point of the axes
        axes                            {"length": 4000, "depth": 50} of samples; {"memory": "kept"} of text
        samples, exact, targets, groups, reference …     shares with hits, of and their 95 % interval
        scores                                           means of what else the task says of a sample
        nats, tokens, bytes, bits_per_byte, word_perplexity, by_position …              of text
        tokens_per_s                    positions read, and with a sliding window those asked
        peak_memory_bytes               while it was measured; peak_so_far: of all before it too
        asked, device, commit, date ] ]

What is measured again takes the place of what was there; all else stays.
"""

import json
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from zoo.errors import UserError
from zoo.train import figures
from zoo.train.figures import Buckets, Number, Shares, bucket, short
from zoo.train.files import write_text
from zoo.train.measuring import share

FILE = "evaluation.json"
FORMAT = 1

Entry = dict[str, Any]
Row = dict[str, Any]


class Evaluations:
    """The file of one run, written whole after every row."""

    def __init__(self, path: Path, whole: dict[str, Any]) -> None:
        self.path, self.whole = path, whole

    def entry(self, identity: dict[str, Any], label: str, title: str) -> Entry:
        """The entry of these very settings, with what it holds already, or a new one."""
        for entry in self.whole["evaluations"]:
            if all(entry.get(key) == value for key, value in identity.items()):
                return entry
        return {**identity, "label": label, "title": title, "results": []}

    def put(self, entry: Entry, row: Row) -> None:
        """Keep a row: in the place of one at the same axes, else in the order of the axes."""
        rows = [old for old in entry["results"] if old["axes"] != row["axes"]] + [row]
        entry["results"] = sorted(
            rows, key=lambda one: [(isinstance(v, str), v) for v in one["axes"].values()]
        )
        if not any(entry is one for one in self.whole["evaluations"]):
            self.whole["evaluations"].append(entry)
        write_text(self.path, json.dumps(self.whole, indent=1) + "\n")


def opened(path: Path, facts: dict[str, Any]) -> Evaluations:
    """The file as it stands, or an empty one, with what there is to say of the run.

    UserError: something else lies there, which is left alone.
    """
    evaluations = read(path)["evaluations"] if path.exists() else []
    return Evaluations(path, {"format": FORMAT, **facts, "evaluations": evaluations})


def read(path: Path) -> dict[str, Any]:
    """UserError unless it is an evaluation.json."""
    try:
        whole = json.loads(path.read_text())
        shown = whole["format"], [(entry["label"], entry["results"]) for entry in whole["evaluations"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no evaluation of the zoo's: move it out of the way") from error
    if shown[0] != FORMAT:
        raise UserError(f"{path}: expected format {FORMAT}, found {shown[0]!r}")
    return whole


def axes_of(entry: Entry) -> list[str]:
    """Names of the axes that its rows vary."""
    return list(dict.fromkeys(name for row in entry["results"] for name in row["axes"]))


def pooled(rows: list[Row], axis: str, kind: str = "exact") -> Shares:
    """Shares at every point of one axis, over all there is of the others."""
    totals: dict[Number, list[int]] = {}
    for row in rows:
        if axis in row["axes"]:
            total = totals.setdefault(row["axes"][axis], [0, 0])
            total[0] += row[kind]["hits"]
            total[1] += row[kind]["of"]
    return {point: share(*total) for point, total in sorted(totals.items())}


# -- what a person sees --------------------------------------------------------------------------------------


def tables(entry: Entry) -> list[Table]:
    """All rows of an entry."""
    if entry["unit"] == "bits per byte":
        return [_text_table(entry), _position_table(entry)]
    grid = any({"length", "depth"} <= row["axes"].keys() for row in entry["results"])
    return [_grid(entry) if grid else _sample_table(entry)]


def words_of(measured: dict[str, Any]) -> tuple[str, str]:
    """A share and its interval, in per cent."""
    return f"{measured['share']:.1%}", f"{measured['low']:.1%} to {measured['high']:.1%}"


def _sample_table(entry: Entry) -> Table:
    axes, rows, more = axes_of(entry), entry["results"], several(entry["results"])
    head = [*axes, "samples", "exact" if more else "accuracy", "95 % interval", *["per target"] * more]
    scores = list(dict.fromkeys(name for row in rows for name in row.get("scores", {})))
    head += scores
    shown = Table(*head, "tokens read/s", "peak memory", title=entry["title"], caption=_caption(entry))
    for row in rows:
        cells = [_plain(row["axes"].get(axis)) for axis in axes]
        cost = f"{row['tokens_per_s']:,.0f}", f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB"
        means = [f"{row['scores'][name]:.1%}" if name in row.get("scores", {}) else "" for name in scores]
        shown.add_row(*cells, *_shares(row, more), *means, *cost)
        for name, members in row["groups"].items() if len(rows) == 1 else ():
            shown.add_section()
            for member in members:
                blank, label = [""] * len(axes), f"{name} {_plain(member['value'])}"
                shown.add_row(*blank, *_shares(member, more), *[""] * len(scores), label)
    return shown


def _shares(row: Row, more: bool) -> list[str]:
    exact = row["exact"]
    return [f"{exact['of']:,}", *words_of(exact), *[words_of(row["targets"])[0]] * more]


def _caption(entry: Entry) -> str:
    """What is reached without learning; of targets, not of whole samples."""
    reference = entry["results"][-1]["reference"].items() if entry["results"] else ()
    said = ", ".join(f"{name} {value:.1%}" for name, value in reference)
    return f"learning nothing{' (per target)' * several(entry['results'])}: {said}" if said else ""


def _grid(entry: Entry) -> Table:
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


def _text_table(entry: Entry) -> Table:
    rows = entry["results"]
    reference = ", ".join(f"{name} {value:.3f}" for name, value in rows[-1]["reference"].items())
    said = [f"bits per byte there: {reference}"] * bool(reference)
    said += [f"perplexity per {rows[-1]['word_unit']}"] * ("word_unit" in rows[-1])
    head = ("read with", "bytes", "bits per byte", "word perplexity", "tokens asked/s")
    shown = Table(*head, title=entry["title"], caption="; ".join(said))
    for row in rows:
        words = _perplexity(row["word_perplexity"]) if "word_perplexity" in row else ""
        cells = f"{row['bytes']:,}", f"{row['bits_per_byte']:.4f}", words, f"{row['tokens_per_s']:,.0f}"
        shown.add_row(way_of(row["axes"]), *cells)
    return shown


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def _position_table(entry: Entry) -> Table:
    """Loss by bucket, and what the memory is worth: how much is lost where it is reset."""
    rows = entry["results"]
    shown = Table("position", title="nats per token by position in the document")
    for row in rows:
        shown.add_column(way_of(row["axes"]))
    pairs = worth(rows)
    if pairs:
        shown.add_column("memory is worth")
    every = [losses(row) for row in rows]
    for edge in sorted({edge for here in every for edge in here}, key=lambda pair: pair[0]):
        cells = [f"{here[edge]:.4f}" if edge in here else "" for here in every]
        shown.add_row(bucket(*edge), *cells, *[f"{pairs[edge]:+.4f}" if edge in pairs else ""] * bool(pairs))
    return shown


def worth(rows: list[Row]) -> Buckets:
    """By position, the loss with the memory reset less that with the memory kept, both over the same text."""
    ways = {json.dumps(row["axes"]): losses(row) for row in rows}
    for row in rows:
        kept = ways.get(json.dumps({**row["axes"], "memory": "kept"}))
        if row["axes"]["memory"] == "reset" and kept is not None:
            reset = losses(row)
            return {edge: reset[edge] - kept[edge] for edge in reset if edge in kept}
    return {}


def way_of(axes: dict[str, Any]) -> str:
    """How a row of text was read."""
    way = {"kept": "memory kept", "reset": "memory reset at every segment"}.get(axes["memory"], "")
    if axes["memory"] == "sliding":
        way = f"window of {axes['context']:,}, stride {axes['stride']:,}"
    return f"{way}, first {axes['first']:,}" if "first" in axes else way


def _plain(value: Any) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )


# -- what is drawn of it -------------------------------------------------------------------------------------


def drawn(entry: Entry, trained_at: Number | None) -> dict[str, Figure]:
    """Figures of an entry by a name for their files."""
    name, title = re.sub(r"[^\w.=-]+", "-", entry["label"]).strip("-"), entry["title"]
    rows, axes = entry["results"], axes_of(entry)
    if entry["unit"] == "bits per byte":
        texts = {way_of(row["axes"]): losses(row) for row in rows}
        return {f"{name}-loss-by-position": figures.by_position(texts, title)}
    kinds = {"exact": "exact match", "targets": "per target"} if several(rows) else {"exact": "accuracy"}
    made = {}
    grid = [row for row in rows if {"length", "depth"} <= row["axes"].keys()]
    if grid:
        maps = {said: [{**row, "exact": row[kind]} for row in grid] for kind, said in kinds.items()}
        made[f"{name}-grid"] = figures.heat_maps(maps, f"{title}: accuracy in %")
    reference = {f"{who}{', per target' * several(rows)}": v for who, v in rows[-1]["reference"].items()}
    for axis in axes:
        series = {said: pooled(rows, axis, kind) for kind, said in kinds.items()}
        over = "".join(f", all {other}s together" for other in axes if other != axis)
        made[f"{name}-by-{axis}"] = figures.by_axis(series, axis, title + over, reference, trained_at)
    for group, members in rows[0]["groups"].items() if len(rows) == 1 else ():
        made[f"{name}-by-{group}"] = figures.by_group(members, group, title, reference)
    return made


def losses(row: Row) -> Buckets:
    """Loss by bucket of positions."""
    return {(part["from"], part["to"]): part["loss"] for part in row["by_position"]}


def several(rows: list[Row]) -> bool:
    """Whether a sample has more than one target."""
    return any(row["targets"]["of"] != row["exact"]["of"] for row in rows)
