"""Mechanisms as users get them: with the settings of configs/model, at a size of configs/size."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from zoo.module import SequenceModule
from zoo.train.runs import build
from zoo.train.runs.config import compose

Part = TypeVar("Part", bound=nn.Module)


def configured(name: str, *overrides: str, size: str = "micro") -> SequenceModule:
    """The model `name` with its default settings, in float64 and eval mode, built from seed 0."""
    return copy.deepcopy(_built(name, overrides, size))


@cache
def _built(name: str, overrides: tuple[str, ...], size: str) -> SequenceModule:
    torch.manual_seed(0)
    return build.model(compose([f"model={name}", f"size={size}", *overrides])).double().eval()


def parts(model: nn.Module, kind: type[Part]) -> list[Part]:
    return [part for part in model.modules() if isinstance(part, kind)]


def catches(check: Callable[[Any], None], mutant: Any) -> bool:
    """True if the check fails on the mutant by one of its assertions."""
    try:
        check(mutant)
    except AssertionError:
        return True
    return False
