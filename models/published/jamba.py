"""Jamba as published, without experts: transformers' JambaForCausalLM."""

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.models.jamba import Jamba
from zoo.models.published.attention import parts
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
from zoo.state import State

NORMS: Table = {
    "dt_layernorm.weight": ("dt_norm.weight", same),
    "b_layernorm.weight": ("write_norm.weight", same),
    "c_layernorm.weight": ("read_norm.weight", same),
}
BLOCK: Table = {
    "input_layernorm.weight": ("mixer_norm.weight", same),
    "pre_ff_layernorm.weight": ("mlp_norm.weight", same),
    "feed_forward.gate_proj.weight": ("mlp.in_proj.weight", lambda w: w.chunk(2)[0]),
    "feed_forward.up_proj.weight": ("mlp.in_proj.weight", lambda w: w.chunk(2)[1]),
    "feed_forward.down_proj.weight": ("mlp.out_proj.weight", same),
}


def table(model: Jamba) -> Table:
    named: Table = {
        "model.embed_tokens.weight": ("embed.weight", same),
        "model.final_layernorm.weight": ("norm.weight", same),
        "lm_head.weight": ("head.weight", same),
    }
    for layer, block in enumerate(model.stack):
        if isinstance(block.mixer, WindowAttention):
            mixer = parts(block.mixer, "self_attn.{}_proj", "mixer.qkv")
            mixer |= affine(self_attn__o_proj="mixer.out_proj")
        else:
            mixer = under("mamba.", "mixer.", MIXER | NORMS)
        named |= under(f"model.layers.{layer}.", f"stack.{layer}.", BLOCK | mixer)
    return named


@knows(
    model_types=["jamba"],
    architectures=["JambaForCausalLM"],
    without_effect=[
        *("num_experts_per_tok", "expert_layer_period", "expert_layer_offset"),  # of one expert
        *("output_router_logits", "router_aux_loss_coef", "num_logits_to_keep"),
        *("calc_logits_for_entire_prompt", "use_mamba_kernels", "use_mambapy", "use_associative_scan"),
    ],
)
def load(weights: dict[str, Tensor], config: Config) -> Jamba:
    """The published model with its weights, in their dtype; attention sees the config's `context` tokens, by
    default its `L`, by default `max_position_embeddings`."""
    require(config, num_experts=1, hidden_act="silu", attention_dropout=0.0, sliding_window=None)
    width, depth = number(config, "hidden_size"), number(config, "num_hidden_layers")
    period, offset = number(config, "attn_layer_period"), number(config, "attn_layer_offset", least=0)
    if offset >= period:
        raise UserError(f"config: expected attn_layer_offset below {period}, found {offset}")
    heads = number(config, "num_attention_heads")
    rank = {} if config.get("mamba_dt_rank") == "auto" else config
    length = number(config, "L", default=number(config, "max_position_embeddings", default=262144))
    model = build(
        Jamba,
        vocab_size=number(config, "vocab_size"),
        segment_len=length,
        depth=depth,
        width=width,
        heads=heads,
        mlp_width=number(config, "intermediate_size"),
        context=number(config, "context", default=length),
        pattern=["attention" if layer % period == offset else "mamba" for layer in range(depth)],
        kv_heads=number(config, "num_key_value_heads", default=heads),
        channels=number(config, "mamba_expand", default=2) * width,
        state_size=number(config, "mamba_d_state", default=16),
        conv_size=number(config, "mamba_d_conv", default=4),
        dt_rank=number(rank, "mamba_dt_rank", default=-(-width // 16)),
        bias=flag(config, "mamba_proj_bias", False),
        conv_bias=flag(config, "mamba_conv_bias", True),
        tied=flag(config, "tie_word_embeddings", False),
    )
    epsilon = fraction(config, "rms_norm_eps", 1e-6)
    for part in model.modules():
        if isinstance(part, nn.RMSNorm):
            part.eps = epsilon
    pad = config.get("pad_token_id")
    if pad is not None and (type(pad) is not int or not 0 <= pad < model.vocab_size):
        raise UserError(f"config: expected pad_token_id, one of {model.vocab_size} tokens, found {pad!r}")
    model.embed.padding_idx = pad  # whose embedding isn't trained there
    fill(model, weights, table(model))
    return model


def published_gradients(model: Jamba) -> dict[str, Tensor]:
    return gradients(model, table(model))


def published_state(state: State, model: Jamba) -> dict[str, Tensor]:
    return states(state, model)
