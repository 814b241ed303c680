"""Callbacks of a run beside those of the loop: what the configuration's `callbacks` names."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, Timer
from omegaconf import DictConfig

from zoo.errors import UserError, nearest
from zoo.train.loop.callback_guard import CallbackGuard, refuse_unsaved
from zoo.train.runs.folder import read_json
from zoo.train.runs.loggers_and_callbacks import make_callback, named
from zoo.train.tasks.base import Task, score_names


class UserCallbacks:
    """Raises UserError for one that can't be made."""

    def __init__(self, cfg: DictConfig, task: Task) -> None:
        self.by_name = {name: make_callback(name, keys) for name, keys in named(cfg, "callbacks").items()}
        self.guard = CallbackGuard(self.by_name)
        scores = ["val/loss", "val/accuracy", *score_names(task)]
        if cfg.stop_when_solved.beyond is not None:
            scores += ["val/beyond"] if task.uninformed_nats is None else ["val/beyond", "val/gain"]
        for name, callback in self.by_name.items():
            if isinstance(callback, Timer) and callback.time_remaining() == 0:
                raise UserError(f"callbacks.{name}.duration: expected more than 0 seconds, found 0")
            if isinstance(callback, EarlyStopping) and callback.monitor not in scores:
                raise UserError(
                    f"callbacks.{name}.monitor: expected one of {', '.join(dict.fromkeys(scores))}, found "
                    f"{callback.monitor}" + nearest(callback.monitor, scores)
                )

    def all(self) -> list[L.Callback]:
        """In the order in which they run; [] where the configuration names none."""
        return [*self.by_name.values(), self.guard] if self.by_name else []

    def outcome(self, step: int) -> dict[str, Any]:
        """Entries of metrics.json, {} for a run that no callback stopped."""
        return {"steps_done": step, "stopped_by": "callbacks"} if self.guard.stopped else {}


def check_resumable(run_dir: Path, checkpoint: dict[str, Any]) -> None:
    """Raises UserError if a callback stopped the run, or keeps what the checkpoint doesn't have."""
    path = run_dir / "metrics.json"
    if path.is_file() and (read_json(path).get("stopped_by")) is not None:
        step = checkpoint["global_step"]
        raise UserError(f"resume: the run is finished: a callback stopped it at step {step}")
    refuse_unsaved(checkpoint)
