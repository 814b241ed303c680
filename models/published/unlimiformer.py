"""Unlimiformer on a published transformer: LLaMA, Mistral without its window, or GPT-2, with a bank in its
upper layers.  It has no weights of its own.

The config may have `segment_len`, `capacity` (tokens in the bank, by default 16 segments), `neighbours` (half
a segment), `layer_begin` (the middle layer) and `retrieved_positions` (before).
"""

from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.models.published import transformer
from zoo.models.published.fields import TRANSFORMERS_FIXED, knows
from zoo.models.published.weights import Config, build, number, require
from zoo.models.unlimiformer import Unlimiformer

POSITIONS = ("before", "start", "spread", "none")


def memory(config: Config, segment_len: int, depth: int) -> dict[str, Any]:
    """Unlimiformer's keywords beside Transformer's."""
    positions = config.get("retrieved_positions", "before")
    if positions not in POSITIONS:
        raise UserError(
            f"config: expected retrieved_positions, one of {', '.join(POSITIONS)}, found {positions!r}"
        )
    return {
        "capacity": number(config, "capacity", default=16 * segment_len),
        "neighbours": number(config, "neighbours", default=max(1, segment_len // 2)),
        "layer_begin": number(config, "layer_begin", least=0, default=depth // 2),
        "retrieved_positions": positions,
        "block": segment_len,
    }


@knows(
    model_types=transformer.MODEL_TYPES,
    architectures=transformer.ARCHITECTURES,
    without_effect=transformer.WITHOUT_EFFECT,
    fixed=TRANSFORMERS_FIXED,
)
def load(weights: dict[str, Tensor], config: Config) -> Unlimiformer:
    """The published model with its weights, in their dtype."""
    if transformer.is_gpt2(config):
        weights = transformer.gpt2.as_body(weights)
    require({"sliding_window": transformer.window(config)}, sliding_window=None)
    keywords = transformer.shape(config, weights)
    keywords |= memory(config, keywords["segment_len"], keywords["depth"])
    model = build(Unlimiformer, **keywords)
    transformer.finish(model, weights, config)
    return model


published_gradients = transformer.published_gradients
