"""Mamba-2 as published: mamba_ssm's MambaLMHeadModel with `layer: Mamba2`, and transformers'
Mamba2ForCausalLM."""

import math
from functools import partial
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.memory.state_space.mamba2_mixer import GatedNorm
from zoo.models.mamba2 import Mamba2
from zoo.models.published import mamba
from zoo.models.published.fields import knows
from zoo.models.published.mamba import published_state as published_state
from zoo.models.published.weights import Config, Table, build, flag, fraction, number, require, same

MIXER: Table = {
    name: target for name, target in mamba.MIXER.items() if not name.startswith(("x_proj.", "dt_proj."))
} | {
    "dt_bias": ("dt_bias", same),
    "D": ("D", Tensor.flatten),
    "norm.weight": ("norm_weight", same),
}
SSM_WITHOUT_EFFECT = (
    *mamba.SSM_WITHOUT_EFFECT,
    *("conv_init", "A_init_range", "use_mem_eff_path", "sequence_parallel"),
)


def limits(config: Config, name: str) -> tuple[float, float] | None:
    """A clamp of dt, where there is one."""
    bounds = config.get(name)
    if bounds is None or tuple(bounds) == (0.0, math.inf):
        return None
    low, high = (float(bound) for bound in bounds)
    return low, high


def mixer_shape(width: int, config: Config) -> dict[str, Any]:
    """Mamba2Mixer's keywords from mamba_ssm's `ssm_cfg`."""
    inner, head_dim = number(config, "expand", default=2) * width, number(config, "headdim", default=64)
    given = {} if config.get("d_ssm") is None else config
    recurrent = number(given, "d_ssm", default=inner)
    if recurrent > inner or recurrent % head_dim:
        raise UserError(f"config: expected d_ssm, a multiple of {head_dim} up to {inner}, found {recurrent}")
    norm: GatedNorm = "before_gate" if flag(config, "norm_before_gate", False) else "after_gate"
    return {
        "heads": recurrent // head_dim,
        "head_dim": head_dim,
        "state_size": number(config, "d_state", default=128),
        "groups": number(config, "ngroups", default=1),
        "conv_size": number(config, "d_conv", default=4),
        "gated_width": inner - recurrent,
        "norm": norm if flag(config, "rmsnorm", True) else "none",
        "skip_per_channel": flag(config, "D_has_hdim", False),
        "dt_limit": limits(config, "dt_limit"),
        "chunk_size": number(config, "chunk_size", default=256),
        "bias": flag(config, "bias", False),
        "conv_bias": flag(config, "conv_bias", True),
    }


def shape(config: Config) -> dict[str, Any]:
    """Our constructor's keywords."""
    if mamba.is_mamba_ssm(config):
        cell = config.get("ssm_cfg") or {}
        if cell.get("layer") != "Mamba2":
            raise UserError(f"config: expected ssm_cfg.layer 'Mamba2', found {cell.get('layer')!r}")
        require(config, attn_layer_idx=[], attn_cfg={})
        mixer = mixer_shape(number(config, "d_model"), cell)
        heads, norm = mixer.pop("heads"), mixer.pop("norm")
        mixer |= {"all_heads": heads * number(config, "n_layer"), "gated_norm": norm}
        return mamba.decoder_shape(config) | mixer
    heads, head_dim = number(config, "num_heads"), number(config, "head_dim")
    inner = number(config, "expand", default=2) * number(config, "hidden_size")
    require(config, d_inner=inner)
    if heads * head_dim != inner:
        raise UserError(f"config: expected num_heads * head_dim {inner}, found {heads} * {head_dim}")
    return mamba.transformers_shape(config) | {
        "all_heads": heads * number(config, "num_hidden_layers"),
        "head_dim": head_dim,
        "groups": number(config, "n_groups"),
        "dt_limit": limits(config, "time_step_limit"),
        "chunk_size": number(config, "chunk_size", default=256),
        "tied": flag(config, "tie_word_embeddings", False),
    }


@knows(
    model_types=["mamba2"],
    architectures=["Mamba2ForCausalLM", "MambaLMHeadModel"],
    without_effect=[
        *("attn_cfg", "time_step_rank", *mamba.WITHOUT_EFFECT),
        *(f"ssm_cfg.{name}" for name in SSM_WITHOUT_EFFECT),
    ],
)
def load(weights: dict[str, Tensor], config: Config) -> Mamba2:
    """The published model with its weights, in their dtype."""
    model = build(Mamba2, **shape(config))
    if not mamba.is_mamba_ssm(config):  # mamba_ssm's gated norm has an epsilon of its own, 1e-5
        for block in model.stack:
            mixer: Any = block.mixer
            mixer.norm_eps = fraction(config, "layer_norm_epsilon", 1e-5)
    mamba.finish(model, weights, config, MIXER)
    return model


published_gradients = partial(mamba.published_gradients, mixer=MIXER)
