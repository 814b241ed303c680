"""The objects that a composed configuration names: model, optimiser and task."""

from pathlib import Path

from omegaconf import DictConfig

from zoo.errors import UserError, first_line
from zoo.module import SequenceModule
from zoo.optim import Optim
from zoo.train.runs.base import load_base
from zoo.train.runs.budget import solve_width
from zoo.train.runs.config import to_dict
from zoo.train.runs.construct import call, check_arguments, import_class
from zoo.train.runs.loggers_and_callbacks import check_loggers_and_callbacks
from zoo.train.runs.symbols import check_run_symbols
from zoo.train.tasks.base import Task


def check_classes(cfg: DictConfig) -> None:
    """Raises UserError unless the classes of `cfg.model` and `cfg.task` take their keys, and those of loggers
    and callbacks are some, and makes the optimiser's settings; builds nothing else."""
    model_keys, task_keys = solve_width(cfg), to_dict(cfg.task)
    model_class = import_class(model_keys.pop("_target_", None), SequenceModule, "model")
    task_class = import_class(task_keys.pop("_target_", None), Task, "task")
    arguments = {key: value for key, value in model_keys.items() if key not in ("free", "base")}
    check_arguments(model_class, arguments, "model")
    check_arguments(task_class, task_keys, "task")
    check_loggers_and_callbacks(cfg)
    optim(cfg)


def model(cfg: DictConfig) -> SequenceModule:
    """The model of `cfg.model`: `_target_` is its class, `free` names the width that the budget decides,
    `base` is the folder of a run whose weights it starts from, the other keys are its arguments.  Raises
    UserError, in one line, for anything that doesn't fit."""
    keys = solve_width(cfg)
    keys.pop("free", None)
    base = keys.pop("base", None)
    built = call(import_class(keys.pop("_target_", None), SequenceModule, "model"), keys, "model")
    for name in ("vocab_size", "segment_len"):
        if not hasattr(built, name):
            raise UserError(f"model: {type(built).__name__}.{name}: expected a whole number, found none")
    if built.vocab_size < cfg.task.vocab_size:
        raise UserError(
            f"model.vocab_size: expected at least the task's {cfg.task.vocab_size}, found {built.vocab_size}"
        )
    try:
        built.init_state(1)
    except RuntimeError as error:  # a memory of negative length
        raise UserError(f"model: its state can't be made: {first_line(error)}") from error
    if base is not None and _needs_base(cfg):
        check_run_symbols(cfg, built, "model.base")
        load_base(cfg, built, Path(str(base)), keys)
    return built


def _needs_base(cfg: DictConfig) -> bool:
    """False if the run's own weights follow: for a stored config.yaml (without `resume`) and on resume."""
    return "resume" in cfg and not (cfg.resume and any(Path(cfg.resume, "checkpoints").glob("*.ckpt")))


def optim(cfg: DictConfig) -> Optim:
    """The optimiser and schedule of `cfg.optim`: `_target_` is its class, zoo.optim.Optim without one, which
    gets all keys but `clip`, and those in `options`."""
    keys = to_dict(cfg.optim)
    target, options, _ = keys.pop("_target_", None), keys.pop("options", {}), keys.pop("clip")
    cls = Optim if target is None else import_class(target, Optim, "optim")
    if shared := [key for key in options if key in keys or key in ("steps", "clip")]:
        key = shared[0]
        raise UserError(f"optim.options.{key}: expected {key if key == 'steps' else f'optim.{key}'}=…")
    check_arguments(cls, options | {"steps": cfg.steps}, "optim.options")
    return call(cls, {"steps": cfg.steps, **keys, **options}, "optim")


def task(cfg: DictConfig) -> Task:
    """The task of `cfg.task`."""
    keys = to_dict(cfg.task)
    return call(import_class(keys.pop("_target_", None), Task, "task"), keys, "task")
