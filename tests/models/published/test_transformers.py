"""Checkpoints of transformers: a random model of its own, and the same logits from the zoo's."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.published.originals import (
    COMMON,
    GEMMA,
    GPT2,
    LLAMA,
    MAMBA2,
    MISTRAL,
    SCALED,
    Weights,
    logits_of,
    model_of,
    rope,
    saved,
    text,
)
from zoo.errors import UserError
from zoo.models.published.detect import detect
from zoo.models.published.imported import Imported, loaded, new_weights
from zoo.module import SequenceModule

torch.no_grad()


def same_logits(model: SequenceModule, expected: Tensor, tokens: Tensor) -> None:
    """Read at once, folded, and after the run's own class made it anew."""
    model.eval()
    for logits in (model(tokens)[0], model.fold(tokens)[0]):
        error = (logits - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert error < 1e-5


LOADED: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # format, kind, fields of the original, fields that the import adds
    "llama": ("transformer", "llama", LLAMA, {}),
    "llama grouped and biased": (
        "transformer",
        "llama",
        LLAMA | {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.01},
        {},
    ),
    "llama tied": ("transformer", "llama", LLAMA | {"tie_word_embeddings": True}, {}),
    "llama of another base": ("transformer", "llama", LLAMA | rope(rope_type="default", rope_theta=99.0), {}),
    "llama linear": (
        "transformer",
        "llama",
        LLAMA | rope(rope_type="linear", rope_theta=1e4, factor=4.0),
        {},
    ),
    "llama yarn": ("transformer", "llama", LLAMA | rope(rope_type="yarn", beta_fast=4.0, **SCALED), {}),
    "llama 3": (
        "transformer",
        "llama",
        LLAMA | rope(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0, **SCALED),
        {},
    ),
    "mistral": ("sliding_window", "mistral", LLAMA | {"num_key_value_heads": 2, "sliding_window": 8}, {}),
    "mistral without a window": ("transformer", "mistral", MISTRAL | {"sliding_window": None}, {}),
    "a window that sees all": ("transformer", "mistral", MISTRAL | {"sliding_window": 64}, {}),
    "gpt2": ("transformer", "gpt2", GPT2, {}),
    "gpt2 of other options": (
        "transformer",
        "gpt2",
        GPT2 | {"n_inner": 40, "activation_function": "relu", "layer_norm_epsilon": 0.01},
        {},
    ),
    "gpt2 untied": ("transformer", "gpt2", GPT2 | {"tie_word_embeddings": False}, {}),
    "unlimiformer of llama": ("unlimiformer", "llama", LLAMA | {"num_key_value_heads": 2}, {}),
    "unlimiformer of gpt2": ("unlimiformer", "gpt2", GPT2, {}),
    "recurrent gemma": ("griffin", "recurrent_gemma", GEMMA, {}),
    "recurrent gemma of other options": (
        "griffin",
        "recurrent_gemma",
        GEMMA
        | {"block_types": ["attention", "recurrent"], "lru_width": 64, "logits_soft_cap": 5.0}
        | {"conv1d_width": 3, "rms_norm_eps": 0.01},
        {},
    ),
    "mamba": ("mamba", "mamba", COMMON | {"state_size": 8}, {}),
    "mamba2": ("mamba2", "mamba2", MAMBA2, {}),
}


@pytest.mark.parametrize("case", LOADED)
def test_logits_are_those_of_transformers(case: str) -> None:
    format_, kind, fields, more = LOADED[case]
    weights, config = saved(kind, **fields)
    config |= more
    tokens = text()
    model = loaded(format_, weights, config)
    expected = logits_of(kind, tokens, **fields)
    same_logits(model, expected, tokens)
    if "rope_parameters" in fields:
        assert (expected - logits_of(kind, tokens, **LLAMA)).abs().max() > 1e-3


@pytest.mark.parametrize("case", [name for name, case in LOADED.items() if case[0] != "unlimiformer"])
def test_the_config_names_its_format(case: str) -> None:
    format_, kind, fields, more = LOADED[case]
    detected = detect(saved(kind, **fields)[1] | more)
    assert detected == ("sliding_window" if case == "a window that sees all" else format_)


def test_a_long_text_in_segments() -> None:
    """A transformer reads each segment alone; a window carries its keys from segment to segment."""
    tokens = text(40)
    weights, config = saved("llama", **LLAMA)
    segments = tokens.split(16, dim=1)
    expected = torch.cat([logits_of("llama", segment, **LLAMA) for segment in segments], dim=1)
    same_logits(loaded("transformer", weights, config | {"segment_len": 16}), expected, tokens)
    fields = MISTRAL | {"sliding_window": 8}
    weights, config = saved("mistral", **fields)
    expected = logits_of("mistral", tokens, **fields)
    same_logits(loaded("sliding_window", weights, config | {"segment_len": 16}), expected, tokens)


def test_a_window_of_llama() -> None:
    """Of a LLaMA the config names the window; it then computes what Mistral does."""
    weights, config = saved("llama", **LLAMA)
    with pytest.raises(UserError, match=r"expected sliding_window, .*, found none"):
        loaded("sliding_window", weights, config)
    fields = MISTRAL | {"sliding_window": 8}
    weights, _ = saved("mistral", **fields)
    tokens = text()
    same_logits(
        loaded("sliding_window", weights, config | {"sliding_window": 8}),
        logits_of("mistral", tokens, **fields),
        tokens,
    )
    with torch.no_grad():
        model = loaded("sliding_window", weights, config | {"sliding_window": 8, "sinks": 4}).eval()
        assert (model(tokens)[0] - logits_of("mistral", tokens, **fields)).abs().max() > 1e-3


def test_the_bank_of_unlimiformer_is_read() -> None:
    weights, config = saved("llama", **LLAMA)
    tokens = text(40)
    alone, memory = (
        loaded(format_, weights, config | {"segment_len": 16}).eval()(tokens)[0]
        for format_ in ("transformer", "unlimiformer")
    )
    assert torch.allclose(alone[:, :16], memory[:, :16])
    assert (alone - memory)[:, 16:].abs().max() > 1e-3


@torch.no_grad()
def segments_of_gpt2(tokens: Tensor, before: Tensor | None, after: Tensor, length: int) -> Tensor:
    """GPT-2 that reads [before, segment, after] of every segment; with `before`, a segment's last hidden
    states are both for the next one (RMT's equation)."""
    model = model_of("gpt2", **GPT2)
    outputs, size = [], len(after)
    carried = None if before is None else before.expand(len(tokens), -1, -1)
    for segment in tokens.split(length, dim=1):
        x = model.transformer.wte(segment)
        if carried is None:
            x = torch.cat([x, after.expand(len(x), -1, -1)], dim=1)
        else:
            x = torch.cat([carried, x, carried], dim=1)
        hidden = model.transformer(inputs_embeds=x, use_cache=False).last_hidden_state
        start = 0 if carried is None else size
        outputs.append(model.lm_head(hidden[:, start : start + segment.shape[1]]))
        carried = None if carried is None else hidden[:, -size:]
    return torch.cat(outputs, dim=1)


MEMORY = {"num_mem_tokens": 3, "segment_len": 10}
ARMT = MEMORY | {"d_mem": 4, "d_key": 24}


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_memory_tokens_begin_beside_a_gpt2(prefix: str) -> None:
    weights, config = saved("gpt2", **GPT2)
    weights = {
        name.replace("transformer.", prefix): weight
        for name, weight in weights.items()
        if "lm_head" not in name
    }
    tokens = text()
    rmt = loaded("rmt", weights, config | MEMORY)
    memory: Any = rmt.memory
    same_logits(rmt, segments_of_gpt2(tokens, memory, memory, 10), tokens)
    assert 0.5 < memory.std() / weights[f"{prefix}wte.weight"].std() < 1.5
    assert torch.equal(memory, torch.as_tensor(loaded("rmt", weights, config | MEMORY).memory))
    armt = loaded("armt", weights, config | ARMT)
    same_logits(armt, segments_of_gpt2(tokens, None, torch.as_tensor(armt.memory), 10), tokens)
    assert detect(config | MEMORY) == "rmt"
    assert detect(config | ARMT) == "armt"
    assert new_weights("rmt", weights) == ["memory"]
    assert new_weights("armt", weights) == ["memory", "W_mq", "W_mk", "W_mv", "W_mb"]
    assert new_weights("mamba", weights) == []


def test_a_gpt2_has_room_for_its_memory() -> None:
    weights, config = saved("gpt2", **GPT2)
    with pytest.raises(UserError, match="expected a table of at least 66 positions, found 64"):
        loaded("rmt", weights, config | MEMORY | {"segment_len": 60})
    with pytest.raises(UserError, match="expected num_mem_tokens, a whole number from 1 on, found None"):
        loaded("rmt", weights, config | {"segment_len": 10})


BOTH = {  # what mamba_ssm's configs have, as the published conversions keep it
    **{"d_model": 32, "n_layer": 2, "d_inner": 64, "ssm_cfg": {}, "rms_norm": True, "fused_add_norm": True},
    **{"pad_vocab_size_multiple": 8, "rescale_prenorm_residual": False, "residual_in_fp32": True},
}


@pytest.mark.parametrize(("kind", "fields"), [("mamba", COMMON | {"state_size": 8}), ("mamba2", MAMBA2)])
def test_both_conventions_of_mamba_in_one_config(kind: str, fields: dict[str, Any]) -> None:
    weights, config = saved(kind, **fields)
    tokens = text()
    expected = logits_of(kind, tokens, **fields)
    same_logits(loaded(kind, weights, config | BOTH), expected, tokens)
    renamed = {name.replace(".embeddings.", ".embedding."): weight for name, weight in weights.items()}
    same_logits(loaded(kind, renamed, config | BOTH), expected, tokens)
    for field, value in (("d_model", 16), ("n_layer", 3), ("rms_norm", False), ("ssm_cfg", {"d_state": 9})):
        with pytest.raises(UserError, match=f"expected {field} .*, the only one supported, found"):
            loaded(kind, weights, config | BOTH | {field: value})


def lightning(weights: Weights) -> Weights:
    return {f"model.{name}": weight for name, weight in weights.items()}


def compiled(weights: Weights) -> Weights:
    return {f"module._orig_mod.{name}": weight for name, weight in weights.items()}


@pytest.mark.parametrize("wrap", [lightning, compiled], ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("case", ["llama", "llama tied", "mamba", "gpt2", "recurrent gemma"])
def test_a_prefix_of_all_names_is_taken_off(case: str, wrap: Callable[[Weights], Weights]) -> None:
    format_, kind, fields, _ = LOADED[case]
    weights, config = saved(kind, **fields)
    tokens = text()
    same_logits(loaded(format_, wrap(weights), config), logits_of(kind, tokens, **fields), tokens)


def test_a_prefix_of_some_names_is_named() -> None:
    weights, config = saved("mamba", **COMMON)
    with pytest.raises(UserError) as refused:
        loaded("mamba", lightning(weights) | {"loss.weight": torch.ones(3).double()}, config)
    assert re.fullmatch(
        r"weights: expected backbone.embeddings.weight \[96, 32\], found none but model.backbone.embeddings"
        r".weight: the prefix model. would fit, if loss.weight and others without it were left out",
        str(refused.value),
    )


def test_the_nearest_name_is_named() -> None:
    weights, config = saved("mamba", **COMMON)
    weights["backbone.norm.weight"] = weights.pop("backbone.norm_f.weight")
    with pytest.raises(
        UserError, match=r"norm_f.weight \[32\], found none; the nearest is backbone.norm.weight"
    ):
        loaded("mamba", weights, config)


def test_a_stored_run_makes_the_same_model() -> None:
    """From names, shapes and ties alone, whatever stood before the names."""
    for case in ("gpt2", "llama tied", "recurrent gemma"):
        format_, kind, fields, _ = LOADED[case]
        weights, config = saved(kind, **fields)
        weights = lightning({name: weight.float() for name, weight in weights.items()})
        run = Imported(format_, config, {name: list(weight.shape) for name, weight in weights.items()})
        model = loaded(format_, weights, config)
        assert {name: x.shape for name, x in run.model.state_dict().items()} == {
            name: x.shape for name, x in model.state_dict().items()
        }


REFUSED: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
    ("transformer", "llama", LLAMA, {"hidden_act": "gelu"}, "hidden_act 'silu'"),
    ("transformer", "llama", LLAMA, {"head_dim": 16}, "head_dim 8"),
    ("transformer", "llama", LLAMA, {"attention_bias": True}, "mlp_bias True, .*found False"),
    ("transformer", "llama", LLAMA, {"mlp_bias": True}, "mlp_bias False, .*found True"),
    ("transformer", "llama", LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 1.0"),
    ("transformer", "llama", LLAMA, rope(rope_type="dynamic", factor=2.0), "rope_type .*, found 'dynamic'"),
    ("transformer", "llama", LLAMA, rope(rope_type="longrope", long_factor=[1]), "found 'longrope'"),
    (
        "transformer",
        "llama",
        LLAMA,
        rope(rope_type="linear"),
        "expected factor of rope_type linear, found none",
    ),
    ("transformer", "llama", LLAMA, rope(rope_type="yarn", factor=2, x=1), "yarn doesn't know x 1"),
    (
        "transformer",
        "llama",
        LLAMA,
        rope(rope_type="linear", factor="two"),
        "position.factor: expected float",
    ),
    ("transformer", "llama", LLAMA, {"nonsense": 3}, "doesn't know nonsense 3"),
    (
        "transformer",
        "mistral",
        MISTRAL | {"sliding_window": 8},
        {},
        "expected sliding_window of at least .*, found 8",
    ),
    (
        "transformer",
        "gpt2",
        GPT2,
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx",
    ),
    ("transformer", "gpt2", GPT2, {"activation_function": "silu"}, "activation.* found 'silu'"),
    ("transformer", "gpt2", GPT2, {"segment_len": 65}, "expected a table of at least 65 positions, found 64"),
    ("unlimiformer", "mistral", MISTRAL | {"sliding_window": 8}, {}, "sliding_window None, .*found 8"),
    ("unlimiformer", "llama", LLAMA, {"retrieved_positions": "far"}, "one of before, .*, found 'far'"),
    ("sliding_window", "gpt2", GPT2, {"model_type": None, "architectures": None}, "found n_positions"),
    ("griffin", "recurrent_gemma", GEMMA, {"num_key_value_heads": 4}, "num_key_value_heads 1, .*found 4"),
    ("griffin", "recurrent_gemma", GEMMA, {"num_key_value_heads": None}, "num_key_value_heads 1, .*found 4"),
    ("griffin", "recurrent_gemma", GEMMA, {"attention_bias": True}, "attention_bias False"),
    (
        "griffin",
        "recurrent_gemma",
        GEMMA,
        {"hidden_activation": "silu"},
        "hidden_activation 'gelu_pytorch_tanh'",
    ),
    (
        "griffin",
        "recurrent_gemma",
        GEMMA,
        {"logits_soft_cap": 0},
        "logits_soft_cap, a number above 0, found 0",
    ),
    ("griffin", "recurrent_gemma", GEMMA, {"block_types": ["mlp"]}, "block_types, .*found .'mlp'"),
    (
        "griffin",
        "recurrent_gemma",
        GEMMA,
        rope(rope_type="default", rope_theta=1e4, partial_rotary_factor=1.0),
        "partial_rotary_factor 1.0",
    ),
    (
        "mamba",
        "falcon_mamba",
        COMMON,
        {},
        "expected architectures .*found 'FalconMambaForCausalLM'|falcon_mamba",
    ),
]


@pytest.mark.parametrize(("format_", "kind", "fields", "changes", "message"), REFUSED, ids=str)
def test_what_would_be_another_model_is_refused(
    format_: str, kind: str, fields: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    weights, config = saved(kind, **fields)
    with pytest.raises(UserError) as refused:
        loaded(format_, weights, config | changes)
    assert re.search(message, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bamba"}, "expected model_type, one of .*, found 'bamba', which no format reads"),
        ({"model_type": "zamba2"}, "found 'zamba2', which no format reads"),
        ({"model_type": "falcon_mamba"}, "found 'falcon_mamba'"),
        ({"model_type": ["llama"]}, r"found \['llama'\]"),
        (
            {"hidden_size": 3},
            "format: expected zoo or one of .*, found none, and config.json has no model_type",
        ),
        ({"d_model": 8, "n_layer": 1, "ssm_cfg": {"layer": "Mamba3"}}, "found none, and config.json"),
        ({"d_model": 8, "n_layer": 1, "ssm_cfg": 3}, "found none, and config.json"),
        ({"d_model": 8, "n_layer": 1, "n_token": 5}, "found none, and config.json"),
    ],
    ids=str,
)
def test_configs_of_no_format(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        detect(config)


def test_configs_of_mamba_ssm() -> None:
    base = {"d_model": 8, "n_layer": 1, "vocab_size": 5}
    assert detect(base | {"ssm_cfg": {}}) == "mamba"
    assert detect(base | {"ssm_cfg": {"layer": "Mamba2"}}) == "mamba2"
    assert detect(base | {"ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [0]}) == "mamba2_hybrid"


def test_hybrids_of_other_shapes_are_refused_by_the_field_that_decides() -> None:
    for kind in ("bamba", "zamba2"):
        with pytest.raises(
            UserError, match=f"expected no model_type for format mamba2_hybrid, found '{kind}'"
        ):
            loaded("mamba2_hybrid", {}, {"model_type": kind})
    with pytest.raises(UserError, match="num_experts 1, the only one supported, found 16"):
        loaded("jamba", {}, {"model_type": "jamba", "num_experts": 16})
    with pytest.raises(UserError, match=r"cutoffs \[\], the only one supported, found \[20\]"):
        loaded("transformer_xl", {}, {"d_model": 8, "cutoffs": [20]})
