"""Runs to compare, and the table of a comparison."""

import csv
import io
from pathlib import Path

from tests.train.stored_runs import make_run


def make_three_models(folder: Path) -> None:
    """Three seeds of rmt and transformer, one of mamba, which is the best."""
    for seed, (rmt, transformer) in enumerate([(2.0, 2.5), (2.2, 2.8), (2.1, 2.5)]):
        make_run(folder / "rmt" / str(seed), "rmt", seed, rmt)
        make_run(
            folder / "transformer" / str(seed), "transformer", seed, transformer, metrics={"state_bytes": 0}
        )
    make_run(folder / "mamba" / "0", "mamba", 0, 1.9, metrics={"state_bytes": 4096})


def read_csv(path: Path) -> dict[str, dict[str, str]]:
    """Rows by model."""
    return {row["model"]: row for row in csv.DictReader(io.StringIO(path.read_text()))}
