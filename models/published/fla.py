"""The decoder of flash-linear-attention around its layers: the names, sizes and fields that its models share.

x += attn(rms(x))        x += W_down (silu(W_gate x) * W_up x) of rms(x)        logits = lm_head rms(x)
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from zoo.models.decoder import Decoder
from zoo.models.published.weights import Config, Table, flag, fraction, half, number, same, under

WITHOUT_EFFECT = (
    *("attn_mode", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy"),
    *("use_l2warp", "max_position_embeddings", "hidden_ratio"),
)
FIXED: dict[str, Any] = {"hidden_act": "swish"}
NORM_EPS = 1e-6
"""A model's default, where that of its layers is 1e-5."""


class LayerConfig(Mapping[str, Any]):
    """A model's config, with values for fields that it lacks and its layers read."""

    def __init__(self, config: Config, **defaults: Any) -> None:
        self.config, self.defaults = config, {"norm_eps": NORM_EPS, **defaults}

    def __getitem__(self, name: str) -> Any:
        return self.config[name] if name in self.config else self.defaults[name]

    def __contains__(self, name: object) -> bool:
        return name in self.config or name in self.defaults

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.defaults, *self.config)))

    def __len__(self) -> int:
        return len({*self.defaults, *self.config})


def mlp_width(config: Config) -> int:
    """`intermediate_size`, or 2/3 of `hidden_ratio` times the width, rounded up to a multiple of 256."""
    if config.get("intermediate_size") is not None:
        return number(config, "intermediate_size")
    ratio = 4 if config.get("hidden_ratio") is None else number(config, "hidden_ratio")
    return -(-(number(config, "hidden_size") * ratio * 2 // 3) // 256) * 256


def conv_size(config: Config, default: bool) -> int:
    """`conv_size` of a layer with short convolutions (`use_short_conv`, or the default), otherwise 0."""
    size = number(config, "conv_size", default=4)
    return size if flag(config, "use_short_conv", default) else 0


def decoder_shape(config: Config) -> dict[str, Any]:
    """The arguments that all decoders take."""
    length = number(config, "max_position_embeddings", default=2048)
    return {
        "vocab_size": number(config, "vocab_size"),
        "segment_len": number(config, "segment_len", default=length),
        "depth": number(config, "num_hidden_layers"),
        "width": number(config, "hidden_size"),
        "mlp_width": mlp_width(config),
        "tied": flag(config, "tie_word_embeddings", False),
    }


def set_norm_eps(model: Decoder, config: Config) -> None:
    """`norm_eps` of the norms outside of the layers, and of those that layers compute themselves."""
    eps = fraction(config, "norm_eps", NORM_EPS)
    for name, module in model.named_modules():
        if isinstance(module, nn.RMSNorm) and ".mixer." not in name:
            module.eps = eps
        if hasattr(module, "norm_eps"):
            module.norm_eps = eps


def decoder_table(layer: Table) -> Table:
    """The published names of a whole model, from those of a layer."""
    block: Table = {
        "attn_norm.weight": ("mixer_norm.weight", same),
        **under("attn.", "mixer.", layer),
        "mlp_norm.weight": ("mlp_norm.weight", same),
        "mlp.gate_proj.weight": ("mlp.in_proj.weight", half(0)),
        "mlp.up_proj.weight": ("mlp.in_proj.weight", half(1)),
        "mlp.down_proj.weight": ("mlp.out_proj.weight", same),
    }
    return {
        "model.embeddings.weight": ("embed.weight", same),
        **under("model.layers.{i}.", "stack.{i}.", block),
        "model.norm.weight": ("norm.weight", same),
        "lm_head.weight": ("head.weight", same),
    }
