"""Fields of published configs: each is computed, without effect, or refused by its name."""

import re
from typing import Any

import pytest
import torch

from tests.train.runs.test_import_published import CASES, published
from zoo.errors import UserError
from zoo.models.published.fields import Fields, Renamed, rope_base
from zoo.models.published.imported import Imported, loaded

LLAMA = "landmark/llama_cache_topk"
SAMBA = "hybrids/samba_4layer"
LONGLLAMA = "fot/longllama_inference"


def refusal(case: str, **fields: Any) -> str:
    weights, config = published(case)
    with pytest.raises(UserError) as refused:
        loaded(CASES[case], weights, config | fields)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("case", CASES)
def test_a_field_that_no_loader_knows_is_refused(case: str) -> None:
    message = refusal(case, nonsense=3)
    assert message.startswith(f"config: format {CASES[case]} doesn't know nonsense 3;")
    weights, config = published(case)
    loaded(CASES[case], weights, config | {"nonsense": None})


@pytest.mark.parametrize("case", CASES)
def test_another_family_is_refused_by_its_name(case: str) -> None:
    for field, name in (("model_type", "falcon_mamba"), ("architectures", ["FalconMambaForCausalLM"])):
        assert re.search(
            rf"{field}.* for format {CASES[case]}, found 'falcon", refusal(case, **{field: name}), re.I
        )


@pytest.mark.parametrize(
    ("case", "fields", "message"),
    [
        (SAMBA, {"full_per_layer": 2}, "full_per_layer .* found 2: layers 1, 3 see everything"),
        (SAMBA, {"condense_ratio": 2}, "condense_ratio 1, the only one supported, found 2"),
        (SAMBA, {"gla_per_layer": 2}, "gla_per_layer -1, the only one supported, found 2"),
        (LLAMA, {"rope_theta": 1e6}, "rope_theta 10000, the only one supported, found 1000000.0"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling without .* 'linear'"),
        (LLAMA, {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters .* 'yarn'"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act 'silu', the only one supported, found 'gelu'"),
        (LLAMA, {"attention_bias": True}, "attention_bias False"),
        (LLAMA, {"num_key_value_heads": 1}, "num_key_value_heads 2"),
        (LLAMA, {"head_dim": 4}, "head_dim 8"),
        (LONGLLAMA, {"rope_parameters": {"rope_theta": 0}}, "rope_theta, a number above 0"),
        (LONGLLAMA, {"rope_parameters": {"rope_theta": 5e5}}, "one base of rotary positions"),
        (LONGLLAMA, {"rope_parameters": 3}, "expected rope_parameters, an object, found 3"),
        (LONGLLAMA, {"mlp_bias": True}, "mlp_bias False"),
        ("hybrids/jamba_nomoe", {"num_experts": 16}, "num_experts 1"),
        ("hybrids/jamba_nomoe", {"is_encoder_decoder": True}, "is_encoder_decoder False"),
        ("mamba1/model_2layer", {"ssm_cfg": {"d_state": 4, "headdim": 3}}, "doesn't know ssm_cfg.headdim 3"),
        ("mamba1/model_2layer", {"attn_layer_idx": [1]}, "attn_layer_idx"),
        ("hybrids/mamba2_attn_mlp", {"ssm_cfg": {"layer": "Mamba2", "window": 3}}, "expected|ssm_cfg.window"),
        ("txl_model_postln_tied", {"sample_softmax": 8}, "sample_softmax -1"),
        ("rmt_model_gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("infini/infini_model_delta_rope", {"activation": "relu"}, r"activation 'gelu \(erf\)'"),
        ("infini/infini_model_delta_rope", {"lm_head": "a"}, "lm_head tied … or untied …, found 'a'"),
        ("infini/infini_model_delta_rope", {"eps": "1e-6"}, "expected eps none; .* …, found '1e-6'"),
        ("infini/infini_model_delta_rope", {"rope_pairing": "pairs"}, "expected rope_pairing half-split …"),
    ],
    ids=str,
)
def test_fields_that_would_change_the_logits(case: str, fields: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(case, **fields))


def test_no_field_of_a_long_list_is_lost() -> None:
    message = refusal("mamba1/model_2layer", **{f"unknown_{i}": "x" * 200 for i in range(9)})
    assert "doesn't know unknown_0 " in message
    assert "and 6 more; config.unknown_0=null leaves out" in message
    assert len(message) < 400


@pytest.mark.parametrize("layers", [4, 5, 1_000_000])
def test_windows_in_every_attention_layer(layers: int) -> None:
    """Layers 1 and 3 attend: of 4 layers the last of every 4 does, so 4 is refused too."""
    weights, config = published("hybrids/samba_4layer")
    if layers == 4:
        assert "layers 3 see everything" in refusal("hybrids/samba_4layer", full_per_layer=4)
    else:
        loaded("samba", weights, config | {"full_per_layer": layers})


def test_rotary_bases_of_both_generations_of_configs_are_one() -> None:
    weights, config = published("fot/longllama_inference")
    tokens = torch.arange(8)[None]
    del config["rope_theta"]
    default = loaded("focused", weights, config).eval()(tokens)[0]
    old = loaded("focused", weights, config | {"rope_theta": 5e5}).eval()(tokens)[0]
    new = loaded(
        "focused", weights, config | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    )
    assert torch.equal(new.eval()(tokens)[0], old)
    assert (old - default).abs().max() > 1e-3
    assert rope_base({}) == rope_base({"rope_scaling": None, "rope_theta": None}) == 10_000


def test_a_projection_is_tied_as_the_config_says() -> None:
    weights, config = published("rmt_model_gpt2")
    head = "memory_cell.model.lm_head.weight"
    copied = weights | {head: weights["memory_cell.model.transformer.wte.weight"].clone()}
    for value, is_tied in ((None, True), (True, True), (False, False)):
        model = loaded("rmt", copied, config | {"tie_word_embeddings": value})
        assert (model.head.weight is model.embed.weight) == is_tied
    with pytest.raises(UserError, match="expected tie_word_embeddings false, as the weights are, found true"):
        loaded("rmt", copied | {head: copied[head] + 1}, config | {"tie_word_embeddings": True})


def test_a_run_that_was_imported_before_still_loads() -> None:
    weights, config = published("mamba1/model_2layer")
    shapes = {name: list(weight.shape) for name, weight in weights.items()}
    tied = [["backbone.embedding.weight", "lm_head.weight"]]
    Imported("mamba", config | {"nonsense": 3}, shapes, tied)


def test_fields_read_through_other_names_are_read() -> None:
    fields = Fields({"hidden": 4, "left": 1, "deep": {"a": 1, "b": 2}})
    renamed = Renamed(fields, {"hidden": "hidden_size"})
    assert "hidden_size" in renamed
    assert "hidden" not in renamed
    assert renamed["hidden_size"] == 4
    assert fields["deep"]["a"] == 1
    assert dict(fields.unread()) == {"left": 1, "deep.b": 2}
