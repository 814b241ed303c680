"""Decoder-only transformers of transformers: LLaMA, Mistral without its window, and GPT-2.

A segment is read alone.  It is as long as the config's `segment_len`, by default the longest text of the
published model, whose logits these are.
"""

from typing import Any

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.attention.core import Attention
from zoo.models.decoder import Decoder
from zoo.models.published import gpt2
from zoo.models.published.attention import parts
from zoo.models.published.fields import LLAMA, TRANSFORMERS_FIXED, knows
from zoo.models.published.rope import rotary_position
from zoo.models.published.weights import (
    Config,
    Table,
    affine,
    build,
    fill,
    flag,
    fraction,
    gradients,
    half,
    number,
    require,
    same,
    under,
)
from zoo.models.transformer import Transformer

MODEL_TYPES = ("llama", "mistral", "gpt2")
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "GPT2LMHeadModel", "GPT2Model")
WITHOUT_EFFECT = (*LLAMA, *gpt2.WITHOUT_EFFECT)


BLOCK: Table = {
    "input_layernorm.weight": ("mixer_norm.weight", same),
    "post_attention_layernorm.weight": ("mlp_norm.weight", same),
    **affine(self_attn__o_proj="mixer.out_proj", mlp__down_proj="mlp.out_proj"),
    **{
        f"mlp.{theirs}_proj.{part}": (f"mlp.in_proj.{part}", half(index))
        for index, theirs in enumerate(("gate", "up"))
        for part in ("weight", "bias")
    },
}


MISTRAL = {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}
"""What transformers takes for a field that a Mistral's config doesn't have."""


def default(config: Config, name: str, otherwise: int | None) -> int | None:
    return MISTRAL[name] if config.get("model_type") == "mistral" else otherwise


def window(config: Config) -> Any:
    """The tokens that attention sees, None for all."""
    return config.get("sliding_window", default(config, "sliding_window", None))


def is_gpt2(config: Config) -> bool:
    return "n_embd" in config


def llama_shape(config: Config) -> dict[str, Any]:
    """Transformer's keywords of a LLaMA-shaped config."""
    width, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    require(config, hidden_act="silu", head_dim=width // heads)
    longest = number(
        config, "max_position_embeddings", default=default(config, "max_position_embeddings", 2048)
    )
    bias = flag(config, "attention_bias", False)
    require({"mlp_bias": flag(config, "mlp_bias", False)}, mlp_bias=bias)
    kv_heads = config.get("num_key_value_heads", default(config, "num_key_value_heads", None))
    kv_heads = heads if kv_heads is None else kv_heads
    return {
        "vocab_size": number(config, "vocab_size"),
        "segment_len": number(config, "segment_len", default=longest),
        "depth": number(config, "num_hidden_layers"),
        "width": width,
        "heads": heads,
        "mlp_width": number(config, "intermediate_size"),
        "kv_heads": number({"num_key_value_heads": kv_heads}, "num_key_value_heads"),
        "position": rotary_position(config),
        "bias": bias,
        "tied": flag(config, "tie_word_embeddings", False),
    }


def shape(config: Config, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Transformer's keywords."""
    if not is_gpt2(config):
        return llama_shape(config)
    return gpt2.decoder_shape(config) | {"tied": gpt2.tied(weights, config)}


def finish(model: Decoder, weights: dict[str, Tensor], config: Config) -> None:
    """The norms' epsilon and the weights, in their dtype."""
    if is_gpt2(config):
        gpt2.finish(model, config, number(config, "n_positions", default=1024))
        fill(model, weights, gpt2.body("", ""))
        return
    for part in model.modules():
        if isinstance(part, nn.RMSNorm):
            part.eps = fraction(config, "rms_norm_eps", 1e-6)
    fill(model, weights, table(model))


def table(model: Decoder) -> Table:
    """LLaMA's names."""
    named: Table = {
        "model.embed_tokens.weight": ("embed.weight", same),
        "model.norm.weight": ("norm.weight", same),
        "lm_head.weight": ("head.weight", same),
    }
    for layer, block in enumerate(model.stack):
        attention: Any = block.mixer
        assert isinstance(attention, Attention)
        mixer = parts(attention, "self_attn.{}_proj", "mixer.qkv")
        named |= under(f"model.layers.{layer}.", f"stack.{layer}.", BLOCK | mixer)
    return named


@knows(
    model_types=MODEL_TYPES,
    architectures=ARCHITECTURES,
    without_effect=WITHOUT_EFFECT,
    fixed=TRANSFORMERS_FIXED,
)
def load(weights: dict[str, Tensor], config: Config) -> Transformer:
    """The published model with its weights, in their dtype."""
    if is_gpt2(config):
        weights = gpt2.as_body(weights)
    keywords = shape(config, weights)
    seen = window(config)
    if seen is not None and (type(seen) is not int or seen < keywords["segment_len"]):
        raise UserError(
            f"config: expected sliding_window of at least segment_len {keywords['segment_len']}, found "
            f"{seen!r}; format=sliding_window has the window"
        )
    model = build(Transformer, **keywords)
    finish(model, weights, config)
    return model


def published_gradients(model: Transformer) -> dict[str, Tensor]:
    return gradients(model, gpt2.body("", "") if model.positions is not None else table(model))
