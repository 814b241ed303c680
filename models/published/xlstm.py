"""xLSTM as published: the mLSTM block of NX-AI/xlstm, and the 7B family, xLSTMLarge there and
xLSTMForCausalLM in transformers.

The first paper's norms keep what their gain has above 1; ours keep the gain.
"""

import math
from typing import Any

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.fast_weights.mlstm_cell import MLSTMState
from zoo.memory.fast_weights.mlstm_mixer import MLSTMMixerState
from zoo.models.published.fields import knows
from zoo.models.published.weights import (
    Config,
    Table,
    View,
    build,
    fill,
    flag,
    gradients,
    half,
    number,
    require,
    same,
    under,
)
from zoo.models.xlstm_7b import XLSTM7B
from zoo.state import State


def part(index: int, *sizes: int) -> View:
    """A view of one of several matrices that lie in one, below one another."""
    return lambda weight: weight.split(list(sizes))[index]


GATES: Table = {
    f"{name}.{kind}": (f"gate_{kind}", half(i))
    for i, name in enumerate(("igate", "fgate"))
    for kind in ("weight", "bias")
}

# -- the first paper's block

LAYER: Table = {
    "proj_up.weight": ("in_proj.weight", same),
    "conv1d.conv.weight": ("conv.weight", lambda weight: weight[:, None]),
    "conv1d.conv.bias": ("conv.bias", same),
    **{f"{x}_proj.weight": (f"{x}.weight", same) for x in "qkv"},
    **under("mlstm_cell.", "", GATES),
    "mlstm_cell.outnorm.weight": ("norm_weight", same),
    "learnable_skip": ("skip", same),
    "proj_down.weight": ("out_proj.weight", same),
}
BLOCK: Table = {"xlstm_norm.weight": ("mixer_norm.weight", same), **under("xlstm.", "mixer.", LAYER)}
GAINS = ("xlstm_norm.weight", "xlstm.mlstm_cell.outnorm.weight")


def times(size: int, config: Config, name: str, default: float) -> float:
    """size times the factor of this name."""
    factor = config.get(name, default)
    if type(factor) not in (int, float) or not 0 < factor < math.inf:
        raise UserError(f"config: expected {name}, a number above 0, found {factor!r}")
    return float(size * factor)


def rounded_up(size: float, config: Config, name: str, default: int) -> int:
    step = number(config, name, default=default)
    return int((size + step - 1) // step * step)


def mixer_shape(config: Config) -> dict[str, Any]:
    """MLSTMMixer's keywords, of a block without a feed-forward."""
    require(config, type="mlstm", ff_act="gelu")
    if config.get("ff_proj_factor") is not None:
        raise UserError(f"config: expected no ff_proj_factor, found {config['ff_proj_factor']!r}")
    inner = times(number(config, "embedding_dim"), config, "proj_factor", 2.0)
    return {
        "channels": rounded_up(inner, config, "round_proj_up_to_multiple_of", 64),
        "heads": number(config, "num_heads", default=4),
        "block_size": number(config, "qkv_proj_blocksize", default=4),
        "conv_size": number(config, "conv1d_kernel_size", default=4),
    }


def with_gains(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight + 1 if name in GAINS else weight for name, weight in weights.items()}


def published_layer(state: MLSTMMixerState) -> dict[str, Tensor]:
    """`conv` (…, channels, taps - 1), `C`, `n` and `m`; its keys are scaled by K^-1/2, not its queries."""
    scale = state.cell.n.shape[-1] ** -0.5
    cell = published_cell(state.cell)
    return cell | {"conv": state.conv.mT, "C": scale * cell["C"], "n": scale * cell["n"]}


def published_cell(state: MLSTMState) -> dict[str, Tensor]:
    return {"C": state.C, "n": state.n, "m": state.m[..., None]}


# -- the 7B family


def large_block(model: XLSTM7B) -> Table:
    mixer: Any = model.stack[0]
    sizes = mixer.mixer.parts
    layer: Table = {
        **{f"{x}.weight": ("in_proj.weight", part(i, *sizes)) for i, x in enumerate("qkv")},
        "ogate_preact.weight": ("in_proj.weight", part(3, *sizes)),
        **{theirs.replace("gate.", "gate_preact."): ours for theirs, ours in GATES.items()},
        "multihead_norm.weight": ("norm_weight", same),
        "out_proj.weight": ("out_proj.weight", same),
    }
    return {
        "norm_mlstm.weight": ("mixer_norm.weight", same),
        **under("mlstm_layer.", "mixer.", layer),
        "norm_ffn.weight": ("mlp_norm.weight", same),
        "ffn.proj_up_gate.weight": ("mlp.in_proj.weight", half(0)),
        "ffn.proj_up.weight": ("mlp.in_proj.weight", half(1)),
        "ffn.proj_down.weight": ("mlp.out_proj.weight", same),
    }


def table(model: XLSTM7B, embedding: str = "embedding") -> Table:
    return {
        f"{embedding}.weight": ("embed.weight", same),
        **under("backbone.blocks.{i}.", "stack.{i}.", large_block(model)),
        "backbone.out_norm.weight": ("norm.weight", same),
        "lm_head.weight": ("head.weight", same),
    }


def cap(config: Config, name: str, default: float) -> float | None:
    """A cap of absolute values; null caps nothing."""
    value = config.get(name, default)
    return None if value is None else times(1, {name: value}, name, default)


def positive(config: Config, name: str, default: float) -> float:
    return times(1, config, name, default)


@knows(
    model_types=["xlstm"],
    architectures=["xLSTMForCausalLM"],
    without_effect=[
        *("chunkwise_kernel", "sequence_kernel", "step_kernel", "mode", "chunk_size", "return_last_states"),
        *("autocast_kernel_dtype", "inference_state_dtype", "norm_reduction_force_float32"),
        *("max_inference_chunksize", "use_cache"),
    ],
)
def load(weights: dict[str, Tensor], config: Config) -> XLSTM7B:
    """The published model with its weights, in their dtype; `segment_len` is 2048 if config has none."""
    require(config, use_bias=False, weight_mode="single")
    sizes = [
        number(config, name) for name in ("embedding_dim", "hidden_size") if config.get(name) is not None
    ]
    depths = [number(config, n) for n in ("num_blocks", "num_hidden_layers") if config.get(n) is not None]
    for name, values in (("embedding_dim", sizes), ("num_blocks", depths)):
        if len(set(values)) != 1:
            raise UserError(f"config: expected one {name}, found {values}")
    width = sizes[0]
    model = build(
        XLSTM7B,
        vocab_size=number(config, "vocab_size"),
        segment_len=number(config, "segment_len", default=2048),
        depth=depths[0],
        width=width,
        heads=number(config, "num_heads", default=8),
        key_width=int(times(width, config, "qk_dim_factor", 0.5)),
        value_width=int(times(width, config, "v_dim_factor", 1.0)),
        mlp_width=rounded_up(
            times(width, config, "ffn_proj_factor", 2.667), config, "ffn_round_up_to_multiple_of", 64
        ),
        gate_cap=cap(config, "gate_soft_cap", 15.0),
        logit_cap=cap(config, "output_logit_soft_cap", 30.0),
        tied=flag(config, "tie_word_embeddings", False),
    )
    norm_eps, eps = positive(config, "norm_eps", 1e-6), positive(config, "eps", 1e-6)
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.eps = norm_eps
    for block in model.stack:
        mixer: Any = block.mixer
        mixer.norm_eps, mixer.eps = norm_eps, eps
    if not flag(config, "add_out_norm", True):
        model.norm = nn.Identity()
    in_transformers = "backbone.embeddings.weight" in weights
    fill(model, weights, table(model, "backbone.embeddings" if in_transformers else "embedding"))
    return model


def published_gradients(model: XLSTM7B) -> dict[str, Tensor]:
    return gradients(model, table(model))


def published_state(state: State) -> dict[str, Tensor]:
    """`layer{i}/…`: C, n and m."""
    return {
        f"layer{i}/{name}": tensor
        for i, layer in enumerate(state)
        for name, tensor in published_cell(layer).items()
    }
