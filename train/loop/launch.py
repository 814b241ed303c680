"""A run launched in its folder: locked, new or resumed, and trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.train.loop.trainer import train
from zoo.train.runs.files import is_further_rank, lock_folder
from zoo.train.runs.resume import resumed


def launch(cfg: DictConfig, run_dir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a new run in this folder, or resume the one in it (`cfg.resume`); returns its metrics.json.

    `overrides` are the arguments that `cfg` was composed with.  Raises UserError for a folder that is in use
    or holds another run, and for a setting that a resumed run can't change.
    """
    with lock_folder(run_dir):
        if cfg.resume:
            cfg = resumed(cfg, run_dir, overrides)
        elif (run_dir / "config.yaml").exists() and not is_further_rank():
            raise UserError(f"run_dir: {run_dir} holds a run already; resume={run_dir} continues it")
        return train(cfg, run_dir)
