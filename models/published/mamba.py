"""Mamba as published: mamba_ssm's MambaLMHeadModel and transformers' MambaForCausalLM, which share their
names but for the embedding's, which the weights decide.  A config with `hidden_size` is transformers'; those
of the published conversions have mamba_ssm's fields too.

There feed-forwards are rounded up to 128 and the vocabulary to `pad_vocab_size_multiple`; the code that
made the weights does the rounding, so it is repeated here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models.decoder import Decoder
from zoo.models.mamba import Mamba
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
from zoo.state import State

MIXER: Table = {
    **affine(in_proj="in_proj", out_proj="out_proj"),
    "conv1d.weight": ("conv.weight", lambda w: w[:, None]),
    "conv1d.bias": ("conv.bias", same),
    "x_proj.weight": ("select.weight", same),
    "dt_proj.weight": ("dt_weight", same),
    "dt_proj.bias": ("dt_bias", same),
    "A_log": ("A_log", same),
    "D": ("D", same),
}
WITHOUT_EFFECT = (  # precision, kernels, initial values
    *(
        "residual_in_fp32",
        "fused_add_norm",
        "use_mambapy",
        "use_associative_scan",
        "rescale_prenorm_residual",
    ),
    *(f"time_step_{name}" for name in ("scale", "min", "max", "init_scheme", "floor")),
)
SSM_WITHOUT_EFFECT = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path")


def decoder(mixer: Table) -> Table:
    """The whole model's names around a mixer's."""
    return {
        "backbone.embedding.weight": ("embed.weight", same),  # mamba_ssm's
        "backbone.embeddings.weight": ("embed.weight", same),  # transformers'
        **under("backbone.layers.{i}.mixer.", "stack.{i}.mixer.", mixer),
        **under("backbone.layers.{i}.", "stack.{i}.", affine(norm="mixer_norm", norm2="mlp_norm")),
        "backbone.layers.{i}.mlp.fc1.weight": ("stack.{i}.mlp.in_proj.weight", same),
        "backbone.layers.{i}.mlp.fc2.weight": ("stack.{i}.mlp.out_proj.weight", same),
        **affine(backbone__norm_f="norm"),
        "lm_head.weight": ("head.weight", same),
    }


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def mixer_shape(width: int, config: Config) -> dict[str, Any]:
    """MambaMixer's keywords from mamba_ssm's `ssm_cfg`."""
    rank = {} if config.get("dt_rank", "auto") == "auto" else config
    return {
        "channels": number(config, "expand", default=2) * width,
        "state_size": number(config, "d_state", default=16),
        "conv_size": number(config, "d_conv", default=4),
        "dt_rank": number(rank, "dt_rank", default=-(-width // 16)),
        "bias": flag(config, "bias", False),
        "conv_bias": flag(config, "conv_bias", True),
    }


def decoder_shape(config: Config) -> dict[str, Any]:
    """Constructor arguments from mamba_ssm's config that don't depend on the mixers."""
    hidden = number(config, "d_intermediate", least=0, default=0)
    return {
        "vocab_size": round_up(
            number(config, "vocab_size"), number(config, "pad_vocab_size_multiple", default=8)
        ),
        "segment_len": number(config, "L", default=2048),
        "depth": number(config, "n_layer"),
        "width": number(config, "d_model"),
        "mlp_width": round_up(hidden, 128),
        "norm": "rms" if flag(config, "rms_norm", True) else "layer",
        "tied": flag(config, "tie_embeddings", True),
    }


def is_mamba_ssm(config: Config) -> bool:
    return "hidden_size" not in config


def transformers_shape(config: Config) -> dict[str, Any]:
    """The same of transformers' configs; mamba_ssm's fields beside them have to say the same."""
    require(config, hidden_act="silu", rms_norm=True, ssm_cfg={}, attn_layer_idx=[], attn_cfg={})
    require(config, d_model=config["hidden_size"], n_layer=config.get("num_hidden_layers"))
    config.get("pad_vocab_size_multiple")  # vocab_size is padded already
    return {
        "vocab_size": number(config, "vocab_size"),
        "segment_len": 2048,
        "depth": number(config, "num_hidden_layers"),
        "width": number(config, "hidden_size"),
        "state_size": number(config, "state_size"),
        "conv_size": number(config, "conv_kernel", default=4),
        "bias": flag(config, "use_bias", False),
        "conv_bias": flag(config, "use_conv_bias", True),
    }


def shape(config: Config) -> dict[str, Any]:
    """Our constructor's keywords."""
    if is_mamba_ssm(config):
        cell = config.get("ssm_cfg") or {}
        require(cell, layer="Mamba1")
        require(config, attn_layer_idx=[], attn_cfg={})
        return decoder_shape(config) | mixer_shape(number(config, "d_model"), cell)
    width = number(config, "hidden_size")
    rank = {} if config.get("time_step_rank", "auto") == "auto" else config
    channels = number(config, "intermediate_size", default=number(config, "expand", default=2) * width)
    require(config, d_inner=channels)
    return transformers_shape(config) | {
        "channels": channels,
        "dt_rank": number(rank, "time_step_rank", default=-(-width // 16)),
        "tied": flag(config, "tie_word_embeddings", True),
    }


def finish(model: Decoder, weights: Mapping[str, Tensor], config: Config, mixer: Table) -> None:
    """The norms' epsilon and the weights, in their dtype."""
    epsilon = fraction(config, "norm_epsilon" if is_mamba_ssm(config) else "layer_norm_epsilon", 1e-5)
    for part in model.modules():
        if isinstance(part, nn.RMSNorm | nn.LayerNorm):
            part.eps = epsilon
    fill(model, {name: swap_halves(name, weight) for name, weight in weights.items()}, table(mixer, weights))


def table(mixer: Table, names: Iterable[str]) -> Table:
    """The table with the name that the embedding has among the weights."""
    is_transformers = any(name.endswith("backbone.embeddings.weight") for name in names)
    unused = "backbone.embedding.weight" if is_transformers else "backbone.embeddings.weight"
    return {name: target for name, target in decoder(mixer).items() if name != unused}


def swap_halves(name: str, weight: Tensor) -> Tensor:
    """A feed-forward's two halves, the gate second there and first here."""
    return torch.cat(weight.chunk(2)[::-1]) if name.endswith(".mlp.fc1.weight") else weight


@knows(
    model_types=["mamba"],
    architectures=["MambaForCausalLM", "MambaLMHeadModel"],
    without_effect=["attn_cfg", *(f"ssm_cfg.{name}" for name in SSM_WITHOUT_EFFECT), *WITHOUT_EFFECT],
)
def load(weights: dict[str, Tensor], config: Config) -> Mamba:
    """The published model with its weights, in their dtype."""
    model = build(Mamba, **shape(config))
    finish(model, weights, config, MIXER)
    return model


def published_gradients(model: Decoder, mixer: Table = MIXER) -> dict[str, Tensor]:
    """Under mamba_ssm's names."""
    grads = gradients(model, table(mixer, ()))
    return {name: swap_halves(name, grad) for name, grad in grads.items()}


def published_state(state: State, model: Decoder | None = None) -> dict[str, Tensor]:
    """`{l}.conv_state` (rows, channels, K) and `{l}.ssm_state`; the oldest of the K inputs, which nothing
    reads, is 0 here."""
    return {
        f"{layer}.{name}": tensor
        for layer, layer_state in enumerate(state)
        for name, tensor in (
            ("conv_state", F.pad(layer_state.conv.mT, (1, 0))),
            ("ssm_state", layer_state.ssm),
        )
    }
