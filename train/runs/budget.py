"""The width that the budget of parameters leaves free, solved on the meta device."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch.overrides import TorchFunctionMode

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.runs.config import to_dict
from zoo.train.runs.construct import call, import_class

BUDGET_TOLERANCE = 0.03  # the smallest step of a micro model's free width is 1 or 2 % of it


def solve_width(cfg: DictConfig) -> dict[str, Any]:
    """The keys of `cfg.model`, with the free width solved from the budget where it isn't given."""
    keys = to_dict(cfg.model)
    free = keys.get("free")
    if free is not None and not isinstance(free, str):
        raise UserError(f"model.free: expected the name of one of the model's widths, found {free!r}")
    if free is not None and keys.get(free) is None:
        arguments = {key: value for key, value in keys.items() if key not in ("free", "base", "_target_")}
        cls = import_class(keys.get("_target_"), SequenceModule, "model")
        keys[free] = _solve(cls, arguments, free, cfg.size.budget)
    return keys


def _solve(cls: type[SequenceModule], keys: dict[str, Any], free: str, budget: int | None) -> int:
    """The value of the free width with the number of parameters nearest to the budget."""
    if budget is None:
        raise UserError(
            f"model.{free}: expected a number, as this size has no budget to solve it from, found none"
        )

    @functools.cache
    def count(width: int) -> int:
        with torch.device("meta"), _SkipInitialisation():
            return call(cls, {**keys, free: width}, "model").count_parameters()

    above = least_width(count, budget)
    best = min((max(1, above - 1), above), key=lambda width: abs(count(width) - budget))
    if abs(count(best) - budget) > BUDGET_TOLERANCE * budget:
        raise UserError(
            f"model: {count(best):,} parameters at {free}={best}, too far from the budget of {budget:,}"
        )
    return best


def least_width(count: Callable[[int], int], budget: int) -> int:
    """The least width of at least `budget` parameters, of a `count` that grows with the width.

    Most counts are linear in the free width, so interpolation finds it in a third of the builds of bisection,
    which takes over for the others: each round tries the middle too if that is still in the range.
    """
    low, high = 1, 64
    if count(low) >= budget:
        return low
    while count(high) < budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        slope = (count(high) - count(low)) / (high - low)
        guess = low + math.ceil((budget - count(low)) / slope)
        for width in (guess, guess - 1, middle):
            if low < width < high:
                low, high = (width, high) if count(width) < budget else (low, width)
    return high


class _SkipInitialisation(TorchFunctionMode):
    """Leaves out torch.nn.init: parameters that are only counted need no values, and drawing them takes most
    of a constructor's time on meta."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
