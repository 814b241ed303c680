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
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.train.evaluation.intervals import share
from zoo.train.plotting.charts import Buckets, Number, Shares
from zoo.train.runs.files import write_text

FILE = "evaluation.json"
FORMAT = 1
EvalEntry = dict[str, Any]
EvalResult = dict[str, Any]


class Evaluations:
    """The file of one run, written whole after every row."""

    def __init__(self, path: Path, whole: dict[str, Any]) -> None:
        self.path, self.whole = path, whole

    def entry(self, identity: dict[str, Any], label: str, title: str) -> EvalEntry:
        """The entry of these very settings, with what it holds already, or a new one."""
        for entry in self.whole["evaluations"]:
            if all(entry.get(key) == value for key, value in identity.items()):
                return entry
        return {**identity, "label": label, "title": title, "results": []}

    def put(self, entry: EvalEntry, row: EvalResult) -> None:
        """Keep a row: in the place of one at the same axes, else in the order of the axes."""
        rows = [old for old in entry["results"] if old["axes"] != row["axes"]] + [row]
        entry["results"] = sorted(
            rows, key=lambda one: [(isinstance(v, str), v) for v in one["axes"].values()]
        )
        if not any(entry is one for one in self.whole["evaluations"]):
            self.whole["evaluations"].append(entry)
        write_text(self.path, json.dumps(self.whole, indent=1) + "\n")


def load_or_create(path: Path, facts: dict[str, Any]) -> Evaluations:
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


def axes_of(entry: EvalEntry) -> list[str]:
    """Names of the axes that its rows vary."""
    return list(dict.fromkeys(name for row in entry["results"] for name in row["axes"]))


def pooled(rows: list[EvalResult], axis: str, kind: str = "exact") -> Shares:
    """Shares at every point of one axis, over all there is of the others."""
    totals: dict[Number, list[int]] = {}
    for row in rows:
        if axis in row["axes"]:
            total = totals.setdefault(row["axes"][axis], [0, 0])
            total[0] += row[kind]["hits"]
            total[1] += row[kind]["of"]
    return {point: share(*total) for point, total in sorted(totals.items())}


def memory_gain(rows: list[EvalResult]) -> Buckets:
    """By position, the loss with the memory reset less that with the memory kept, both over the same text."""
    ways = {json.dumps(row["axes"]): losses(row) for row in rows}
    for row in rows:
        kept = ways.get(json.dumps({**row["axes"], "memory": "kept"}))
        if row["axes"]["memory"] == "reset" and kept is not None:
            reset = losses(row)
            return {edge: reset[edge] - kept[edge] for edge in reset if edge in kept}
    return {}


def memory_mode(axes: dict[str, Any]) -> str:
    """How a row of text was read."""
    way = {"kept": "memory kept", "reset": "memory reset at every segment"}.get(axes["memory"], "")
    if axes["memory"] == "sliding":
        way = f"window of {axes['context']:,}, stride {axes['stride']:,}"
    return f"{way}, first {axes['first']:,}" if "first" in axes else way


def format_value(value: Any) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def losses(row: EvalResult) -> Buckets:
    """Loss by bucket of positions."""
    return {(part["from"], part["to"]): part["loss"] for part in row["by_position"]}


def multiple_targets(rows: list[EvalResult]) -> bool:
    """Whether a sample has more than one target."""
    return any(row["targets"]["of"] != row["exact"]["of"] for row in rows)
