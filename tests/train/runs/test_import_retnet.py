"""Import of torchscale's RetNet."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interpreted.packages import install
from tests.train.runs.published_retnet import CONFIG, random_model
from zoo.errors import UserError
from zoo.models.published import retnet
from zoo.models.published.imported import loaded


def test_every_weight_has_a_gradient_under_its_name() -> None:
    weights, config = random_model()
    model: Any = loaded("retnet", weights, config)
    logits, _ = model(torch.arange(30).reshape(2, 15))
    logits.square().sum().backward()
    gradients = retnet.published_gradients(model)
    learned = {name: x.shape for name, x in weights.items() if "rel_pos" not in name}
    assert {name: x.shape for name, x in gradients.items()} == learned
    assert all(bool(x.any()) for x in gradients.values())


def test_missing_and_unknown_weights() -> None:
    weights, config = random_model()
    name = "layers.1.retention.g_proj.weight"
    with pytest.raises(UserError, match=rf"expected {name} \[48, 32\], found none"):
        loaded("retnet", {key: x for key, x in weights.items() if key != name}, config)
    with pytest.raises(UserError, match=r"expected none of layers.0.ffn.ffn_layernorm.weight"):
        loaded("retnet", weights | {"layers.0.ffn.ffn_layernorm.weight": torch.ones(40).double()}, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_fn": "swish"}, "expected activation_fn 'gelu', the only one supported, found 'swish'"),
        ({"deepnorm": True}, "expected deepnorm False"),
        ({"no_scale_embedding": False}, "expected no_scale_embedding True"),
        ({"moe_freq": 2}, "expected moe_freq 0"),
        ({"decoder_retention_heads": 5}, "expected heads that divide embed_dim 32 and value_dim 48, found 5"),
        ({"sliding_window": 8}, "doesn't know sliding_window 8"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], message: str) -> None:
    weights, config = random_model()
    with pytest.raises(UserError, match=message):
        loaded("retnet", weights, config | changes)


@pytest.fixture
def torchscale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, without those that it needs only to train on several machines."""
    monkeypatch.syspath_prepend(install(tmp_path / "site", ["torchscale==0.3.0"]))
    for name, functions in (
        ("fairscale.nn", ("checkpoint_wrapper", "wrap")),
        ("timm.models.layers", ("drop_path",)),
    ):
        for part in range(1, name.count(".") + 1):
            package = ".".join(name.split(".")[:part])
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
        module: Any = ModuleType(name)
        for function in functions:
            setattr(module, function, None)
        monkeypatch.setitem(sys.modules, name, module)
    config, decoder = (import_module(f"torchscale.architecture.{name}") for name in ("config", "retnet"))
    return config.RetNetConfig, decoder.RetNetDecoder


@pytest.mark.slow
@torch.no_grad()
def test_logits_of_a_random_model(torchscale: Any) -> None:
    """With an epsilon of 0, where the published code's scales cancel; its decays are in float32."""
    torch.manual_seed(0)
    settings, decoder = torchscale
    arguments = settings(**CONFIG, layernorm_eps=0.0)
    theirs = decoder(arguments, torch.nn.Embedding(CONFIG["vocab_size"], CONFIG["decoder_embed_dim"]))
    theirs = theirs.double().eval()
    for parameter in theirs.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    tokens = torch.randint(CONFIG["vocab_size"], (2, 50))
    expected: Tensor = theirs(tokens)[0]
    ours = loaded("retnet", dict(theirs.state_dict()), vars(arguments))
    logits, _ = ours(tokens)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
