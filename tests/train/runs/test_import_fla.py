"""Import of the models of flash-linear-attention: every weight has its place, and a field that isn't computed
is refused by its name.  tests/interpreted/cases_fla_models.py compares logits with the published code."""

from importlib import import_module
from typing import Any

import pytest
import torch

from tests.train.runs.published_fla import LAYERS, random_model
from zoo.errors import UserError
from zoo.models.published.imported import loaded

FORMATS = {"delta_net": "deltanet", "gated_deltanet": "deltanet", "kda": "deltanet"}


def model_of(model_type: str, **changes: Any) -> Any:
    weights, config = random_model(model_type)
    return loaded(FORMATS.get(model_type, model_type), weights, config | changes)


@pytest.mark.parametrize("model_type", LAYERS)
def test_every_weight_has_a_gradient_under_its_name(model_type: str) -> None:
    weights, _ = random_model(model_type)
    model = model_of(model_type)
    module = import_module(f"zoo.models.published.{FORMATS.get(model_type, model_type)}")
    table = module.table(model)
    ours = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in weights.items():
        layer = name.split(".")[2] if ".layers." in name else "0"
        our_name, view = table[name.replace(f".layers.{layer}.", ".layers.{i}.")]
        assert torch.equal(view(ours[our_name.replace("{i}", layer)]), weight)
    logits, _ = model(torch.arange(30).reshape(2, 15))
    logits.square().sum().backward()
    gradients = module.published_gradients(model)
    assert {name: x.shape for name, x in gradients.items()} == {name: x.shape for name, x in weights.items()}
    assert all(bool(x.any()) for x in gradients.values())


@pytest.mark.parametrize("model_type", LAYERS)
def test_missing_and_unknown_weights(model_type: str) -> None:
    weights, config = random_model(model_type)
    format_ = FORMATS.get(model_type, model_type)
    name = "model.layers.1.attn.o_proj.weight"
    with pytest.raises(UserError, match=rf"expected {name} \[32, 32\], found none"):
        loaded(format_, {key: x for key, x in weights.items() if key != name}, config)
    with pytest.raises(UserError, match=r"expected none of model.layers.0.attn.D, which this model hasn't"):
        loaded(format_, weights | {"model.layers.0.attn.D": torch.zeros(2).double()}, config)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("delta_net", {"use_beta": False}, "expected use_beta True, the only one supported, found False"),
        ("delta_net", {"qk_norm": "sum"}, "expected qk_norm 'l2'"),
        ("delta_net", {"use_output_norm": False}, "expected use_output_norm True"),
        ("delta_net", {"model_type": None}, "expected model_type, one of delta_net, .*, found None"),
        (
            "delta_net",
            {"model_type": "gla"},
            "expected model_type delta_net or gated_deltanet or kda .*'gla'",
        ),
        ("delta_net", {"attn": {"layers": [0]}}, "doesn't know attn"),
        ("gated_deltanet", {"output_gate_activation": "sigmoid"}, "expected output_gate_activation 'swish'"),
        ("gated_deltanet", {"num_v_heads": 3}, "value_heads 3 is not a multiple of heads 2"),
        ("kda", {"safe_gate": True}, "expected safe_gate with a lower_bound, found True and None"),
        ("kda", {"lower_bound": -5.0}, "expected safe_gate with a lower_bound, found False and -5.0"),
        ("gla", {"feature_map": "relu"}, "expected feature_map None"),
        ("gla", {"hidden_act": "powlu"}, "expected hidden_act 'swish'"),
        ("hgrn2", {"use_lower_bound": False}, "expected use_lower_bound True"),
        ("hgrn2", {"attnres_block_size": 2}, "doesn't know attnres_block_size 2"),
    ],
)
def test_configs_that_are_refused(model_type: str, changes: dict[str, Any], message: str) -> None:
    weights, config = random_model(model_type)
    with pytest.raises(UserError, match=message):
        loaded(FORMATS.get(model_type, model_type), weights, config | changes)


def test_norms_have_the_epsilon_of_the_config() -> None:
    """That of HGRN2's layers is 1e-5 whatever the config says."""
    gla, hgrn2 = model_of("gla", norm_eps=0.25), model_of("hgrn2", norm_eps=0.25)
    assert gla.norm.eps == gla.stack[1].mixer_norm.eps == gla.stack[1].mixer.norm_eps == 0.25
    assert hgrn2.stack[0].mlp_norm.eps == 0.25
    assert hgrn2.stack[0].mixer.norm.eps == 1e-5


def test_the_width_of_the_feed_forward_from_its_ratio() -> None:
    weights, config = random_model("gla")
    for name in list(weights):
        if ".mlp." in name:
            transposed = name.endswith("down_proj.weight")
            weights[name] = torch.zeros((32, 256) if transposed else (256, 32)).double()
    model: Any = loaded("gla", weights, config | {"intermediate_size": None})
    assert model.stack[0].mlp.out_proj.in_features == 256  # 32 * 4 * 2/3, rounded up
