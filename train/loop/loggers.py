"""A run's loggers: what the run is, every value, and on resume the values of before."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from zoo.train.loop.tensorboard import RunLogger
from zoo.train.runs.history import read_rows
from zoo.train.runs.loggers_and_callbacks import make_logger, named


def make_loggers(cfg: DictConfig, run_dir: Path, tokens_seen: int, scores: dict[str, str]) -> list[Logger]:
    """The loggers of `cfg.logger`.

    They are given names of the task's scores by tag, the folder of the run, or one below it with their name,
    and on resume `tokens_seen`, those of the checkpoint, from which on TensorBoard drops what it has.
    """
    database = f"sqlite:///{run_dir.absolute() / 'mlflow.db'}"
    given = {
        "run_dir": run_dir,
        "scores": scores,
        "purge_step": tokens_seen if cfg.resume else None,
        "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI") or database,
    }
    return [
        make_logger(name, keys, given | {"save_dir": str(run_dir / name)})
        for name, keys in named(cfg, "logger").items()
    ]


def tensorboard_of(loggers: Sequence[Logger]) -> RunLogger | None:
    return next((logger for logger in loggers if isinstance(logger, RunLogger)), None)


def log_settings(loggers: Sequence[Logger], settings: dict[str, Any]) -> None:
    """The settings in every logger but TensorBoard's, whose HParams tab needs the scores with them."""
    for logger in loggers:
        if not isinstance(logger, RunLogger):
            logger.log_hyperparams(settings)


@rank_zero_only
def replay(loggers: Sequence[Logger], run_dir: Path, tokens_seen: int) -> None:
    """Log again what a resumed run logged before its checkpoint, from its history.

    So every logger but TensorBoard's, which knows how to drop what came after the checkpoint, starts a table
    (of W&B and MLflow: a run) that has every value once.
    """
    others = [logger for logger in loggers if not isinstance(logger, RunLogger)]
    for row in read_rows(run_dir) if others else ():
        x = row["tokens_seen"]
        if x >= tokens_seen:
            continue
        values = {key: math.nan if value is None else value for key, value in row.items() if "/" in key}
        for logger in others:
            logger.log_metrics(values, step=x)


@contextlib.contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Around training: W&B's run ends with it, as another run of this process would log to it."""
    try:
        yield
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger) and logger._experiment is not None:
                logger.experiment.finish()
