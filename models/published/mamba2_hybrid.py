"""Language models of mamba_ssm as published (MambaLMHeadModel): Mamba or Mamba-2 with attention in
the layers of `attn_layer_idx`.

Feed-forwards are rounded up to 128 and the vocabulary to `pad_vocab_size_multiple`, as there.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.attention.sliding_window import WindowAttention, WindowState
from zoo.memory.mixer import Mixer
from zoo.memory.state_space.conv import CausalConv
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer, Mamba2State
from zoo.memory.state_space.mamba_mixer import MambaMixer, MambaState
from zoo.models.decoder import Decoder
from zoo.models.published import mamba, mamba2
from zoo.models.published.attention import attention_state
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

ATTENTION: Table = {
    **affine(in_proj="attention.qkv", out_proj="attention.out_proj"),
    "conv1d.weight": ("conv.weight", lambda w: w[:, None]),
    "conv1d.bias": ("conv.bias", same),
}
BLOCK: Table = {
    **affine(norm="mixer_norm", norm2="mlp_norm"),
    "mlp.fc1.weight": ("mlp.in_proj.weight", same),
    "mlp.fc2.weight": ("mlp.out_proj.weight", same),
}


class MambaLM(Decoder):
    """Mixers that take any number of tokens."""

    learns_through_memory = True
    cuts_anywhere = True
    parallel = "any_length"


class PackedState(NamedTuple):
    conv: Float[Tensor, "rows earlier channels"]  # the last K-1 queries, keys and values, oldest first
    window: WindowState


class PackedAttention(Mixer):
    """`MHA`: attention with, by option, a short convolution of its queries, keys and values, and a
    feed-forward that shares its two linear maps, `gated` wide."""

    def __init__(
        self, width: int, heads: int, *, conv_size: int, gated: int, scale: float | None, **options: Any
    ) -> None:
        super().__init__()
        self.attention = WindowAttention(width, heads, **options)
        self.scale = 1.0 if scale is None else scale * self.attention.head_dim**0.5
        packed, mixed = self.attention.qkv.out_features, self.attention.out_proj.in_features
        self.parts = [packed, gated, gated]
        self.attention.qkv = nn.Linear(width, sum(self.parts), bias=options["bias"])
        self.attention.out_proj = nn.Linear(mixed + gated, width, bias=options["out_bias"])
        self.conv = CausalConv(packed, conv_size) if conv_size else None

    def init_state(self, rows: int) -> PackedState:
        conv = self.attention.qkv.weight.new_zeros(rows, 0, self.parts[0])
        conv = conv if self.conv is None else self.conv.init_state(rows)
        return PackedState(conv, self.attention.init_state(rows))

    def forward(
        self, x: Float[Tensor, "rows time width"], state: PackedState
    ) -> tuple[Float[Tensor, "rows time width"], PackedState]:
        packed, up, gate = self.attention.qkv(x).split(self.parts, dim=-1)
        packed, conv = (packed, state.conv) if self.conv is None else self.conv(packed, state.conv)
        q, k, v = self.attention.split_heads(packed)
        y, window = self.attention.mix(self.scale * q, k, v, state.window)
        return self.attention.out_proj(torch.cat([y, up * F.silu(gate)], dim=-1)), PackedState(conv, window)


def attention(width: int, config: Config, context: int) -> PackedAttention:
    """`MHA` of a config's `attn_cfg`; it sees `context` tokens before the current one."""
    require(config, causal=True, rotary_emb_interleaved=False)
    if config.get("causal") is not True:
        raise UserError("config: expected attn_cfg.causal true: without it attention sees what comes later")
    heads = number(config, "num_heads")
    kv_heads, head_dim = ({} if config.get(name) is None else config for name in ("num_heads_kv", "head_dim"))
    conv_size, gated = (
        number(config, "d_conv", 0, 0),
        mamba.round_up(number(config, "mlp_dim", 0, 0), 256) // 2,
    )
    rotated, scale = number(config, "rotary_emb_dim", 0, 0), config.get("softmax_scale")
    options: dict[str, Any] = {
        "window": context + 1,
        "kv_heads": number(kv_heads, "num_heads_kv", default=heads),
        "head_dim": number(head_dim, "head_dim", default=width // heads),
        "position": "rope" if rotated else "none",
        "rope_base": float(config.get("rotary_emb_base", 10000.0)),
        "rotated": rotated or None,
        "bias": flag(config, "qkv_proj_bias", True),
        "out_bias": flag(config, "out_proj_bias", True),
    }
    return build(
        PackedAttention, width=width, heads=heads, conv_size=conv_size, gated=gated, scale=scale, **options
    )


def mixer(config: Config, layer: int, context: int) -> Mixer:
    width = number(config, "d_model")
    if layer in config.get("attn_layer_idx", ()):
        return attention(width, config.get("attn_cfg") or {}, context)
    cell = config.get("ssm_cfg") or {}
    if cell.get("layer", "Mamba1") == "Mamba1":
        return build(MambaMixer, width=width, **mamba.mixer_shape(width, cell))
    if cell["layer"] != "Mamba2":
        raise UserError(f"config: expected ssm_cfg.layer Mamba1 or Mamba2, found {cell['layer']!r}")
    return build(Mamba2Mixer, width=width, **mamba2.mixer_shape(width, cell))


@knows(
    architectures=["MambaLMHeadModel"],
    without_effect=[
        *("attn_cfg", "attn_cfg.layer_idx", "ssm_cfg", *mamba.WITHOUT_EFFECT),
        *(f"ssm_cfg.{name}" for name in mamba2.SSM_WITHOUT_EFFECT),
    ],
)
def load(weights: dict[str, Tensor], config: Config) -> Decoder:
    """The published model with its weights, in their dtype; attention sees the config's `context` tokens, by
    default its `L`, by default 2048."""
    shape = mamba.decoder_shape(config)
    depth, context = shape.pop("depth"), number(config, "context", default=shape["segment_len"])
    mixers = (mixer(config, layer, context) for layer in range(depth))
    model = build(MambaLM, mixers=mixers, **shape)
    epsilon = fraction(config, "norm_epsilon", 1e-5)
    for part in model.modules():
        if isinstance(part, nn.RMSNorm | nn.LayerNorm):
            part.eps = epsilon
    fill(model, {name: mamba.swap_halves(name, weight) for name, weight in weights.items()}, table(model))
    return model


def table(model: Decoder) -> Table:
    tensors_of_layer: Table = {
        "backbone.embedding.weight": ("embed.weight", same),
        "lm_head.weight": ("head.weight", same),
        **affine(backbone__norm_f="norm"),
    }
    kinds: dict[type, Table] = {
        MambaMixer: mamba.MIXER,
        Mamba2Mixer: mamba2.MIXER,
        PackedAttention: ATTENTION,
    }
    for layer, block in enumerate(model.stack):
        mixer = under("mixer.", "mixer.", kinds[type(block.mixer)])
        tensors_of_layer |= under(f"backbone.layers.{layer}.", f"stack.{layer}.", BLOCK | mixer)
    return tensors_of_layer


def published_gradients(model: Decoder) -> dict[str, Tensor]:
    return {name: mamba.swap_halves(name, grad) for name, grad in gradients(model, table(model)).items()}


def published_state(state: State, model: Decoder) -> dict[str, Tensor]:
    return states(state, model)


def states(state: State, model: Decoder) -> dict[str, Tensor]:
    """`{l}.conv_state` (rows, channels, K), `{l}.ssm_state`; `{l}.attn_k`, `{l}.attn_v` (rows, keys, heads,
    head_dim).  The published codes keep one input more than the convolution reads: it is 0 here."""
    tensors: dict[str, Tensor] = {}
    for layer, (layer_state, block) in enumerate(zip(state, model.stack, strict=True)):
        mixer: Any = block.mixer
        tensors_of_layer: dict[str, Tensor] = {}
        if isinstance(layer_state, (MambaState, Mamba2State, PackedState)) and mixer.conv is not None:
            tensors_of_layer["conv_state"] = F.pad(rearrange(layer_state.conv, "b k c -> b c k"), (1, 0))
        if isinstance(layer_state, (MambaState, Mamba2State)):
            tensors_of_layer["ssm_state"] = layer_state.ssm
        elif isinstance(layer_state, PackedState):
            tensors_of_layer |= attention_state(mixer.attention, layer_state.window)
        else:
            tensors_of_layer |= attention_state(mixer, layer_state)
        tensors |= {f"{layer}.{name}": tensor for name, tensor in tensors_of_layer.items()}
    return tensors
