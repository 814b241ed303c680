"""RWKV-6 and RWKV-7 under the names of flash-linear-attention: names, sizes, and what is refused.

tests/interpreted/cases_fla_models.py holds the logits to those of the published models.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.models.published.detect import detect
from zoo.models.published.fla_rwkv import OURS, table
from zoo.models.published.imported import loaded
from zoo.models.published.weights import published_weights
from zoo.models.rwkv6 import RWKV6
from zoo.models.rwkv7 import RWKV7

CONFIG: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "vocab_size": 11,
    "norm_first": True,
    "hidden_act": "sqrelu",
    "norm_eps": 64e-5 / 8,
}
CONFIGS = {
    6: {**CONFIG, "model_type": "rwkv6", "num_heads": 2, "expand_k": 1.0, "norm_eps": 64e-5}
    | {"proj_low_rank_dim": 3, "gate_low_rank_dim": 4, "hidden_ratio": 3.5},  # 56 channels, rounded up
    7: {**CONFIG, "model_type": "rwkv7", "num_heads": 2, "head_dim": 8, "value_dim": [16, 16]}
    | {"decay_low_rank_dim": 4, "a_low_rank_dim": 3, "v_low_rank_dim": 5, "gate_low_rank_dim": 6},
}


def published(version: int) -> tuple[Any, dict[str, Tensor]]:
    """A model of ours, and its weights as flash-linear-attention has them."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 11, "segment_len": 8, "depth": 2, "width": 16, "head_dim": 8}
    shape |= {"mlp_width": 64, "decay_rank": 4, "tied": False}
    model: Any
    if version == 6:
        model = RWKV6(**shape, mix_rank=3)
    else:
        model = RWKV7(**shape, strength_rank=3, value_rank=5, gate_rank=6)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = CONFIGS[version]["norm_eps"]
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.3)
    weights = {
        name: weight.detach().clone() for name, weight in published_weights(model, table(model)).items()
    }
    theirs = [OURS.index(i) for i in range(5)]
    for name, weight in weights.items():
        if name.endswith("x_bias"):
            weights[name] = weight[theirs]
        elif name.endswith("x_proj.0.linear.weight"):
            weights[name] = weight.unflatten(0, (5, 3))[theirs].flatten(0, 1)
        elif name.endswith("x_proj.2.weight"):
            weights[name] = weight.unflatten(1, (5, 3))[:, theirs].flatten(1)
    return model, weights


@pytest.mark.parametrize("version", [6, 7])
def test_weights_come_back_from_the_published_names(version: int) -> None:
    model, weights = published(version)
    assert detect(CONFIGS[version]) == "fla_rwkv"
    tokens = torch.randint(11, (2, 13))
    logits, _ = loaded("fla_rwkv", weights, CONFIGS[version])(tokens)
    torch.testing.assert_close(logits, model(tokens)[0])
    prefixed = {f"module.{name}": weight for name, weight in weights.items()}
    assert torch.equal(loaded("fla_rwkv", prefixed, CONFIGS[version])(tokens)[0], logits)


@pytest.mark.parametrize(
    ("version", "changes", "message"),
    [
        (6, {"expand_k": 0.5}, r"expected expand_k and expand_v 1.0, .* found 0.5 and 1.0"),
        (6, {"expand_k": None}, r"expected expand_k and expand_v 1.0, .* found None and 1.0"),
        (6, {"norm_first": False}, "expected norm_first True, the only one supported, found False"),
        (6, {"gate_low_rank_dim": 5}, r"expected .*w_proj.linear.lora.0.weight \[5, 16\], found \[4, 16\]"),
        (6, {"hidden_ratio": -1}, "expected hidden_ratio, a number above 0, found -1"),
        (6, {"num_heads": 3}, "expected num_heads that divides 16, found 3"),
        (7, {"value_dim": [16, 32]}, r"expected value_dim \[16, 16\], .* found \[16, 32\]"),
        (7, {"num_heads": 4}, "expected num_heads 2, .* found 4"),
        (7, {"attn": {"layers": [1]}}, "attn"),
        (7, {"hidden_act": "relu"}, "expected hidden_act 'sqrelu', the only one supported, found 'relu'"),
        (7, {"model_type": None}, "expected model_type rwkv6 or rwkv7, found None"),
    ],
)
def test_what_the_zoo_does_not_compute_is_refused(
    version: int, changes: dict[str, Any], message: str
) -> None:
    _, weights = published(version)
    with pytest.raises(UserError, match=message):
        loaded("fla_rwkv", weights, CONFIGS[version] | changes)
