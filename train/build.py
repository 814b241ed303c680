"""From a composed configuration to the objects it names: the one place where classes are looked up."""

import bisect
import functools
import importlib
import inspect
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.overrides import TorchFunctionMode

from zoo import plugins
from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train import config
from zoo.train.checkpoints import check_weights, read_checkpoint
from zoo.train.runs import no_run
from zoo.train.task import Task

Kind = typing.TypeVar("Kind")

AT_LEAST_1 = ("depth", "width", "heads", "hidden", "segment_len")
BUDGET_TOLERANCE = 0.03  # the smallest step of a micro model's free width is 1 or 2 % of it


def compose(overrides: list[str]) -> DictConfig:
    """The configuration that a command line with these overrides would train with."""
    plugins.register()
    config.register()
    with initialize_config_module("zoo.configs", version_base="1.3"):
        try:
            cfg = hydra_compose("train", overrides, return_hydra_config=True)
        except UserWarning as warning:  # a folder of configs that isn't there
            raise UserError(str(warning)) from warning
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg.hydra
    return cfg


def model(cfg: DictConfig) -> SequenceModule:
    """The model of `cfg.model`: `_target_` is its class, `free` names the width that the budget decides,
    `base` is the folder of a run whose weights it starts from, the other keys are its arguments.  Raises
    UserError for whatever doesn't fit, in one line."""
    keys = solved(cfg)
    keys.pop("free", None)
    base = keys.pop("base", None)
    built = _call(_class(keys.pop("_target_", None), SequenceModule, "model"), keys, "model")
    if built.vocab_size < cfg.task.vocab_size:
        raise UserError(
            f"model.vocab_size: expected at least the task's {cfg.task.vocab_size}, found {built.vocab_size}"
        )
    try:
        built.init_state(1)
    except RuntimeError as error:  # a memory of a length below 0
        raise UserError(f"model: its state can't be made: {_first_line(error)}") from error
    if base is not None and _starts(cfg):
        _start_from(Path(str(base)), built, keys)
    return built


def _starts(cfg: DictConfig) -> bool:
    """Whether no weights of the run itself follow: a run's config.yaml, which has no `resume`, is read before
    its own checkpoint, and so is that of a run that goes on."""
    return "resume" in cfg and not (cfg.resume and any(Path(cfg.resume, "checkpoints").glob("*.ckpt")))


def _start_from(run_dir: Path, built: SequenceModule, keys: dict[str, Any]) -> None:
    """Give the model the weights of a trained run of the class that it extends, if their arguments agree."""
    path, last = run_dir / "config.yaml", run_dir / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UserError(f"model.base: {no_run(run_dir)}")
    try:
        theirs = plain(typing.cast(DictConfig, OmegaConf.load(path)).model)
        target = theirs["_target_"]
    except Exception as error:  # not yaml, or not a run's
        raise UserError(f"model.base: {path} is no run's config: {_first_line(error)}") from error
    made, extended = type(built), type(built).__mro__[1]
    if target != (wanted := f"{extended.__module__}.{extended.__name__}"):
        raise UserError(f"model.base: {made.__name__} starts from a run of {wanted}, found one of {target}")
    ours = inspect.signature(made).parameters
    for name, parameter in inspect.signature(extended).parameters.items():
        expected = keys.get(name, (ours.get(name) or parameter).default)
        found = theirs.get(name, parameter.default)
        if found != expected and not name.endswith("dropout"):
            raise UserError(f"model.base: expected a run with {name} {expected}, found {found} in {path}")
    checkpoint = read_checkpoint(last)
    check_weights(built, checkpoint, last)
    built.load_state_dict(checkpoint["state_dict"])


def solved(cfg: DictConfig) -> dict[str, Any]:
    """The keys of `cfg.model` with the free width filled in from the budget, where it isn't given."""
    keys = plain(cfg.model)
    free = keys.get("free")
    if free is not None and not isinstance(free, str):
        raise UserError(f"model.free: expected the name of one of the model's widths, found {free!r}")
    if free is not None and keys.get(free) is None:
        arguments = {key: value for key, value in keys.items() if key not in ("free", "base", "_target_")}
        made = _class(keys.get("_target_"), SequenceModule, "model")
        keys[free] = _solve(made, arguments, free, cfg.size.budget)
    return keys


def task(cfg: DictConfig) -> Task:
    """The task of `cfg.task`."""
    keys = plain(cfg.task)
    return _call(_class(keys.pop("_target_", None), Task, "task"), keys, "task")


def plain(node: DictConfig) -> dict[str, Any]:
    """A node of the configuration as plain Python, resolved."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def _class(target: Any, kind: type, group: str) -> type[Any]:
    if not target or not isinstance(target, str):
        raise UserError(f"{group}: expected a config with `_target_: package.module.Class`, found none")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        where = " (call from the folder where it lies, or name that in PYTHONPATH)"
        advice = where if isinstance(error, ModuleNotFoundError) else ""
        raise UserError(f"{group}: can't import {target}: {_first_line(error)}{advice}") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(f"{group}: expected a {kind.__name__}, found {target}")
    return found


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _solve(made: type[SequenceModule], keys: dict[str, Any], free: str, budget: int | None) -> int:
    """The value of the free width that comes nearest to the budget of parameters, on the meta device."""
    if budget is None:
        raise UserError(
            f"model.{free}: expected a number, as this size has no budget to solve it from, found none"
        )

    @functools.cache
    def count(width: int) -> int:
        with torch.device("meta"), _NoInitialisation():
            return _call(made, {**keys, free: width}, "model").count_parameters()

    most = 1
    while count(most) < budget:
        most *= 2
    above = bisect.bisect_left(range(most + 1), budget, lo=most // 2 + 1, key=count)
    best = min((max(1, above - 1), above), key=lambda width: abs(count(width) - budget))
    if abs(count(best) - budget) > BUDGET_TOLERANCE * budget:
        raise UserError(
            f"model: {count(best):,} parameters at {free}={best}, too far from the budget of {budget:,}"
        )
    return best


class _NoInitialisation(TorchFunctionMode):
    """What is only counted needs no numbers: drawing them takes most of a constructor's time on meta."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _call(made: type[Kind], keys: dict[str, Any], group: str) -> Kind:
    """Build with plain keywords, after checking names and types against the constructor's annotations."""
    wanted = inspect.signature(made).parameters
    hints = typing.get_type_hints(made.__init__)
    for name, value in keys.items():
        if name not in wanted:
            raise UserError(f"{group}.{name}: unknown; {made.__name__} takes {', '.join(wanted)}")
        if name in hints and not _fits(value, hints[name]):
            found = (
                f"{group}.{name}: expected {_words(hints[name])}, found {value!r} ({type(value).__name__})"
            )
            advice = f"; `free: {name}` in the yaml has the budget decide it"
            raise UserError(found + advice * (group == "model" and value is None and hints[name] is int))
        if group == "model" and name in AT_LEAST_1 and isinstance(value, int) and value < 1:
            raise UserError(f"{group}.{name}: expected at least 1, found {value}")
    missing = [name for name, p in wanted.items() if p.default is p.empty and name not in keys]
    if missing:
        raise UserError(f"{group}: {made.__name__} also needs {', '.join(missing)}")
    try:
        return made(**keys)
    except (ValueError, ArithmeticError, RuntimeError) as error:  # arguments that don't go together
        raise UserError(f"{group}: {_first_line(error)}") from error


def _fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is what an annotation asks for; an int is a float, a bool is no int, and only a
    finite number is a float."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (list, tuple, typing.get_origin(typing.Sequence[int])):
        return isinstance(value, (list, tuple)) and all(_fits(item, inner[0]) for item in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return value is None if kind is type(None) else not isinstance(kind, type) or isinstance(value, kind)


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    return " | ".join(map(_words, get_args(kind))) if get_args(kind) else getattr(kind, "__name__", str(kind))
