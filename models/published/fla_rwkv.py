"""RWKV-6 and RWKV-7 as published: flash-linear-attention's RWKV6ForCausalLM and RWKV7ForCausalLM.

Their norms' epsilons are the config's, also those of RWKV-7's heads, `head_dim` times as large.
"""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.fast_weights.rwkv_parts import HeadNorm
from zoo.models.published import fla
from zoo.models.published.fields import knows
from zoo.models.published.rwkv import row
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
from zoo.models.rwkv6 import RWKV, RWKV6
from zoo.models.rwkv7 import RWKV7

MIXES = ["r", "w", "k", "v", "g"]
"""Order of RWKV-6's five token shifts in the published weights; here it is w, k, v, r, g."""
OURS = [MIXES.index(letter) for letter in "wkvrg"]


def transposed(weight: Tensor) -> Tensor:
    return weight.T


def rows(weight: Tensor) -> Tensor:
    """(mixes, rank, width) as the published (width, mixes * rank)."""
    return weight.permute(2, 0, 1).flatten(1)


def low_rank(theirs: str, ours: str) -> Table:
    return {
        f"{theirs}.lora.0.weight": (f"{ours}.down", transposed),
        f"{theirs}.lora.2.weight": (f"{ours}.up", transposed),
        f"{theirs}.lora.2.bias": (f"{ours}.bias", same),
    }


BLOCK: Table = {
    **affine(attn_norm="time_norm", ffn_norm="channel_norm", attn__g_norm="time_mix.norm"),
    "attn.o_proj.weight": ("time_mix.out_proj.weight", same),
    "ffn.value.weight": ("channel_mix.out_proj.weight", same),
}
BLOCK_6: Table = {
    **BLOCK,
    **{f"attn.{x}_proj.linear.weight": (f"time_mix.{x}.weight", same) for x in "rkv"},
    "attn.g_proj.linear.weight": ("time_mix.gate.weight", same),
    **low_rank("attn.w_proj.linear", "time_mix.decay"),
    "attn.x_proj.0.mu": ("time_mix.mix", lambda mix: mix[0]),
    "attn.x_bias": ("time_mix.mix", lambda mix: mix[1:]),
    "attn.x_proj.0.linear.weight": ("time_mix.mix_down", transposed),
    "attn.x_proj.2.weight": ("time_mix.mix_up", rows),
    "attn.bonus": ("time_mix.bonus", same),
    "ffn.key.mu": ("channel_mix.mix", lambda mix: mix[0]),
    "ffn.key.linear.weight": ("channel_mix.in_proj.weight", same),
    "ffn.receptance.mu": ("channel_mix.mix", lambda mix: mix[1]),
    "ffn.receptance.linear.weight": ("channel_mix.gate.weight", same),
}
BLOCK_7: Table = {
    **BLOCK,
    **{f"attn.x_{letter}": ("time_mix.mix", row(i)) for i, letter in enumerate("rwkvag")},
    **{f"attn.{x}_proj.weight": (f"time_mix.{x}.weight", same) for x in "rkv"},
    **low_rank("attn.w_lora", "time_mix.decay"),
    **low_rank("attn.a_lora", "time_mix.strength"),
    **low_rank("attn.g_lora", "time_mix.gate"),
    **low_rank("attn.v_lora", "time_mix.value"),
    "attn.k_k": ("time_mix.removal", same),
    "attn.k_a": ("time_mix.replacement", same),
    "attn.r_k": ("time_mix.bonus", same),
    "ffn.x_k": ("channel_mix.mix", lambda mix: mix[0]),
    "ffn.key.weight": ("channel_mix.in_proj.weight", same),
}


def table(model: RWKV) -> Table:
    block = BLOCK_6 if isinstance(model, RWKV6) else BLOCK_7
    layers: Table = {}
    for i in range(len(model.stack)):  # layer by layer: the first one of RWKV-7 has no map for the values
        layers |= under(f"model.layers.{i}.", f"stack.{i}.", block)
    return {
        "model.embeddings.weight": ("embed.weight", same),
        **affine(model__layers__0__pre_norm="embed_norm", model__norm="norm"),
        **layers,
        "lm_head.weight": ("head.weight", same),
    }


def reordered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """RWKV-6's weights with the five token shifts in our order."""
    changed = dict(weights)
    for name, weight in weights.items():
        if name.endswith("attn.x_bias"):
            changed[name] = weight[OURS]
        elif name.endswith("attn.x_proj.0.linear.weight"):
            changed[name] = torch.cat([weight.chunk(5)[i] for i in OURS])
        elif name.endswith("attn.x_proj.2.weight"):
            changed[name] = torch.cat([weight.chunk(5, dim=1)[i] for i in OURS], dim=1)
    return changed


def head_dim(config: Config, version: int) -> int:
    """From `num_heads`, of RWKV-7 first from `head_dim`, with values as wide as keys."""
    width = number(config, "hidden_size")
    if version == 7:
        require(config, value_dim=[width] * number(config, "num_hidden_layers"))
    if version == 7 and config.get("head_dim") is not None:
        head_dim = number(config, "head_dim")
        require(config, num_heads=width // head_dim)
        return head_dim
    heads = number(config, "num_heads", default=4 if version == 6 else None)
    if width % heads:
        raise UserError(f"config: expected num_heads that divides {width}, found {heads}")
    return width // heads


def ranks(config: Config, version: int) -> dict[str, int]:
    if version == 6:
        fields = {"mix_rank": ("proj_low_rank_dim", 32), "decay_rank": ("gate_low_rank_dim", 64)}
    else:
        fields = {"decay_rank": ("decay_low_rank_dim", 64), "strength_rank": ("a_low_rank_dim", 64)}
        fields |= {"value_rank": ("v_low_rank_dim", 16), "gate_rank": ("gate_low_rank_dim", 128)}
    return {rank: number(config, field, default=default) for rank, (field, default) in fields.items()}


def mlp_width(config: Config, version: int) -> int:
    """`intermediate_size`, or `hidden_ratio` times the width, rounded up to a multiple of 32."""
    if config.get("intermediate_size") is not None:
        return number(config, "intermediate_size")
    ratio = config.get("hidden_ratio") or (3.5 if version == 6 else 4)
    if type(ratio) not in (int, float) or ratio <= 0:
        raise UserError(f"config: expected hidden_ratio, a number above 0, found {ratio!r}")
    return -(-int(number(config, "hidden_size") * ratio) // 32) * 32


@knows(
    model_types=["rwkv6", "rwkv7"],
    architectures=["RWKV6ForCausalLM", "RWKV7ForCausalLM"],
    without_effect=fla.WITHOUT_EFFECT,
    fixed={"hidden_act": "sqrelu", "norm_first": True, "norm_bias": True},
)
def load(weights: dict[str, Tensor], config: Config) -> RWKV:
    """The published model with its weights, in their dtype; `model_type` says which."""
    version = {"rwkv6": 6, "rwkv7": 7}.get(str(config.get("model_type")))
    if version is None:
        raise UserError(f"config: expected model_type rwkv6 or rwkv7, found {config.get('model_type')!r}")
    if version == 6 and (config.get("expand_k", 0.5), config.get("expand_v", 1.0)) != (1.0, 1.0):
        raise UserError(
            "config: expected expand_k and expand_v 1.0, the only ones supported, found "
            f"{config.get('expand_k', 0.5)!r} and {config.get('expand_v', 1.0)!r}"
        )
    width, eps = number(config, "hidden_size"), fraction(config, "norm_eps", 1e-5)
    shape: dict[str, Any] = {
        "vocab_size": number(config, "vocab_size"),
        "segment_len": number(config, "segment_len", default=config.get("max_position_embeddings") or 2048),
        "depth": number(config, "num_hidden_layers"),
        "width": width,
        "head_dim": head_dim(config, version),
        "mlp_width": mlp_width(config, version),
        "tied": flag(config, "tie_word_embeddings", False),
        **ranks(config, version),
    }
    model: RWKV = build(RWKV6, **shape) if version == 6 else build(RWKV7, **shape)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
        elif isinstance(module, HeadNorm):
            module.eps = eps if version == 6 else shape["head_dim"] * eps
    fill(model, reordered(weights) if version == 6 else weights, table(model))
    return model


def published_gradients(model: RWKV) -> dict[str, Tensor]:
    return gradients(model, table(model))
