"""Griffin as published: google-deepmind/recurrentgemma, torch; that of transformers is in recurrent_gemma.py.

Its norms scale by 1 + `scale`, its attention sees `attention_window_size` tokens before the current one.
"""

from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.memory.state_space.griffin_block import RecurrentState
from zoo.models.griffin import Griffin
from zoo.models.published import recurrent_gemma
from zoo.models.published.attention import attention_state, parts
from zoo.models.published.fields import knows
from zoo.models.published.weights import (
    Config,
    Table,
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
from zoo.state import State

GAIN = ".scale"  # a norm's, stored less 1


def unit(blocks: int) -> Table:
    """`RGLRU`."""
    return {"a_param": ("rate", same)} | {
        f"{theirs}.{short}": (f"{ours}.{part}", view)
        for theirs, ours in (("input_gate", "input_gate"), ("a_gate", "decay_gate"))
        for short, part, view in (
            ("w", "weight", same),
            ("b", "bias", lambda b: b.unflatten(0, (blocks, -1))),
        )
    }


def recurrent(blocks: int) -> Table:
    """`RecurrentBlock`."""
    return {
        **affine(linear_y="gate", linear_x="in_proj", linear_out="out_proj"),
        "conv_1d.w": ("conv.weight", Tensor.t),
        "conv_1d.b": ("conv.bias", same),
        **under("rg_lru.", "unit.", unit(blocks)),
    }


def table(model: Griffin) -> Table:
    tensors_of_layer: Table = {
        "embedder.input_embedding": ("embed.weight", same),
        "final_norm.scale": ("norm.weight", same),
    }
    block: Table = {
        "temporal_pre_norm.scale": ("mixer_norm.weight", same),
        "channel_pre_norm.scale": ("mlp_norm.weight", same),
        "mlp_block.ffw_up.w": ("mlp.in_proj.weight", lambda w: w.unflatten(0, (2, -1)).mT),
        "mlp_block.ffw_up.b": ("mlp.in_proj.bias", lambda b: b.unflatten(0, (2, 1, 1, -1))),
        **affine(mlp_block__ffw_down="mlp.out_proj"),
    }
    for layer, part in enumerate(model.stack):
        mixer: Any = part.mixer
        if isinstance(mixer, WindowAttention):
            temporal = parts(mixer, "attention_block.proj_{}", "mixer.qkv")
            temporal |= affine(attention_block__proj_final="mixer.out_proj")
        else:
            temporal = under("recurrent_block.", "mixer.", recurrent(len(mixer.unit.input_gate.weight)))
        tensors_of_layer |= under(f"blocks.{layer}.", f"stack.{layer}.", block | temporal)
    return tensors_of_layer


@knows(
    model_types=["recurrent_gemma"],
    architectures=["RecurrentGemmaForCausalLM"],
    without_effect=["scan_type", "w_init_variance_scale", "final_w_init_variance_scale"],
)
def load(weights: dict[str, Tensor], config: Config) -> Griffin:
    """The published model with its weights, in their dtype."""
    if "hidden_size" in config:
        return recurrent_gemma.load_transformers(weights, config)
    width, kinds = number(config, "width"), config.get("block_types")
    if not isinstance(kinds, list) or not kinds or not {"recurrent", "attention"}.issuperset(kinds):
        raise UserError(f"config: expected block_types, a list of recurrent and attention, found {kinds!r}")
    cap = config.get("logits_soft_cap")
    if cap is not None and (type(cap) not in (int, float) or cap < 0):
        raise UserError(f"config: expected logits_soft_cap, a number from 0 on, found {cap!r}")
    window = number(config, "attention_window_size")
    lru_width = {} if config.get("lru_width") is None else {"lru_width": config["lru_width"]}
    model = build(
        Griffin,
        vocab_size=number(config, "vocab_size"),
        segment_len=number(config, "L", default=window),
        depth=len(kinds),
        width=width,
        heads=number(config, "num_heads"),
        mlp_width=number(config, "mlp_expanded_width"),
        window=window + 1,
        pattern=kinds,
        lru_width=number(lru_width, "lru_width", default=width),
        conv_size=number(config, "conv1d_temporal_width", default=4),
        scaled_embeddings=flag(config, "embeddings_scale_by_sqrt_dim", True),
        soft_cap=float(cap) if cap else None,
    )
    require(config, num_kv_heads=1)
    gains = {name: weight + 1 if name.endswith(GAIN) else weight for name, weight in weights.items()}
    fill(model, gains, table(model))
    return model


def published_gradients(model: Griffin) -> dict[str, Tensor]:
    return gradients(model, table(model))


def published_state(state: State, model: Griffin) -> dict[str, Tensor]:
    """`{l}.conv` (rows, K-1, W), `{l}.h` (rows, W); `{l}.attn_k`, `{l}.attn_v` (rows, keys, 1, width)."""
    tensors: dict[str, Tensor] = {}
    for layer, (layer_state, block) in enumerate(zip(state, model.stack, strict=True)):
        mixer: Any = block.mixer
        recurs = isinstance(layer_state, RecurrentState)
        tensors_of_layer = (
            {"conv": layer_state.conv, "h": layer_state.h} if recurs else attention_state(mixer, layer_state)
        )
        tensors |= {f"{layer}.{name}": tensor for name, tensor in tensors_of_layer.items()}
    return tensors
