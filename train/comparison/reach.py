"""How far back a row's model sees, and the one distance beyond which a table's targets count."""

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

from zoo import trust
from zoo.train.comparison.groups import FinishedRun, RunGroup
from zoo.train.runs import build
from zoo.train.runs.stored import load_stored

Kind = Literal["memory", "attention", "whole sample"]
"""A memory without a limit; attention that ends; attention that covers a sample of the training length, the
ceiling of a table."""


def reach(run: FinishedRun) -> float | None:
    """The receptive field of the run's model in positions, inf for one without limit; None where the model
    doesn't say, or its class isn't trusted."""
    return declared_reach(run.folder) if trust.is_trusted(run.config["model._target_"]) else None


@functools.cache
def declared_reach(folder: Path) -> float | None:
    """That of the class of the run in a folder, which is trusted."""
    try:
        with torch.device("meta"):
            model = build.model(load_stored(folder / "config.yaml"))
    except Exception:  # a class of a missing plug-in, or of another version, may raise anything
        return None
    if model.reach == "unknown":
        return None
    return math.inf if model.reach is None else float(model.reach)


def kind(reach: float | None, length: int | None) -> Kind:
    """What a model is beside samples of this length; a reach that isn't known counts as no limit."""
    if reach is None or reach == math.inf:
        return "memory"
    return "attention" if length is None or reach < length else "whole sample"


def table_reach(groups: Iterable[RunGroup]) -> int | None:
    """The largest finite reach of the rows, those that see a whole sample apart, or the distance that all
    runs were stopped by (`stop_when_solved.beyond`), whichever is larger; None if there is neither."""
    groups = list(groups)
    reaches = [(reach(group.runs[0]), group.runs[0].config.get("task.length")) for group in groups]
    finite = {value for value, length in reaches if value is not None and kind(value, length) == "attention"}
    stops = {run.config.get("stop_when_solved.beyond") for group in groups for run in group.runs}
    common = {float(stop) for stop in stops if stop is not None and len(stops) == 1}
    return int(max(finite | common)) if finite | common else None
