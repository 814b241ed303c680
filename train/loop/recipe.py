"""What a run's recipe adds to the loop: its data in stages, callbacks that end stages and the run, and what
they leave in metrics.json."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.data.batches import TargetExtras
from zoo.train.data.curriculum import make_stages
from zoo.train.data.module import DataModule
from zoo.train.loop.curriculum import Curriculum
from zoo.train.loop.metrics import Metrics
from zoo.train.loop.stopping import DecayTail, check_not_ended
from zoo.train.runs import build
from zoo.train.tasks.base import Task


def data_module(cfg: DictConfig, task: Task, model: SequenceModule) -> DataModule:
    """The task's loaders, with what the curriculum and the stop rule need to know of targets."""
    keys = cfg.data
    sizes = (keys.batch_size, keys.seq_len, cfg.size.segment_len)
    stages = make_stages(task, *sizes, keys.curriculum.segments, keys.curriculum.lengths)
    knows_bayes = task.uninformed_nats is not None
    measures_beyond = cfg.stop_when_solved.beyond is not None
    return DataModule(
        task,
        batch_size=keys.batch_size,
        seq_len=keys.seq_len,
        segment_len=model.segment_len,
        seed=cfg.seed,
        val_bytes=keys.val_bytes,
        val_samples=keys.val_samples,
        stages=stages,
        train_extras=TargetExtras(bayes_nats=bool(stages) and knows_bayes),
        val_extras=TargetExtras(measures_beyond, measures_beyond and knows_bayes),
        accumulate=cfg.trainer.accumulate,
    )


class RecipeCallbacks(NamedTuple):
    """Those that run before Metrics, which logs their scores, and after it, as it reads what they drop."""

    before_metrics: list[L.Callback]
    after_metrics: list[L.Callback]


def recipe_callbacks(cfg: DictConfig, data: DataModule, metrics: Metrics) -> RecipeCallbacks:
    tail: list[L.Callback] = [DecayTail(cfg, data, metrics)] if cfg.optim.schedule == "wsd" else []
    return RecipeCallbacks(tail, [Curriculum(cfg, data, metrics)] if data.stages else [])


def stage_batch_size(data: DataModule, checkpoint: dict[str, Any] | None) -> int:
    """Rows of the stage in which the checkpoint was written."""
    saved = (checkpoint or {}).get("callbacks", {}).get("Curriculum")
    if not data.stages or saved is None:
        return data.batch_size
    if len(saved["stages"]) > len(data.stages):
        raise UserError(
            f"resume: expected a checkpoint of at most {len(data.stages)} stages, "
            f"found {len(saved['stages'])}"
        )
    return data.stages[len(saved["stages"]) - 1].batch_size


def last_step(cfg: DictConfig, checkpoint: dict[str, Any]) -> int:
    """The step with which a resumed run ends, as far as is known.

    Raises UserError if another number of steps would make its past untrue.
    """
    optim, saved = build.optim(cfg), checkpoint["callbacks"].get("DecayTail")
    if saved is not None:
        check_not_ended(saved, checkpoint["global_step"], cfg.steps)
        if saved["solved_at"] is not None:
            optim.decay_start = saved["decay_start"]
    return optim.total_steps


def outcome(callbacks: Sequence[L.Callback], step: int) -> dict[str, Any]:
    """The entries of metrics.json, {} for a run that has none of the callbacks: `steps_done`; `collapsed`;
    `solved_at`, a step or None; `stages`, labels and the steps before them."""
    rules = [callback for callback in callbacks if isinstance(callback, DecayTail | Curriculum)]
    if not rules:
        return {}
    solved_at = next((rule.solved_at for rule in rules if isinstance(rule, DecayTail)), None)
    return {
        "steps_done": step,
        "solved_at": solved_at,
        "collapsed": solved_at is None and any(rule.collapsed for rule in rules),
        "stages": next((rule.stages for rule in rules if isinstance(rule, Curriculum)), []),
    }
