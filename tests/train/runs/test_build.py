"""Building a model from a configuration: budgets, and arguments that don't fit."""

import inspect
import random
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pytest
import torch
from omegaconf import OmegaConf, open_dict

import zoo.configs
from zoo.errors import UserError
from zoo.train.comparison.groups import constructor_defaults
from zoo.train.runs import budget as runs_budget
from zoo.train.runs import build
from zoo.train.runs.config import compose, to_dict
from zoo.train.runs.construct import call, parameters

MODELS = sorted(path.stem for path in Path(zoo.configs.__path__[0], "model").glob("*.yaml"))
BUDGETS = {
    "micro": (200_000, 0.03),
    "tiny": (1_500_000, 0.01),
    "small": (25_000_000, 0.01),
    "base": (125_000_000, 0.01),
}


@pytest.mark.parametrize(
    "size", ["micro", "tiny", *(pytest.param(size, marks=pytest.mark.slow) for size in ("small", "base"))]
)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_keeps_to_the_budget(model: str, size: str) -> None:
    budget, tolerance = BUDGETS[size]
    cfg = compose([f"model={model}", f"size={size}"])
    assert cfg.size.budget == budget
    cfg.model = runs_budget.solve_width(cfg)
    assert isinstance(cfg.model[cfg.model.free], int)
    with torch.device("meta"):
        net = build.model(cfg)
    assert abs(net.count_parameters() - budget) <= tolerance * budget
    assert cfg.data.seq_len % net.segment_len == 0


@pytest.mark.parametrize("model", MODELS)
def test_a_solved_width_is_not_solved_again(model: str) -> None:
    cfg = compose([f"model={model}", "size=micro"])
    cfg.model = runs_budget.solve_width(cfg)
    assert runs_budget.solve_width(cfg) == to_dict(cfg.model)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["size=tiny", "size.budget=1000"], "too far from the budget of 1,000"),
        (["size=tiny", "size.budget=-5"], "too far from the budget of -5"),
        (["size=micro", "model.depth=0"], "model.depth: expected at least 1"),
        (["size=micro", "size.width=66"], "width 66 is not a multiple of heads 4"),
    ],
)
def test_a_budget_that_nothing_meets(words: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        runs_budget.solve_width(compose(["model=transformer", *words]))


def test_a_value_that_is_none_of_the_choices() -> None:
    cfg = compose(["model=rmt", "size=nano"])
    with pytest.raises(UserError, match=r"model.position: expected rope \| .* none .*, found 'polar'"):
        build.model(OmegaConf.merge(cfg, {"model": {"position": "polar"}}))
    with pytest.raises(UserError, match=r"model.memory_attention: expected causal \| block, found 'full'"):
        build.model(OmegaConf.merge(cfg, {"model": {"memory_attention": "full"}}))


def test_missing_arguments() -> None:
    cfg = compose(["model=rmt", "size=nano"])
    with open_dict(cfg):
        del cfg.model["memory_tokens"]
    with pytest.raises(UserError, match="model: RMT also needs memory_tokens"):
        build.model(cfg)


def test_a_memory_of_negative_length() -> None:
    with pytest.raises(UserError, match="negative dimension -1"):
        build.model(compose(["model=transformer_xl", "size=nano", "model.memory_len=-1"]))


class Options(TypedDict, total=False):
    bias: bool
    share: float


class Base:
    def __init__(self, width: int, *, bias: bool = True, share: float = 0.5) -> None:
        self.settings = (width, bias, share)


class Derived(Base):
    def __init__(self, width: int, depth: int = 2, **options: Unpack[Options]) -> None:
        super().__init__(depth * width, **options)


def test_options_passed_through_are_parameters_with_the_defaults_of_the_base_class() -> None:
    expanded = parameters(Derived)
    assert {name: parameter.default for name, parameter in expanded.items()} == {
        "width": inspect.Parameter.empty,
        "depth": 2,
        "bias": True,
        "share": 0.5,
    }
    assert [parameter.annotation for parameter in expanded.values()] == [int, int, bool, float]
    assert call(Derived, {"width": 3, "share": 0.25}, "model").settings == (6, True, 0.25)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 3, "tied": True}, r"model\.tied: unknown; Derived takes width, depth, bias, share"),
        ({"width": 3, "bias": 1}, r"model\.bias: expected bool, found 1 \(int\)"),
        ({"bias": True}, "model: Derived also needs width"),
    ],
)
def test_options_passed_through_are_checked(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(Derived, keys, "model")


def test_defaults_of_options_passed_through_count_in_a_comparison() -> None:
    usual = constructor_defaults("zoo.models.unlimiformer.Unlimiformer")
    assert usual is not None
    assert {name: usual[name] for name in ("norm", "activation", "bias", "tied", "dropout", "position")} == {
        "norm": "rms",
        "activation": "swiglu",
        "bias": False,
        "tied": True,
        "dropout": 0.0,
        "position": "rope",
    }


@pytest.mark.parametrize("seed", range(20))
def test_least_width_is_the_first_with_enough_parameters(seed: int) -> None:
    """Of counts that are linear in the width, quadratic, or grow by steps; in fewer builds than bisection."""
    rng = random.Random(seed)
    square, slope, step, rest = (
        rng.choice([0, 1]),
        rng.randint(1, 900),
        rng.choice([1, 8]),
        rng.randint(0, 9999),
    )
    budget = rng.randint(1, 10 ** rng.randint(3, 6))
    built = set()

    def count(width: int) -> int:
        built.add(width)
        return square * width**2 + slope * (width // step) * step + rest

    width = runs_budget.least_width(count, budget)
    needed = len(built)
    assert count(width) >= budget
    assert width == 1 or count(width - 1) < budget
    if square == 0 and step == 1:
        assert needed <= 4 + max(0, width.bit_length() - 6)
