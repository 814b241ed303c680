"""Megalodon as published: XuezheMax/megalodon, megalodon/model/mega.py, on one process.

Both sides keep a norm's weight as what its gain has above 1.
"""

import re

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.memory.state_space.megalodon_attention import MegalodonState
from zoo.memory.state_space.timestep_norm import TimestepState
from zoo.models.megalodon import Megalodon, MegalodonModelState
from zoo.models.published.fields import knows
from zoo.models.published.weights import (
    Config,
    Table,
    affine,
    build,
    fill,
    flag,
    fraction,
    gradients,
    number,
    require,
    same,
    under,
)

BUFFERS = re.compile(r"rope\.freqs|.*norm\.prior_(count|mean|logv)")

EMA: Table = {
    "alpha": ("alpha", lambda weight: weight[..., None]),
    "delta": ("delta", lambda weight: weight[..., None]),
    "theta": ("theta", lambda weight: weight[:, None, None]),
    "gamma": ("gamma", same),
    "omega": ("omega", lambda weight: weight[:, None]),
}
BLOCK: Table = {
    "mega.gamma": ("attention.gain", same),
    "mega.beta": ("attention.shift", same),
    **affine(mega__timenorm="attention.timestep_norm"),
    **under("mega.cema.", "attention.average.", EMA),
    "mega.rmsnorm.weight": ("attention.average_gain", same),
    **affine(mega__wv="attention.value", mega__wz="attention.shared", mega__wr="attention.gate"),
    **affine(mega__wh1="attention.straight"),
    "mega.wh2.weight": ("attention.mixed.weight", same),
    "nffn.norm.weight": ("mlp.gain", same),
    "nffn.norm.bias": ("mlp.shift", same),
    "nffn.fc1.weight": ("mlp.in_proj.weight", same),
    "nffn.fc3.weight": ("mlp.up.weight", same),
    "nffn.fc2.weight": ("mlp.out_proj.weight", same),
    "nffn.alpha": ("mlp.scale", same),
}
TABLE: Table = {
    "embed.weight": ("embed.weight", same),
    **under("layers.{i}.", "layers.{i}.", BLOCK),
    **affine(output__final_norm="norm"),
    "output.output.weight": ("head.weight", same),
}


@knows(without_effect=["efficient_attn", "init_mode", "layerwise_ckpt"])
def load(weights: dict[str, Tensor], config: Config) -> Megalodon:
    """The published model with its weights, in their dtype."""
    vocab_size, base = number(config, "vocab_size"), config.get("rope_base")
    if config.get("output_size") != -1:
        require(config, output_size=vocab_size)
    if base is not None and (type(base) not in (int, float) or base <= 0):
        raise UserError(f"config: expected rope_base, a number above 0 or none, found {base!r}")
    model = build(
        Megalodon,
        vocab_size=vocab_size,
        segment_len=number(config, "chunk_size", default=2048),
        depth=number(config, "num_layers"),
        width=number(config, "model_dim"),
        heads=number(config, "num_heads", default=1),
        mlp_width=number(config, "ffn_hidden_dim"),
        key_width=number(config, "z_dim"),
        value_width=number(config, "value_dim"),
        chunk_size=number(config, "chunk_size", default=2048),
        state_size=number(config, "cema_ndim", default=16),
        norm_groups=number(config, "norm_num_groups", default=32),
        norm_affine=flag(config, "norm_affine", True),
        norm_eps=fraction(config, "norm_eps", 1e-5),
        rope_base=10000.0 if base is None else float(base),
        swiglu=flag(config, "swiglu", False),
        rescaled=flag(config, "rescale_nffn", False),
        scaled_embedding=flag(config, "scale_emb", False),
        tied=flag(config, "share_emb", False),
        dropout=fraction(config, "dropout", 0.0),
        attention_dropout=fraction(config, "attention_dropout", 0.0),
        hidden_dropout=fraction(config, "hidden_dropout", 0.0),
    )
    fill(model, learned(weights), TABLE)
    return model


def learned(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the buffers: rotary frequencies, and the priors of norms that begin from nothing."""
    for name, weight in weights.items():
        if name.endswith("norm.prior_count") and weight.any():
            raise UserError(f"weights: expected {name} 0, found {weight.item()}")
    return {name: weight for name, weight in weights.items() if not BUFFERS.fullmatch(name)}


def published_gradients(model: Megalodon) -> dict[str, Tensor]:
    return gradients(model, TABLE)


def published_state(state: MegalodonModelState) -> dict[str, Tensor]:
    """`layers.{i}.…` as in `published_layer`; `final_norm_{count,mean,var}`."""
    layers = {
        f"layers.{i}.{name}": tensor
        for i, layer in enumerate(state.layers)
        for name, tensor in published_layer(layer).items()
    }
    return layers | _norm("final_norm_", state.norm)


def published_layer(state: MegalodonState) -> dict[str, Tensor]:
    """`attn_k`, `attn_v` (rows, tokens of the open chunk, heads, width), `norm_…`, `cema_h` (…, 2)."""
    lengths = state.chunk.filled.unique().tolist()
    if len(lengths) != 1:
        raise UserError(f"state: expected rows whose open chunks are of one length, found {lengths}")
    keys, values = (part[:, :, : lengths[0]].transpose(1, 2) for part in state.chunk[:2])
    average = torch.view_as_real(state.average)
    return {"attn_k": keys, "attn_v": values, "cema_h": average} | _norm("norm_", state.norm)


def _norm(prefix: str, state: TimestepState) -> dict[str, Tensor]:
    return {f"{prefix}count": state.tokens, f"{prefix}mean": state.mean, f"{prefix}var": state.var}
