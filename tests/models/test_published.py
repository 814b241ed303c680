"""What the loaders of published weights refuse, and what they let pass."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from zoo.errors import UserError
from zoo.models.published import armt, rmt, transformer_xl

FIXTURES = Path(__file__).parents[1] / "golden" / "fixtures"
LOADERS = {
    "txl_model_postln_tied": transformer_xl,
    "txl_model_preln_samelen_clamp_untied": transformer_xl,
    "rmt_cell": rmt,
    "rmt_model_gpt2": rmt,
    "rmt_xl_model": rmt,
    "armt_model": armt,
}


def read(case: str) -> tuple[ModuleType, dict[str, Tensor], dict[str, Any]]:
    tensors = load_file(FIXTURES / f"{case}.safetensors")
    weights = {name.removeprefix("param/"): x for name, x in tensors.items() if name.startswith("param/")}
    return LOADERS[case], weights, json.loads((FIXTURES / f"{case}.json").read_text())["config"]


@pytest.mark.parametrize("case", LOADERS)
def test_weights_that_are_missing_strange_or_misshapen(case: str) -> None:
    loader, weights, config = read(case)
    for name, weight in weights.items():
        with pytest.raises(UserError, match="found none"):
            loader.load({key: x for key, x in weights.items() if key != name}, config)
        with pytest.raises(UserError, match=r"expected .* \[.*\], found \[") as refused:
            loader.load(weights | {name: torch.cat([weight, weight])}, config)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"none of layers\.9\.x"):
        loader.load(weights | {"layers.9.x": torch.zeros(1, dtype=torch.float64)}, config)
    with pytest.raises(UserError, match=r"one floating dtype, found .*float32.*float64"):
        loader.load(weights | {"layers.9.x": torch.zeros(1)}, config)
    with pytest.raises(UserError, match="no weights"):
        loader.load({}, config)


@pytest.mark.parametrize("case", LOADERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_dtype_is_kept(case: str, dtype: torch.dtype) -> None:
    loader, weights, config = read(case)
    model = loader.load({name: x.to(dtype) for name, x in weights.items()}, config)
    assert {weight.dtype for weight in model.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("case", "field", "value"),
    [
        ("txl_model_postln_tied", "div_val", 2),
        ("txl_model_postln_tied", "cutoffs", [20]),
        ("txl_model_postln_tied", "d_embed", 8),
        ("txl_model_postln_tied", "ext_len", 1),
        ("txl_model_postln_tied", "attn_type", 2),
        ("txl_model_postln_tied", "d_model", 15),
        ("txl_model_postln_tied", "n_layer", 0),
        ("txl_model_postln_tied", "n_head", "four"),
        ("txl_model_postln_tied", "pre_lnorm", 1),
        ("txl_model_postln_tied", "tgt_len", None),
        ("txl_model_postln_tied", "dropout", 1.5),
        ("txl_model_preln_samelen_clamp_untied", "mem_len", 0),
        ("rmt_xl_model", "attn_type", 1),
        ("rmt_xl_model", "num_mem_tokens", 0),
        ("rmt_xl_model", "mem_at_end", "yes"),
        ("rmt_model_gpt2", "activation", "silu"),
        ("rmt_model_gpt2", "n_positions", 13),
        ("rmt_model_gpt2", "n_head", 3),
        ("rmt_model_gpt2", "segment_alignment", "center"),
        ("rmt_model_gpt2", "layer_norm_epsilon", "small"),
        ("armt_model", "d_key", 12),
        ("armt_model", "n_positions", 7),
        ("armt_model", "n_heads", 2),
        ("armt_model", "gating", True),
    ],
)
def test_fields_that_cannot_be_honoured(case: str, field: str, value: object) -> None:
    loader, weights, config = read(case)
    with pytest.raises(UserError) as refused:
        loader.load(weights, config | {field: value})
    assert "found" in str(refused.value) or str(value) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_buffers_and_tied_copies_pass() -> None:
    loader, weights, config = read("rmt_model_gpt2")
    body = "memory_cell.model."
    more = {
        f"{body}transformer.h.0.attn.bias": torch.ones(1, 1, 14, 14, dtype=torch.bool),
        f"{body}transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        f"{body}lm_head.weight": weights[f"{body}transformer.wte.weight"].clone(),
    }
    model = loader.load(weights | more, config)
    assert model.head.weight is model.embed.weight
    assert f"{body}lm_head.weight" not in loader.published_gradients(model)
    more[f"{body}lm_head.weight"] = more[f"{body}lm_head.weight"] + 1
    assert f"{body}lm_head.weight" in loader.published_gradients(loader.load(weights | more, config))

    loader, weights, config = read("txl_model_postln_tied")
    loader.load(weights | {"pos_emb.inv_freq": torch.ones(8)}, config)
    embed = weights["word_emb.emb_layers.0.weight"]
    loader.load(weights | {"crit.out_layers.0.weight": embed.clone()}, config)
    with pytest.raises(UserError, match="tied"):
        loader.load(weights | {"crit.out_layers.0.weight": embed + 1}, config)


def test_state_of_rows_that_have_read_differently() -> None:
    loader, weights, config = read("txl_model_postln_tied")
    model = loader.load(weights, config)
    assert all(len(memory) == 0 for memory in loader.published_state(model.init_state(2)).values())
    (first, *rest) = model.init_state(2)
    with pytest.raises(UserError, match=r"found \[0, 3\]"):
        loader.published_state((first._replace(filled=torch.tensor([0, 3])), *rest))
    assert armt.published_state(armt.load(*read("armt_model")[1:]).init_state(2)) == {}
