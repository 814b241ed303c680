"""Every model of configs/model, and variants that no config has, keep every law of zoo.contract."""

from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files
from typing import Any

import pytest
from omegaconf import DictConfig

from tests.laws import law_cases
from zoo.contract import laws
from zoo.law_tools import BATCH_SIZE, memory_cuts, perturbed, random_text
from zoo.models.armt import ARMT
from zoo.models.rmt import RMT
from zoo.models.rmt_xl import RMTXL
from zoo.models.transformer import Transformer
from zoo.models.transformer_xl import TransformerXL
from zoo.module import SequenceModule
from zoo.state import lazy_field_names, named_leaves
from zoo.train.runs import build
from zoo.train.runs.config import compose

MODELS = sorted(
    file.name.removesuffix(".yaml") for file in files("zoo.configs.model").iterdir() if ".yaml" in file.name
)

EXCEPTIONS: dict[str, dict[str, str]] = {
    "window_of_sinks": {
        "last_token_is_remembered": "a window of one: the sinks alone are carried",
        "last_token_is_remembered-train": "the same",
    },
    "rmt_xl_writes_first": {
        "memory_is_alive": "published option: write tokens stand before the segment and can't attend to it",
        "memory_is_alive-train": "the same",
    },
}
"""{model or variant: {law: reason}}: laws that it can't keep, as strict xfails."""

NANO: dict[str, Any] = {
    "vocab_size": 23,
    "segment_len": 8,
    "depth": 2,
    "width": 16,
    "heads": 4,
    "mlp_width": 20,
}
GPT2: dict[str, Any] = {"position": "learned", "norm": "layer", "activation": "gelu_tanh", "bias": True}
WINDOW = partial(Transformer, **NANO)
XL = partial(TransformerXL, **NANO)
RMT_ON_XL = partial(RMTXL, **NANO, memory_len=8, memory_tokens=2)

VARIANTS: dict[str, Callable[[], SequenceModule]] = {
    "gpt2": partial(Transformer, **NANO, **GPT2, dropout=0.1),
    "alibi": partial(Transformer, **NANO, position="alibi", activation="relu", tied=False),
    "no_positions": partial(Transformer, **NANO, position="none", kv_heads=1),
    "window": partial(WINDOW, window=12, kv_heads=2),
    "window_of_one": partial(WINDOW, window=1),
    "window_of_sinks": partial(WINDOW, window=1, sinks=2),
    "window_and_sinks": partial(WINDOW, window=6, sinks=3, kv_heads=2, dropout=0.1),
    "window_longer_than_texts": partial(WINDOW, window=50, sinks=2),
    "window_alibi_sinks": partial(WINDOW, window=5, sinks=2, position="alibi", bias=True),
    "window_alibi": partial(WINDOW, window=5, position="alibi"),
    "window_no_positions": partial(WINDOW, window=5, sinks=1, position="none"),
    "rmt_gpt2": partial(RMT, **NANO, **GPT2, memory_tokens=2, dropout=0.1),
    "rmt_block": partial(RMT, **NANO, memory_tokens=3, memory_attention="block"),
    "rmt_block_gpt2": partial(RMT, **NANO, **GPT2, memory_tokens=3, memory_attention="block"),
    "armt_gpt2": partial(ARMT, **NANO, **GPT2, memory_tokens=2, key_width=4, dropout=0.1),
    "armt_unwrapped": partial(ARMT, **NANO, **GPT2, memory_tokens=2, key_width=4, wrap_positions=False),
    "armt_uncorrected": partial(ARMT, **NANO, memory_tokens=2, key_width=6, nu=1, correction=False),
    "xl_postnorm": partial(XL, memory_len=8, dropout=0.1, attention_dropout=0.1),
    "xl_prenorm_same_length_clamped": partial(XL, memory_len=8, prenorm=True, same_length=True, clamp_len=5),
    "xl_without_memory": partial(XL, memory_len=0),
    "xl_normed_capped": partial(XL, memory_len=8, prenorm=True, qk_norm=True, soft_cap=2.0),
    "xl_short_memory": partial(XL, memory_len=3, head_dim=5, tied=False),
    "xl_long_memory": partial(XL, memory_len=21, same_length=True),
    "rmt_xl_writes_first": partial(RMT_ON_XL, write_at_end=False),
    "rmt_xl_reads_cache": partial(RMT_ON_XL, read_cache=True, prenorm=True),
    "rmt_xl_normed_capped": partial(RMT_ON_XL, prenorm=True, qk_norm=True, soft_cap=2.0),
    "rmt_xl_memory_norm": partial(RMT_ON_XL, memory_norm=True, prenorm=True),
    "rmt_xl_writes_first_reads_cache": partial(RMT_ON_XL, write_at_end=False, read_cache=True),
    "rmt_xl_wrapped": partial(RMT_ON_XL, wrapped=True),
    "rmt_xl_same_length": partial(RMT_ON_XL, same_length=True, clamp_len=6),
    "rmt_xl_without_cache": partial(RMTXL, **NANO, memory_len=0, memory_tokens=2),
}


@cache
def config_of(model: str) -> DictConfig:
    return compose([f"model={model}", "size=nano"])


def build_model(name: str) -> SequenceModule:
    return VARIANTS[name]() if name in VARIANTS else build.model(config_of(name))


BUILDS = {name: partial(build_model, name) for name in (*MODELS, *VARIANTS)}


@pytest.mark.parametrize("check", law_cases(BUILDS, EXCEPTIONS))
def test_law(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("name", MODELS)
def test_the_laws_write_every_piece_of_a_shipped_model_s_banks(name: str) -> None:
    """Else `memory_is_alive` would exempt the unwritten ones."""
    model = perturbed(partial(build_model, name)).eval()
    state, initial = model(random_text(model)[:, : max(memory_cuts(model))])[1], model.init_state(BATCH_SIZE)
    banks = tuple(f"{field}." for field in lazy_field_names(initial))
    for (leaf_name, leaf), (_, start) in zip(named_leaves(state), named_leaves(initial), strict=True):
        assert not leaf_name.startswith(banks) or not leaf.equal(start), leaf_name


def test_every_exception_names_a_model_and_a_law() -> None:
    names = {name for name, _ in laws(partial(Transformer, **NANO))}
    assert not set(MODELS) & set(VARIANTS)
    for model, reasons in EXCEPTIONS.items():
        assert model in (*MODELS, *VARIANTS)
        assert set(reasons) <= names
        assert all(reasons.values())


def test_every_model_has_a_file_of_its_name_or_extends_another() -> None:
    """`model=rmt` is models/rmt.py; a config without such a file extends another one."""
    modules = {file.name.removesuffix(".py") for file in files("zoo.models").iterdir()}
    for model in MODELS:
        text = (files("zoo.configs.model") / f"{model}.yaml").read_text()
        assert model in modules or "defaults:" in text
