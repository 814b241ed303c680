"""Transformer-XL as published: kimiyoung/transformer-xl, pytorch/mem_transformer.py, `attn_type` 0.

Its tensors are time-first, its memories of all layers as long as what has been read, `mem_len` at most.
"""

from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.memory.attention.relative import XLCache
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
from zoo.models.transformer_xl import TransformerXL
from zoo.state import State

LAYER: Table = {
    "dec_attn.qkv_net.weight": ("attention.qkv.weight", same),
    "dec_attn.r_net.weight": ("attention.relative.weight", same),
    "dec_attn.o_net.weight": ("attention.out_proj.weight", same),
    **affine(dec_attn__layer_norm="attention.norm", pos_ff__layer_norm="norm"),
    **affine(pos_ff__CoreNet__0="mlp.in_proj", pos_ff__CoreNet__3="mlp.out_proj"),
}
TABLE: Table = {
    "word_emb.emb_layers.0.weight": ("embed.weight", same),
    "r_w_bias": ("content_bias", same),
    "r_r_bias": ("position_bias", same),
    **under("layers.{i}.", "layers.{i}.", LAYER),
    **affine(crit__out_layers__0="head"),
}


def shape(config: Config) -> dict[str, Any]:
    """Our constructor's keywords."""
    width = number(config, "d_model")
    require(config, attn_type=0, ext_len=0, untie_r=False)
    require(config, div_val=1, cutoffs=[], d_embed=width, layer_norm_epsilon=1e-5)
    return {
        "vocab_size": number(config, "n_token"),
        "segment_len": number(config, "tgt_len"),
        "depth": number(config, "n_layer"),
        "width": width,
        "heads": number(config, "n_head"),
        "head_dim": number(config, "d_head"),
        "mlp_width": number(config, "d_inner"),
        "memory_len": number(config, "mem_len", least=0),
        "prenorm": flag(config, "pre_lnorm", False),
        "same_length": flag(config, "same_length", False),
        "clamp_len": number(config, "clamp_len", least=-1, default=-1),
        "tied": flag(config, "tie_weight", True),
        "dropout": fraction(config, "dropout", 0.0),
        "attention_dropout": fraction(config, "dropatt", 0.0),
    }


@knows(
    without_effect=[*("init", "init_range", "init_std", "emb_init", "emb_init_range", "proj_init_std")],
    fixed={"sample_softmax": -1, "tie_projs": [False]},
)
def load(weights: dict[str, Tensor], config: Config) -> TransformerXL:
    """The published model with its weights, in their dtype."""
    model = build(TransformerXL, **shape(config))
    fill(model, weights, TABLE)
    return model


def published_gradients(model: TransformerXL) -> dict[str, Tensor]:
    return gradients(model, TABLE)


def published_state(state: State) -> dict[str, Tensor]:
    """`mems{l}` (time, rows, width): what layer l remembers of its inputs.

    The published code also keeps the last layer's outputs, `mems{depth}`, which nothing ever reads.
    """
    return {f"mems{layer}": filled(layer_state) for layer, layer_state in enumerate(state)}


def filled(state: XLCache) -> Tensor:
    """The part of a memory that is there, time first."""
    lengths = state.filled.unique().tolist()
    if len(lengths) != 1:
        raise UserError(f"state: expected rows with memories of one length, found {lengths}")
    return state.hidden[:, state.hidden.shape[1] - lengths[0] :].transpose(0, 1)
