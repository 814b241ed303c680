"""RWKV-6 and RWKV-7 as published: BlinkDL/RWKV-LM, RWKV-v5/src/model.py (x060) and RWKV-v7.

The state of RWKV-LM has values first, that of the golden cases keys first, as ours.
"""

from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.models.published.fields import knows
from zoo.models.published.weights import (
    Config,
    Table,
    View,
    affine,
    build,
    fill,
    gradients,
    number,
    require,
    same,
    under,
)
from zoo.models.rwkv6 import RWKV, RWKV6
from zoo.models.rwkv7 import RWKV7
from zoo.state import State


def row(index: int) -> View:
    """One row of a stack of mixes, as a (1, 1, width) of its own."""
    return lambda mix: mix[index][None, None]


def vector(weight: Tensor) -> Tensor:
    return weight[None, None]


def low_rank(letter: str, ours: str) -> Table:
    """RWKV-7's maps of low rank: w0, w1, w2."""
    return {
        f"att.{letter}0": (f"{ours}.bias", vector),
        f"att.{letter}1": (f"{ours}.down", same),
        f"att.{letter}2": (f"{ours}.up", same),
    }


BLOCK: Table = {
    **affine(ln1="time_norm", ln2="channel_norm", att__ln_x="time_mix.norm"),
    "att.receptance.weight": ("time_mix.r.weight", same),
    "att.key.weight": ("time_mix.k.weight", same),
    "att.value.weight": ("time_mix.v.weight", same),
    "att.output.weight": ("time_mix.out_proj.weight", same),
    "ffn.key.weight": ("channel_mix.in_proj.weight", same),
    "ffn.value.weight": ("channel_mix.out_proj.weight", same),
}
BLOCK_7: Table = {
    **BLOCK,
    **{f"att.x_{letter}": ("time_mix.mix", row(i)) for i, letter in enumerate("rwkvag")},
    **low_rank("w", "time_mix.decay"),
    **low_rank("a", "time_mix.strength"),
    "att.g1": ("time_mix.gate.down", same),
    "att.g2": ("time_mix.gate.up", same),
    "att.k_k": ("time_mix.removal", vector),
    "att.k_a": ("time_mix.replacement", vector),
    "att.r_k": ("time_mix.bonus", same),
    "ffn.x_k": ("channel_mix.mix", row(0)),
}
BLOCK_6: Table = {
    **BLOCK,
    **{f"att.time_maa_{letter}": ("time_mix.mix", row(i)) for i, letter in enumerate("xwkvrg")},
    "att.time_maa_w1": ("time_mix.mix_down", same),
    "att.time_maa_w2": ("time_mix.mix_up", same),
    "att.time_decay": ("time_mix.decay.bias", vector),
    "att.time_decay_w1": ("time_mix.decay.down", same),
    "att.time_decay_w2": ("time_mix.decay.up", same),
    "att.time_faaaa": ("time_mix.bonus", same),
    "att.gate.weight": ("time_mix.gate.weight", same),
    "ffn.time_maa_k": ("channel_mix.mix", row(0)),
    "ffn.time_maa_r": ("channel_mix.mix", row(1)),
    "ffn.receptance.weight": ("channel_mix.gate.weight", same),
}
VALUES = low_rank("v", "time_mix.value")  # of all blocks but the first


def table(model: RWKV) -> Table:
    frame: Table = {
        "emb.weight": ("embed.weight", same),
        **affine(blocks__0__ln0="embed_norm", ln_out="norm"),
        "head.weight": ("head.weight", same),
    }
    if isinstance(model, RWKV6):
        return frame | under("blocks.{i}.", "stack.{i}.", BLOCK_6)
    frame |= under("blocks.{i}.", "stack.{i}.", BLOCK_7)
    for i in range(1, len(model.stack)):
        frame |= under(f"blocks.{i}.", f"stack.{i}.", VALUES)
    return frame


def ranks(weights: dict[str, Tensor], config: Config) -> dict[str, int]:
    """RWKV-7's, from `lora` (of w, a, v, g) or from the weights; one layer alone has no v."""
    names = ("decay_rank", "strength_rank", "value_rank", "gate_rank")
    matrices = [f"blocks.{layer}.att.{letter}1" for layer, letter in ((0, "w"), (0, "a"), (1, "v"), (0, "g"))]
    given = config.get("lora") or [weights[name].shape[1] if name in weights else 1 for name in matrices]
    if not isinstance(given, list) or len(given) != 4:
        raise UserError(f"config: expected lora, the ranks of w, a, v and g, found {given!r}")
    return {name: number({"lora": rank}, "lora") for name, rank in zip(names, given, strict=True)}


@knows()
def load(weights: dict[str, Tensor], config: Config) -> RWKV:
    """The published model with its weights, in their dtype; `version` is 6 or 7."""
    version, width = number(config, "version"), number(config, "n_embd")
    if version not in (6, 7):
        raise UserError(f"config: expected version 6 or 7, found {version}")
    require(config, dim_att=width)
    shape: dict[str, Any] = {
        "vocab_size": number(config, "vocab_size"),
        "segment_len": number(config, "ctx_len"),
        "depth": number(config, "n_layer"),
        "width": width,
        "head_dim": number(config, "head_size", default=64),
        "mlp_width": number(config, "dim_ffn"),
        "tied": False,
    }
    model: RWKV
    if version == 6:
        mix_rank = weights["blocks.0.att.time_maa_w1"].shape[1] // 5
        decay_rank = weights["blocks.0.att.time_decay_w1"].shape[1]
        model = build(RWKV6, **shape, mix_rank=mix_rank, decay_rank=decay_rank)
    else:
        model = build(RWKV7, **shape, **ranks(weights, config))
    fill(model, weights, table(model))
    return model


def published_gradients(model: RWKV) -> dict[str, Tensor]:
    return gradients(model, table(model))


def published_state(state: State) -> dict[str, Tensor]:
    """`layer{i}/…`: S, and the last inputs of time mix and channel mix."""
    return {
        f"layer{i}/{name}": tensor
        for i, layer in enumerate(state)
        for name, tensor in (
            ("S", layer.time.matrix),
            ("shift_att", layer.time.shift),
            ("shift_ffn", layer.channel),
        )
    }
