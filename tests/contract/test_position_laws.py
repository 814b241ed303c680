"""Every position method keeps every law, in at least one attention model; every attention model with rotary
positions keeps them with scaled ones."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
from omegaconf import DictConfig

from tests.laws import law_cases
from zoo.models.armt import ARMT
from zoo.models.rmt import RMT
from zoo.models.transformer import Transformer
from zoo.module import SequenceModule
from zoo.train.runs import build
from zoo.train.runs.config import compose

NANO: dict[str, Any] = {
    "vocab_size": 23,
    "segment_len": 16,
    "depth": 2,
    "width": 32,
    "heads": 4,
    "mlp_width": 20,
}
FAR: dict[str, Any] = {"near": 5, "trained": 8}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"scaling": "linear", "factor": 4},
    "ntk": {"scaling": "ntk", "factor": 4},
    "dynamic": {"scaling": "dynamic", "trained": 4},
    "mixed": {"scaling": "mixed", "factor": 4},
    "abf": {"base": 500000.0},
    "yarn": {"scaling": "yarn", "trained": 8},
    "longrope": {"scaling": "longrope", "trained": 8, "long": [1.0, 1.5, 2.0, 3.0]},
    "llama3": {"scaling": "llama3", "trained": 8},
    "hope": {"scaling": "hope", "trained": 8},
    "clex": {"scaling": "clex", "trained": 8, "factor": 4},
    "power": {"scaling": "power", "factor": 4},
    "truncated": {"scaling": "truncated", "factor": 4},
    "capped": {"far": "capped", **FAR},
    "leaky": {"far": "leaky", "group": 3, **FAR},
    "grouped": {"far": "grouped", "group": 3, **FAR},
    "log_n": {"log_n": True, "trained": 8},
    "xpos": {"kind": "xpos", "trained": 8},
    "coca": {"kind": "coca"},
    "alibi": {"kind": "alibi", "factor": 2},
    "t5": {"kind": "t5", "buckets": 6, "farthest": 9},
    "kerple": {"kind": "kerple"},
    "sandwich": {"kind": "sandwich", "terms": 8},
    "fire": {"kind": "fire", "hidden": 5, "trained": 8},
    "dape": {"kind": "dape", "hidden": 5},
    "dape_v2": {"kind": "dape", "hidden": 5, "convolution": 3, "inner": "alibi"},
    "cope": {"kind": "cope", "gates": 5},
}
BY_DEFAULT = ("yarn", "grouped", "fire", "dape_v2")
"""Methods whose laws aren't slow tests: one of each way to score."""
IN_WINDOWS = ("capped", "grouped", "log_n", "xpos", "t5", "fire", "dape")
IN_MEMORY_MODELS = ("grouped", "kerple", "coca")

TRANSFORMERS: dict[str, Callable[[], SequenceModule]] = {
    method: partial(Transformer, **NANO, position=position) for method, position in METHODS.items()
}
OTHERS: dict[str, Callable[[], SequenceModule]] = {
    **{
        f"window_{method}": partial(Transformer, **NANO, window=12, sinks=2, position=METHODS[method])
        for method in IN_WINDOWS
    },
    "window_cope": partial(Transformer, **NANO, window=12, position=METHODS["cope"]),
    **{
        f"rmt_{method}": partial(RMT, **NANO, memory_tokens=2, position=METHODS[method])
        for method in IN_MEMORY_MODELS
    },
    "rmt_block_yarn": partial(
        RMT, **NANO, memory_tokens=2, memory_attention="block", position=METHODS["yarn"]
    ),
    "armt_leaky": partial(ARMT, **NANO, memory_tokens=2, key_width=4, position=METHODS["leaky"]),
    "shifted": partial(Transformer, **NANO, position={"draw": "pose"}, shifted=4),
    "normed": partial(Transformer, **NANO, qk_norm=True),
    "value_residual": partial(Transformer, **NANO, value_residual=True),
    "window_value_residual": partial(Transformer, **NANO, window=12, sinks=2, value_residual=True),
}
ROTARY_MODELS = (
    "transformer",
    "sliding_window",
    "rmt",
    "armt",
    "infini",
    "memorizing",
    "focused",
    "unlimiformer",
    "landmark",
    "megalodon",
    "griffin",
    "samba",
)


@cache
def scaled_config(model: str) -> DictConfig:
    position = "{kind: rope, scaling: yarn, factor: 4.0, trained: 8}"
    return compose([f"model={model}", "size=nano", f"model.position={position}"])


def scaled(model: str) -> SequenceModule:
    return build.model(scaled_config(model))


SCALED: dict[str, Callable[[], SequenceModule]] = {
    f"scaled_{model}": partial(scaled, model) for model in ROTARY_MODELS
}


@pytest.mark.parametrize(
    "check", law_cases({name: TRANSFORMERS[name] for name in BY_DEFAULT}), ids=lambda check: None
)
def test_law(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "check", law_cases({name: model for name, model in TRANSFORMERS.items() if name not in BY_DEFAULT})
)
def test_law_of_every_method(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@pytest.mark.parametrize("check", law_cases(OTHERS | SCALED))
def test_law_in_other_models(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("model", ROTARY_MODELS)
def test_every_model_with_rotary_positions_takes_every_scaling(model: str) -> None:
    """And refuses by name what it can't compute exactly."""
    for scaling in ("linear", "ntk", "dynamic", "mixed", "yarn", "llama3", "hope", "power", "truncated"):
        build.model(compose([f"model={model}", "size=nano", f"model.position.scaling={scaling}"]))


def test_every_method_of_the_reading_list_has_laws() -> None:
    from zoo.memory.attention.position_options import OF_KIND, PositionOptions, Scaling, position_options

    options = [position_options(position) for position in METHODS.values()]
    assert {option.kind for option in options} == OF_KIND.keys() - {"learned", "none"}
    assert {option.scaling for option in options} == set(Scaling.__args__)
    assert isinstance(options[0], PositionOptions)
