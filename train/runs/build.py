"""The objects that a composed configuration names: model, optimiser and task."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from zoo.errors import UserError, first_line
from zoo.module import SequenceModule
from zoo.optim import Optim
from zoo.train.runs.budget import solve_width
from zoo.train.runs.checkpoint import check_weights, read_checkpoint
from zoo.train.runs.config import to_dict
from zoo.train.runs.construct import call, check_arguments, import_class, parameters
from zoo.train.runs.folder import no_run
from zoo.train.runs.stored import load_stored
from zoo.train.tasks.base import Task


def check_classes(cfg: DictConfig) -> None:
    """Raises UserError unless the classes of `cfg.model` and `cfg.task` take their keys; builds neither."""
    model_keys, task_keys = solve_width(cfg), to_dict(cfg.task)
    model_class = import_class(model_keys.pop("_target_", None), SequenceModule, "model")
    task_class = import_class(task_keys.pop("_target_", None), Task, "task")
    arguments = {key: value for key, value in model_keys.items() if key not in ("free", "base")}
    check_arguments(model_class, arguments, "model")
    check_arguments(task_class, task_keys, "task")


def model(cfg: DictConfig) -> SequenceModule:
    """The model of `cfg.model`: `_target_` is its class, `free` names the width that the budget decides,
    `base` is the folder of a run whose weights it starts from, the other keys are its arguments.  Raises
    UserError, in one line, for anything that doesn't fit."""
    keys = solve_width(cfg)
    keys.pop("free", None)
    base = keys.pop("base", None)
    built = call(import_class(keys.pop("_target_", None), SequenceModule, "model"), keys, "model")
    if built.vocab_size < cfg.task.vocab_size:
        raise UserError(
            f"model.vocab_size: expected at least the task's {cfg.task.vocab_size}, found {built.vocab_size}"
        )
    try:
        built.init_state(1)
    except RuntimeError as error:  # a memory of negative length
        raise UserError(f"model: its state can't be made: {first_line(error)}") from error
    if base is not None and _needs_base(cfg):
        _load_base(Path(str(base)), built, keys)
    return built


def _needs_base(cfg: DictConfig) -> bool:
    """False if the run's own weights follow: for a stored config.yaml (without `resume`) and on resume."""
    return "resume" in cfg and not (cfg.resume and any(Path(cfg.resume, "checkpoints").glob("*.ckpt")))


def _load_base(run_dir: Path, built: SequenceModule, keys: dict[str, Any]) -> None:
    """Give the model the weights of a trained run of the class that it extends, if their arguments agree."""
    path, last = run_dir / "config.yaml", run_dir / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UserError(f"model.base: {no_run(run_dir)}")
    try:
        base_keys = to_dict(load_stored(path).model)
        target = base_keys["_target_"]
    except Exception as error:  # not yaml, or not a run's
        raise UserError(f"model.base: {path} is not the config of a run: {first_line(error)}") from error
    cls, base_cls = type(built), type(built).__mro__[1]
    if target != (expected_target := f"{base_cls.__module__}.{base_cls.__name__}"):
        raise UserError(
            f"model.base: {cls.__name__} starts from a run of {expected_target}, found one of {target}"
        )
    own_parameters = parameters(cls)
    for name, parameter in parameters(base_cls).items():
        expected = keys.get(name, (own_parameters.get(name) or parameter).default)
        value = base_keys.get(name, parameter.default)
        if value != expected and not name.endswith("dropout"):
            raise UserError(f"model.base: expected a run with {name} {expected}, found {value} in {path}")
    checkpoint = read_checkpoint(last)
    built.load_state_dict(check_weights(built, checkpoint["state_dict"], last))


def optim(cfg: DictConfig) -> Optim:
    keys = cfg.optim
    return Optim(cfg.steps, keys.lr, keys.warmup, keys.floor, keys.weight_decay, list(keys.betas))


def task(cfg: DictConfig) -> Task:
    """The task of `cfg.task`."""
    keys = to_dict(cfg.task)
    return call(import_class(keys.pop("_target_", None), Task, "task"), keys, "task")
