"""Classes by name, and objects from plain arguments, checked against the constructor's annotations."""

import importlib
import inspect
import math
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

from zoo.errors import UserError, first_line
from zoo.train.runs.stored import RENAMED

T = typing.TypeVar("T")
AT_LEAST_1 = ("depth", "width", "heads", "mlp_width", "segment_len")


def import_class(target: Any, base: type, group: str) -> type[Any]:
    """The class at a dotted path.  Raises UserError unless it is a subclass of `base`."""
    if not target or not isinstance(target, str):
        raise UserError(f"{group}: expected a config with `_target_: package.module.Class`, found none")
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module may raise anything
        advice = ""
        if isinstance(error, ModuleNotFoundError):
            advice = " (run from the folder where it lies, or name that in PYTHONPATH)"
        raise UserError(f"{group}: can't import {target}: {first_line(error)}{advice}") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{group}: expected a {base.__name__}, found {target}")
    return cls


def call(cls: type[T], keys: dict[str, Any], group: str) -> T:
    """Build with plain keywords, after checking names and types against the constructor's annotations."""
    check_arguments(cls, keys, group)
    try:
        return cls(**keys)
    except TypeError as error:  # of a constructor without annotations
        raise UserError(f"{group}: {cls.__name__} doesn't take these values: {first_line(error)}") from error
    except (ValueError, ArithmeticError, RuntimeError) as error:  # arguments that don't go together
        raise UserError(f"{group}: {first_line(error)}") from error


def check_arguments(cls: type, keys: dict[str, Any], group: str) -> None:
    """Raises UserError for the first keyword whose name or type the constructor doesn't take."""
    accepted = parameters(cls)
    hints = {name: p.annotation for name, p in accepted.items() if p.annotation is not p.empty}
    for name, value in keys.items():
        if name not in accepted and not takes_any(cls):
            new_name = RENAMED.get(f"{group}.{name}")
            if new_name and new_name.partition(".")[2] in accepted:
                raise UserError(f"{group}.{name} is called {new_name} now")
            raise UserError(f"{group}.{name}: unknown; {cls.__name__} takes {', '.join(accepted)}")
        if name in hints and not fits(value, hints[name]):
            message = (
                f"{group}.{name}: expected {type_words(hints[name])}, found {value!r} "
                f"({type(value).__name__})"
            )
            if group == "model" and value is None and hints[name] is int:
                message += f"; `free: {name}` in the yaml has the budget decide it"
            raise UserError(message)
        if group == "model" and name in AT_LEAST_1 and isinstance(value, int) and value < 1:
            raise UserError(f"{group}.{name}: expected at least 1, found {value}")
    missing = [name for name, p in accepted.items() if p.default is p.empty and name not in keys]
    if missing:
        raise UserError(f"{group}: {cls.__name__} also needs {', '.join(missing)}")


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """A constructor's parameters with resolved annotations, `**options: Unpack[SomeTypedDict]` as one
    parameter for each of its keys.  A key has the default of the nearest base class that names it."""
    hints = _hints(cls)
    expanded = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        hint = hints.get(name, parameter.annotation)
        if parameter.kind is parameter.VAR_KEYWORD and get_origin(hint) is typing.Unpack:
            (options,) = get_args(hint)
            for key, annotation in typing.get_type_hints(options).items():
                default = _inherited_default(cls, key)
                expanded[key] = inspect.Parameter(
                    key, parameter.KEYWORD_ONLY, default=default, annotation=annotation
                )
        elif parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            expanded[name] = parameter.replace(annotation=hint)
    return expanded


def takes_any(cls: type) -> bool:
    """True if the constructor has a `**options` that takes whatever it is given."""
    hints = _hints(cls)
    return any(
        parameter.kind is parameter.VAR_KEYWORD and get_origin(hints.get(name)) is not typing.Unpack
        for name, parameter in inspect.signature(cls).parameters.items()
    )


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # a name that only static checkers import
        return {}


def _inherited_default(cls: type, key: str) -> Any:
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            if key in parameters:
                return parameters[key].default
    return None


def fits(value: Any, kind: Any) -> bool:
    """True if a plain value fits an annotation: an int is a float, a bool no int, and a float is finite."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, member) for member in inner)
    if origin is Literal:
        return value in inner
    if origin is dict:
        return isinstance(value, dict)
    if origin in (list, tuple, typing.get_origin(typing.Sequence[int])):
        return isinstance(value, (list, tuple)) and all(fits(item, inner[0]) for item in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return value is None if kind is type(None) else not isinstance(kind, type) or isinstance(value, kind)


def type_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        return "a mapping of keys"
    if get_args(kind):
        return " | ".join(map(type_words, get_args(kind)))
    return getattr(kind, "__name__", str(kind))
