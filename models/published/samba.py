"""Samba as published: microsoft/Samba, lit_gpt; Mamba layers are mamba_ssm's."""

from typing import Any

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.models.blocks import Norm
from zoo.models.published.attention import by_group, by_part
from zoo.models.published.fields import knows
from zoo.models.published.mamba import MIXER
from zoo.models.published.mamba2_hybrid import states
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
from zoo.models.samba import Samba
from zoo.state import State

NORMS: dict[str, Norm] = {"FusedRMSNorm": "rms", "RMSNorm": "rms", "LayerNorm": "layer"}
BLOCK: Table = {
    **affine(norm_1="mixer_norm", norm_2="mlp_norm"),
    "mlp.swiglu.w1.weight": ("mlp.in_proj.weight", lambda w: w.chunk(2)[0]),
    "mlp.swiglu.w2.weight": ("mlp.in_proj.weight", lambda w: w.chunk(2)[1]),
    "mlp.swiglu.w3.weight": ("mlp.out_proj.weight", same),
}
PACKED = (".attn.attn.weight", ".attn.attn.bias")  # each group's queries, key and value


def table(model: Samba) -> Table:
    named: Table = {
        "lm_head.weight": ("head.weight", same),
        "transformer.wte.weight": ("embed.weight", same),
        **affine(transformer__ln_f="norm"),
    }
    for layer, block in enumerate(model.stack):
        attends = isinstance(block.mixer, WindowAttention)
        mixer = affine(attn__attn="mixer.qkv", attn__proj="mixer.out_proj")
        mixer = mixer if attends else under("attn.", "mixer.", MIXER)
        named |= under(f"transformer.h.{layer}.", f"stack.{layer}.", BLOCK | mixer)
    return named


def shape(config: Config) -> dict[str, Any]:
    """Our constructor's keywords."""
    require(config, parallel_residual=False, shared_attention_norm=False, _mlp_class="LLaMAMLP", mlp=True)
    if config.get("_norm_class", "RMSNorm") not in NORMS:
        raise UserError(
            f"config: expected _norm_class, one of {', '.join(NORMS)}, found {config['_norm_class']!r}"
        )
    width, heads = number(config, "n_embd"), number(config, "n_head")
    share = config.get("rotary_percentage", 0.25)  # lit_gpt's default
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise UserError(f"config: expected rotary_percentage, a number from 0 to 1, found {share!r}")
    rotated = int(share * (width // heads))
    every, depth = number(config, "mb_per_layer", least=0), number(config, "n_layer")
    rank = {} if config.get("dt_rank", "auto") == "auto" else config
    pattern = ["mamba" if every and layer % every == 0 else "attention" for layer in range(depth)]
    check_windows(pattern, number(config, "full_per_layer", default=1_000_000))
    return {
        "vocab_size": number(config, "padded_vocab_size", default=number(config, "vocab_size")),
        "segment_len": number(config, "block_size"),
        "depth": depth,
        "width": width,
        "heads": heads,
        "mlp_width": number(config, "intermediate_size"),
        "window": number(config, "local_window"),
        "pattern": pattern,
        "kv_heads": number(config, "n_query_groups", default=heads),
        "channels": number(config, "expand", default=2) * width,
        "state_size": number(config, "d_state", default=16),
        "conv_size": number(config, "d_conv", default=4),
        "dt_rank": number(rank, "dt_rank", default=-(-width // 16)),
        "position": "none" if flag(config, "nope", False) or not rotated else "rope",
        "rope_base": float(number(config, "rope_base", default=10000)),
        "rotated": rotated,
        "norm": NORMS[config.get("_norm_class", "RMSNorm")],
        "bias": flag(config, "bias", False),
        "tied": flag(config, "mamba_init", False),
    }


def check_windows(pattern: list[str], period: int) -> None:
    """UserError where an attention layer would see everything: the last of every `period` layers does."""
    full = [
        layer for layer, kind in enumerate(pattern) if kind == "attention" and layer % period == period - 1
    ]
    if full:
        raise UserError(
            f"config: expected full_per_layer with a window in every attention layer, found {period}: "
            f"layers {', '.join(map(str, full))} see everything"
        )


@knows(
    without_effect=["org", "name", "rms_norm", "residual_in_fp32", "fused_add_norm"],
    fixed={
        **{"condense_ratio": 1, "mamba": False, "sc_attn": False, "attn_layer_pos": None},
        **{"ret_per_layer": -1, "gla_per_layer": -1},
    },
)
def load(weights: dict[str, Tensor], config: Config) -> Samba:
    """The published model with its weights, in their dtype."""
    model = build(Samba, **shape(config))
    epsilon = fraction(config, "norm_eps", 1e-5)
    for part in model.modules():
        if isinstance(part, (nn.RMSNorm, nn.LayerNorm)):
            part.eps = epsilon
    groups, head_dim = (
        number(config, "n_query_groups", default=config["n_head"]),
        model.width // config["n_head"],
    )
    ours = {
        name: by_part(weight, groups, head_dim) if name.endswith(PACKED) else weight
        for name, weight in weights.items()
    }
    fill(model, ours, table(model))
    return model


def published_gradients(model: Samba) -> dict[str, Tensor]:
    mixer = next((block.mixer for block in model.stack if isinstance(block.mixer, WindowAttention)), None)
    return {
        name: by_group(grad, mixer.kv_heads, mixer.head_dim) if mixer and name.endswith(PACKED) else grad
        for name, grad in gradients(model, table(model)).items()
    }


def published_state(state: State, model: Samba) -> dict[str, Tensor]:
    return states(state, model)
