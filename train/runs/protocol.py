"""Protocol 1 of a comparison: which runs it has, how a learning rate is chosen from them, what a table needs.

A run that `zoo sweep protocol=1` finished has a protocol.json beside its metrics.json:

    protocol    1
    purpose     "score": a row of the table; "short rate" and "rate": a run that helped to choose its rate;
                "long": a run with more steps of a row that hadn't solved its task

One of a run that diverged, and so has no metrics.json, has `diverged` with the reason.

The rates of GRID are tried on a short task, the best and a quarter of it on the task itself, all with
SELECTION_SEED, which no score uses; a best at the edge of the grid extends it by FACTOR once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.train.runs.folder import read_json

VERSION = 1
FILE = "protocol.json"
SCORE, SHORT_RATE, RATE, LONG = "score", "short rate", "rate", "long"
"""Purposes of a run."""
CHOOSE_RATE = (SHORT_RATE, RATE)
SELECTION_SEED = 100
SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)
"""The further ones where the first disagree on whether the task is solved."""
GRID, FACTOR = (1e-3, 4e-3, 1.6e-2), 4
LONG_FACTOR = 4
"""How many times the steps for a seed of a row that hasn't solved its task: slow, or never?"""
LONG_SETTINGS = ("steps", "optim.warmup", "data.curriculum.patience")
"""In which a run with more steps may differ from its row's: the last two follow from the steps elsewhere."""
SHORT_TASK = "passkey"
"""On which rates are tried first for every task of samples: one segment, in the compact form."""


@dataclass
class Compare:
    """What a comparison needs to know of a task, in the task's yaml file."""

    jump: bool = False
    """It is learned in a jump: runs are solved or not, and a mean over them is a number that no run had."""
    metric: str = "beyond"
    """By which a run has solved it, under a protocol."""
    at_least: float = 0.95
    curriculum: bool = False
    """It is read in samples of 1, 2, 4 … segments first, under a protocol."""
    effect: float | None = None
    """The smallest difference of the score that counts; None: any."""
    target_loss: dict[str, float] = field(default_factory=dict)
    """Of "steps to loss", nats per target, by size."""


def read(folder: Path) -> dict[str, Any]:
    """The run's protocol.json; {} where it has none."""
    path = folder / FILE
    content: dict[str, Any] = read_json(path) if path.is_file() else {}
    return content


def has_diverged(folder: Path) -> bool:
    """True for a run that helped to choose a rate and ended because its loss or a gradient wasn't finite."""
    return "diverged" in read(folder)


def outcome(metrics: Mapping[str, Any]) -> tuple[bool, float, float]:
    """Runs of different rates in order, the best first: those that collapsed are last, of the others the one
    that solved its task earliest, else that with the smallest held-out loss."""
    solved_at = metrics.get("solved_at")
    return (
        bool(metrics.get("collapsed")),
        math.inf if solved_at is None else float(solved_at),
        float(metrics["val/loss"]),
    )


def best_rate(results: Mapping[float, Mapping[str, Any] | None]) -> float:
    """The learning rate of the best run, by the metrics of each; those of a run that diverged are None.

    Of equals it is the smaller rate.
    """
    diverged = (True, math.inf, math.inf)
    return min(sorted(results), key=lambda rate: diverged if (run := results[rate]) is None else outcome(run))


def is_edge(rate: float, rates: Mapping[float, Any]) -> bool:
    """True for the smallest or the largest of the rates that were tried."""
    return rate in (min(rates), max(rates))
