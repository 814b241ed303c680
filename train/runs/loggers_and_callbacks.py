"""Loggers and callbacks that a configuration names: the classes below its keys `logger` and `callbacks`."""

from collections.abc import Mapping
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from zoo.errors import UserError, first_line
from zoo.train.runs.config import to_dict
from zoo.train.runs.construct import call, import_class, parameters

EXTRAS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}
"""Extras of the zoo's package that a logger needs."""
RESUMABLE = (EarlyStopping, Timer)
"""Callbacks of Lightning whose state and work are known to resume exactly."""

T = TypeVar("T")


def check_loggers_and_callbacks(cfg: DictConfig) -> None:
    """Raises UserError unless every logger and callback names a class that may be one; builds none."""
    for name, keys in named(cfg, "logger").items():
        logger_class(name, keys)
    for name, keys in named(cfg, "callbacks").items():
        callback_class(name, keys)


def named(cfg: DictConfig, group: str) -> dict[str, dict[str, Any]]:
    """The keys of each logger or callback by its name."""
    named_classes = to_dict(cfg[group])
    for name, keys in named_classes.items():
        if not isinstance(keys, dict):
            raise UserError(
                f"{group}: expected a yaml file that gives its class a name, `NAME:` above `_target_:`, "
                f"found {name}={keys}"
            )
    return named_classes


def logger_class(name: str, keys: Mapping[str, Any]) -> type[Logger]:
    return import_class(keys.get("_target_"), Logger, f"logger.{name}")


def callback_class(name: str, keys: Mapping[str, Any]) -> type[L.Callback]:
    cls = import_class(keys.get("_target_"), L.Callback, f"callbacks.{name}")
    if cls.__module__.startswith("lightning.") and cls not in RESUMABLE:
        known = " | ".join(allowed.__name__ for allowed in RESUMABLE)
        raise UserError(
            f"callbacks.{name}: expected a class of your own, or {known} of Lightning's, with which a run "
            f"resumes exactly, found {cls.__name__}"
        )
    return cls


def make_callback(name: str, keys: Mapping[str, Any]) -> L.Callback:
    return _make(callback_class(name, keys), keys, f"callbacks.{name}")


def make_logger(name: str, keys: Mapping[str, Any], given: Mapping[str, Any]) -> Logger:
    """`given` are arguments that the logger gets if its constructor has them and `keys` don't."""
    cls = logger_class(name, keys)
    accepted = parameters(cls)
    return _make(cls, {key: given[key] for key in given if key in accepted} | dict(keys), f"logger.{name}")


def _make(cls: type[T], keys: Mapping[str, Any], group: str) -> T:
    arguments = {key: value for key, value in keys.items() if key != "_target_"}
    try:
        return call(cls, arguments, group)
    except ImportError as error:
        extra = next((EXTRAS[base.__name__] for base in cls.__mro__ if base.__name__ in EXTRAS), None)
        advice = "" if extra is None else f"; pip install 'zoo[{extra}]'"
        raise UserError(f"{group}: {first_line(error)}{advice}") from error
    except MisconfigurationException as error:
        raise UserError(f"{group}: {first_line(error)}") from error
