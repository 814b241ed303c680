"""Values of a configuration against the type hints of its keys."""

import typing
from collections.abc import Sequence
from typing import Any, Literal, get_args


def as_floats(value: Any, hint: Any) -> Any:
    """Whole numbers as floats where a float is expected."""
    if isinstance(value, (list, tuple)):
        return tuple(float(item) if isinstance(item, int) else item for item in value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and float in (hint, *get_args(hint)) else value


def fits(value: Any, hint: Any) -> bool:
    origin, members = typing.get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in members if isinstance(value, (str, int)) else False
    if members and origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(item, members[0]) for item in value)
    if members:
        return any(fits(value, member) for member in members)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def in_words(hint: Any) -> str:
    members = get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(str, members))
    if members and typing.get_origin(hint) not in (list, tuple) and not str(hint).startswith("collections"):
        return " | ".join(map(in_words, members))
    return getattr(hint, "__name__", str(hint)) if not members else "a list of numbers"
