"""history.jsonl: what a run logged, one line of JSON for each row.

    {"split": "train", "step": 40, "tokens_seen": 10240, "train/loss": 2.1, "cost/tokens_per_s": 9000.0, …}

`split` is train or val, `step` counts optimiser steps, `tokens_seen` loss targets; the other keys are the
tags of the values.  A value that isn't finite is null.
"""

import json
import math
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.train.runs.files import write_text

FILE = "history.jsonl"
COUNTERS = ("step", "tokens_seen")
Columns = dict[str, list[int | float]]


class HistoryWriter:
    """Appends rows to a run's history.  A resumed run passes the step of its checkpoint: rows after it are
    removed, and one that is there already isn't written twice."""

    def __init__(self, run_dir: Path, step: int = 0) -> None:
        self.path = run_dir / FILE
        rows = [row for row in _rows(self.path) if row["step"] <= step] if self.path.exists() else []
        self.written = {(row["split"], row["step"]) for row in rows}
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def append(self, split: str, step: int, tokens_seen: int, values: dict[str, float]) -> None:
        if (split, step) in self.written:
            return
        self.written.add((split, step))
        finite = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        row = {"split": split, "step": step, "tokens_seen": tokens_seen, **finite}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_history(run_dir: Path) -> dict[str, Columns]:
    """{"train": columns, "val": columns}, each {name: values by row}; NaN where a row has no value.

    Raises UserError if the file is missing (runs of version 0.1 have none) or damaged.
    """
    rows = read_rows(run_dir)
    return {split: _columns([row for row in rows if row["split"] == split]) for split in ("train", "val")}


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's history in the order in which they were logged, null as None.  Raises UserError as
    `read_history` does."""
    path = run_dir / FILE
    if not path.is_file():
        raise UserError(f"expected {FILE} in {run_dir}, found none: runs from before version 0.2 have none")
    return _rows(path)


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().split("\n")[:-1]  # a last line without its end is still being written
    try:
        rows = [json.loads(line) for line in lines]
        [(row["split"], *(row[name] + 0 for name in COUNTERS)) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged: expected rows of JSON with split, step and tokens_seen"
        ) from error
    return rows


def _columns(rows: list[dict[str, Any]]) -> Columns:
    names = dict.fromkeys(name for row in rows for name in row if name != "split")
    columns = {name: [math.nan if (v := row.get(name)) is None else v for row in rows] for name in names}
    return {name: [] for name in COUNTERS} | columns
