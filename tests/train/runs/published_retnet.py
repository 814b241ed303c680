"""A random RetNet under torchscale's names."""

from typing import Any

import torch
from torch import Tensor

WIDTH, VALUES, MLP, VOCABULARY, DEPTH = 32, 48, 40, 37, 2
CONFIG: dict[str, Any] = {
    "decoder_embed_dim": WIDTH,
    "decoder_value_embed_dim": VALUES,
    "decoder_retention_heads": 4,
    "decoder_ffn_embed_dim": MLP,
    "decoder_layers": DEPTH,
    "vocab_size": VOCABULARY,
}
LAYER = {
    "retention.q_proj.weight": (WIDTH, WIDTH),
    "retention.k_proj.weight": (WIDTH, WIDTH),
    "retention.v_proj.weight": (VALUES, WIDTH),
    "retention.g_proj.weight": (VALUES, WIDTH),
    "retention.out_proj.weight": (WIDTH, VALUES),
    "retention_layer_norm.weight": (WIDTH,),
    "final_layer_norm.weight": (WIDTH,),
    "ffn.fc1.weight": (MLP, WIDTH),
    "ffn.gate.weight": (MLP, WIDTH),
    "ffn.fc2.weight": (WIDTH, MLP),
}


def random_model() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in float64, and the config."""
    shapes = {"embed_tokens.weight": (VOCABULARY, WIDTH), "output_projection.weight": (VOCABULARY, WIDTH)}
    shapes |= {"layer_norm.weight": (WIDTH,), "retnet_rel_pos.angle": (8,), "retnet_rel_pos.decay": (4,)}
    shapes |= {f"layers.{i}.{name}": shape for i in range(DEPTH) for name, shape in LAYER.items()}
    rng = torch.Generator().manual_seed(0)
    weights = {
        name: 0.3 * torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()
    }
    return weights, CONFIG | {"layernorm_eps": 1e-6}
