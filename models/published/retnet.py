"""RetNet as published, layer and model: torchscale's MultiScaleRetention and RetNetDecoder; and the layer of
Lightning Attention, TnlAttention in the examples of OpenNLPLab's lightning-attention.

torchscale divides scores by the sum of their decays and by their own, which its norm cancels but for its
epsilon: logits are equal up to that.
"""

import re
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.fast_weights.retention_mixer import LightningMixer, RetentionMixer
from zoo.models.published.fields import Renamed, knows
from zoo.models.published.weights import (
    Config,
    Table,
    View,
    affine,
    build,
    fill,
    flag,
    gradients,
    number,
    require,
    same,
    under,
)
from zoo.models.retnet import RetNet

BUFFERS = re.compile(r"retnet_rel_pos\.(angle|decay)")  # computed, not learned
LAYER_FIELDS = {  # of a layer, under the model's names
    "decoder_embed_dim": "embed_dim",
    "decoder_value_embed_dim": "value_dim",
    "decoder_retention_heads": "heads",
}


def rows(index: int, sizes: list[int]) -> View:
    """A view of one of several matrices that lie below one another in one."""
    return lambda weight: weight.split(sizes)[index]


def retention_table(mixer: RetentionMixer) -> Table:
    """The published names of a retention's weights."""
    names = ("q_proj", "k_proj", "v_proj", "g_proj")
    table: Table = {
        f"{name}.weight": ("in_proj.weight", rows(i, mixer.parts)) for i, name in enumerate(names)
    }
    return table | {"out_proj.weight": ("out_proj.weight", same)}


def retention_shape(config: Config) -> dict[str, Any]:
    """RetentionMixer's arguments."""
    require(config, gate="swish")
    width, heads = number(config, "embed_dim"), number(config, "heads")
    value_width = number(config, "value_dim")
    if width % heads or value_width % heads:
        raise UserError(
            f"config: expected heads that divide embed_dim {width} and value_dim {value_width}, found {heads}"
        )
    eps = config.get("layernorm_eps", 1e-6)
    if type(eps) not in (int, float) or not 0 <= eps < 1:
        raise UserError(f"config: expected layernorm_eps, a number in [0, 1), found {eps!r}")
    return {
        "width": width,
        "heads": heads,
        "head_dim": width // heads,
        "value_dim": value_width // heads,
        "norm_eps": eps,
    }


def lightning_table(mixer: LightningMixer) -> Table:
    """The published names of a Lightning Attention's weights."""
    inner = mixer.heads * mixer.head_dim
    names = ("q_proj", "k_proj", "v_proj", "output_gate.0")
    sizes = [inner, inner, inner, mixer.head_dim]
    table: Table = {f"{name}.weight": ("in_proj.weight", rows(i, sizes)) for i, name in enumerate(names)}
    table |= {"output_gate.1.weight": ("gate_proj.weight", same), "o_proj.weight": ("out_proj.weight", same)}
    return table | affine(norm="norm")


def lightning_shape(config: Config) -> dict[str, Any]:
    """LightningMixer's arguments."""
    width, heads = number(config, "embed_dim"), number(config, "heads")
    layer, depth = number(config, "layer_idx", least=0), number(config, "num_layers")
    if width % heads:
        raise UserError(f"config: expected heads that divide embed_dim {width}, found {heads}")
    if layer >= depth:
        raise UserError(f"config: expected layer_idx below num_layers {depth}, found {layer}")
    return {"width": width, "heads": heads, "head_dim": width // heads, "layer": layer, "depth": depth}


# -- whole models


def table(model: RetNet) -> Table:
    block: Any = model.stack[0]
    sizes = [block.mlp.out_proj.in_features] * 2
    layer: Table = {
        "retention_layer_norm.weight": ("mixer_norm.weight", same),
        **under("retention.", "mixer.", retention_table(block.mixer)),
        "final_layer_norm.weight": ("mlp_norm.weight", same),
        "ffn.fc1.weight": ("mlp.in_proj.weight", rows(0, sizes)),
        "ffn.gate.weight": ("mlp.in_proj.weight", rows(1, sizes)),
        "ffn.fc2.weight": ("mlp.out_proj.weight", same),
    }
    return {
        "embed_tokens.weight": ("embed.weight", same),
        **under("layers.{i}.", "stack.{i}.", layer),
        "layer_norm.weight": ("norm.weight", same),
        "output_projection.weight": ("head.weight", same),
    }


@knows(
    without_effect=[
        *("dropout", "drop_path_rate", "activation_dropout", "recurrent_chunk_size", "max_target_positions"),
        *("checkpoint_activations", "fsdp", "ddp_rank", "subln", "rel_pos_buckets", "max_rel_pos"),
        *("xpos_rel_pos", "xpos_scale_base", "use_xmoe", "no_output_layer", "chunkwise_recurrent"),
        *(f"moe_{x}" for x in ("top1_expert", "expert_count", "gating_use_fp32", "second_expert_policy")),
        *("moe_eval_capacity_token_fraction", "moe_normalize_gate_prob_before_dropping"),
    ],
    fixed={
        "decoder_normalize_before": True,
        "activation_fn": "gelu",
        "no_scale_embedding": True,
        "layernorm_embedding": False,
        "moe_freq": 0,
        "deepnorm": False,
        "multiway": False,
    },
)
def load(weights: dict[str, Tensor], config: Config) -> RetNet:
    """The published model with its weights, in their dtype; `segment_len` is 2048 if config has none."""
    layer = retention_shape(Renamed(config, LAYER_FIELDS))
    norm_eps = layer.pop("norm_eps")
    model = build(
        RetNet,
        vocab_size=number(config, "vocab_size"),
        segment_len=number(config, "segment_len", default=2048),
        depth=number(config, "decoder_layers"),
        mlp_width=number(config, "decoder_ffn_embed_dim"),
        tied=flag(config, "share_decoder_input_output_embed", False),
        **layer,
    )
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.eps = norm_eps
    for block in model.stack:
        parts: Any = block
        parts.mixer.norm_eps, parts.mlp.activation = norm_eps, F.gelu
    fill(model, {x: weight for x, weight in weights.items() if not BUFFERS.fullmatch(x)}, table(model))
    return model


def published_gradients(model: RetNet) -> dict[str, Tensor]:
    return gradients(model, table(model))
