"""Transformers with a sliding window that carry their keys and values: Mistral, and LLaMA with a window that
the config names.

`sliding_window` is the number of tokens that attention sees, the current one included; `sinks` are the text's
first tokens that it always sees (StreamingLLM), 0 by default.
"""

from torch import Tensor

from zoo.errors import UserError
from zoo.models.published import transformer
from zoo.models.published.fields import LLAMA, knows
from zoo.models.published.weights import Config, build, gradients, number
from zoo.models.transformer import Transformer


@knows(
    model_types=["mistral", "llama"],
    architectures=["MistralForCausalLM", "LlamaForCausalLM"],
    without_effect=["max_position_embeddings", *LLAMA],
)
def load(weights: dict[str, Tensor], config: Config) -> Transformer:
    """The published model with its weights, in their dtype."""
    if transformer.is_gpt2(config):
        raise UserError(
            "config: expected rotary positions, found n_positions: a table of positions that ends can't slide"
        )
    if (window := transformer.window(config)) is None:
        raise UserError(
            "config: expected sliding_window, the tokens that attention sees, found none; "
            "config.sliding_window=… sets one, and format=transformer has none"
        )
    keywords = transformer.llama_shape(config)
    window = number({"sliding_window": window}, "sliding_window")
    keywords["segment_len"] = number(config, "segment_len", default=min(window, keywords["segment_len"]))
    sinks = number(config, "sinks", least=0, default=0)
    model = build(Transformer, window=window, sinks=sinks, **keywords)
    transformer.finish(model, weights, config)
    return model


def published_gradients(model: Transformer) -> dict[str, Tensor]:
    return gradients(model, transformer.table(model))
