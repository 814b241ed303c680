"""Random models under the names of flash-linear-attention.

tests/interpreted/cases_fla_models.py compares with models that it makes itself.
"""

from typing import Any

import torch
from torch import Tensor

WIDTH, MLP, VOCABULARY, DEPTH = 32, 48, 40, 2
Shapes = dict[str, tuple[int, ...]]


def convolutions(names: str, size: int = WIDTH) -> Shapes:
    return {f"{name}_conv1d.weight": (size, 1, 4) for name in names}


def projections(*names: str) -> Shapes:
    return {f"{name}_proj.weight": (WIDTH, WIDTH) for name in names}


LAYERS: dict[str, tuple[Shapes, dict[str, Any]]] = {
    "delta_net": (
        projections(*"qkvo") | convolutions("qkv") | {"b_proj.weight": (2, WIDTH), "o_norm.weight": (16,)},
        {"num_heads": 2, "expand_k": 1.0, "expand_v": 1.0, "use_gate": False, "use_output_norm": True},
    ),
    "gated_deltanet": (
        projections(*"qkvgo")
        | convolutions("qkv")
        | {"a_proj.weight": (2, WIDTH), "b_proj.weight": (2, WIDTH), "A_log": (2,), "dt_bias": (2,)}
        | {"o_norm.weight": (16,)},
        {"num_heads": 2, "num_v_heads": None, "head_dim": 16, "expand_v": 1.0, "use_gate": True},
    ),
    "kda": (
        projections(*"qkvo")
        | convolutions("qkv")
        | {"f_proj.0.weight": (16, WIDTH), "f_proj.1.weight": (WIDTH, 16), "g_proj.0.weight": (16, WIDTH)}
        | {"g_proj.1.weight": (WIDTH, 16), "g_proj.1.bias": (WIDTH,), "b_proj.weight": (2, WIDTH)}
        | {"A_log": (2,), "dt_bias": (WIDTH,), "o_norm.weight": (16,)},
        {"num_heads": 2, "head_dim": 16, "expand_v": 1.0, "safe_gate": False, "lower_bound": None},
    ),
    "gla": (
        projections(*"qkvgo")
        | {"gk_proj.0.weight": (16, WIDTH), "gk_proj.1.weight": (WIDTH, 16), "gk_proj.1.bias": (WIDTH,)}
        | {"g_norm_swish_gate.weight": (16,)},
        {"num_heads": 2, "expand_k": 1.0, "expand_v": 1.0, "use_gk": True, "feature_map": None},
    ),
    "hgrn2": (
        projections(*"qfio") | {"g_norm.weight": (WIDTH,)},
        {"num_heads": None, "expand_ratio": 16, "use_lower_bound": True, "use_short_conv": False},
    ),
}
CONFIG = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "vocab_size": VOCABULARY,
    "hidden_ratio": 4,
    "intermediate_size": MLP,
    "hidden_act": "swish",
    "attn": None,
    "attn_mode": "chunk",
    "conv_size": 4,
    "norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def random_model(model_type: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in float64, and the config."""
    layer, options = LAYERS[model_type]
    block = {f"attn.{name}": shape for name, shape in layer.items()}
    block |= {"attn_norm.weight": (WIDTH,), "mlp_norm.weight": (WIDTH,), "mlp.down_proj.weight": (WIDTH, MLP)}
    block |= {"mlp.gate_proj.weight": (MLP, WIDTH), "mlp.up_proj.weight": (MLP, WIDTH)}
    shapes = {"model.embeddings.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes["lm_head.weight"] = (VOCABULARY, WIDTH)
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(DEPTH) for name, shape in block.items()}
    if model_type == "hgrn2":
        shapes["model.lower_bounds"] = (DEPTH, WIDTH)
    rng = torch.Generator().manual_seed(0)
    weights = {
        name: 0.3 * torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()
    }
    return weights, CONFIG | options | {"model_type": model_type}
