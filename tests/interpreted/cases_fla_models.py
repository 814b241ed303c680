"""Random models of flash-linear-attention, interpreted, against the zoo's from their weights and configs."""

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interpreted.interpreter import interpretable_fla
from zoo.models.published.imported import loaded

RANKS = {
    6: {"proj_low_rank_dim": 4, "gate_low_rank_dim": 6},
    7: {"decay_low_rank_dim": 8, "gate_low_rank_dim": 12, "a_low_rank_dim": 6, "v_low_rank_dim": 4},
}
OTHER = {"tie_word_embeddings": True, "norm_eps": 1e-2, "fuse_norm": False}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "delta": ("deltanet", "DeltaNet", {"num_heads": 2}),
    "delta, other options": (
        "deltanet",
        "DeltaNet",
        {"num_heads": 2, "use_gate": True, "allow_neg_eigval": True, "use_short_conv": False},
    ),
    "gated": ("deltanet", "GatedDeltaNet", {"num_heads": 2, "head_dim": 16, "num_v_heads": 4}),
    "kda": ("deltanet", "KDA", {"num_heads": 2, "head_dim": 16}),
    "kda, bounded": (
        "deltanet",
        "KDA",
        {"num_heads": 2, "head_dim": 16, "safe_gate": True, "lower_bound": -5.0},
    ),
    "gla": ("gla", "GLA", {"num_heads": 2, "expand_k": 1.0}),
    "gla, other options": (
        "gla",
        "GLA",
        {"num_heads": 4, "num_kv_heads": 2, "use_short_conv": True, "clamp_min": -0.02, "expand_k": 2.0},
    ),
    "hgrn2": ("hgrn2", "HGRN2", {"expand_ratio": 16, "tie_word_embeddings": True}),
    "hgrn2, convolved": ("hgrn2", "HGRN2", {"expand_ratio": 16, "use_short_conv": True}),
    "rwkv6": ("fla_rwkv", "RWKV6", {"num_heads": 2, "expand_k": 1.0, **RANKS[6]}),
    "rwkv6, other options": ("fla_rwkv", "RWKV6", {"num_heads": 4, "expand_k": 1.0, **RANKS[6], **OTHER}),
    "rwkv7": ("fla_rwkv", "RWKV7", {"head_dim": 16, **RANKS[7]}),
    "rwkv7, other options": ("fla_rwkv", "RWKV7", {"head_dim": 8, **RANKS[7], **OTHER}),
}
SHAPE: dict[str, Any] = {
    "attn_mode": "fused_recurrent",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "vocab_size": 40,
    "hidden_ratio": 3,
}


def random_model(name: str, options: dict[str, Any]) -> Any:
    """Weights large enough for every one of them to show in the logits."""
    models = import_module("fla.models")
    config = getattr(models, f"{name}Config")(**SHAPE, **options)
    torch.manual_seed(0)
    model = getattr(models, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.5))
    return model


@pytest.fixture(scope="module", autouse=True)
def _interpretable() -> None:
    interpretable_fla()


@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_logits(case: str) -> None:
    format_, name, options = MODELS[case]
    model = random_model(name, options)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = torch.randint(40, (2, 40))
    expected: Tensor = model(tokens).logits
    config = model.config.to_dict() | {"architectures": [f"{name}ForCausalLM"]}
    logits, _ = loaded(format_, weights, config)(tokens)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
