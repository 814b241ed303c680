"""Small random models of transformers' own, as checkpoints and as what they compute."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]
LENGTH = 23
COMMON = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
LLAMA = COMMON | {"intermediate_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64}
MISTRAL = LLAMA | {"num_key_value_heads": 4}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GEMMA = COMMON | {
    **{"num_hidden_layers": 4, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 1},
    **{"attention_window_size": 8},
}
MAMBA2 = COMMON | {"state_size": 16, "head_dim": 16, "num_heads": 4, "n_groups": 2, "chunk_size": 8}
SCALED = {"rope_theta": 500.0, "original_max_position_embeddings": 16, "factor": 4.0}


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": parameters}


@contextmanager
def in_float64() -> Iterator[None]:
    """transformers makes some tensors of its own in the default type."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@cache
def original(kind: str, fields: tuple[tuple[str, Any], ...]) -> Any:
    """A random model of transformers' in float64 whose matrices, norms and biases all matter."""
    import transformers

    kinds = {"gpt2": "GPT2", "falcon_mamba": "FalconMamba", "recurrent_gemma": "RecurrentGemma"}
    name = kinds.get(kind, kind.capitalize())
    heads = {"GPT2": "GPT2LMHeadModel"}
    config = getattr(transformers, f"{name}Config")(**{key: thawed(value) for key, value in fields})
    torch.manual_seed(5)
    model = getattr(transformers, heads.get(name, f"{name}ForCausalLM"))(config).eval().double()
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if "A_log" not in part:
                weight.add_(0.15 * torch.randn_like(weight))
    model.tie_weights()
    return model


def frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return ("dict", *((key, frozen(part)) for key, part in value.items()))
    return ("list", *value) if isinstance(value, list) else value


def thawed(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    kind, *parts = value
    return list(parts) if kind == "list" else {key: thawed(part) for key, part in parts}


def model_of(kind: str, **fields: Any) -> Any:
    return original(kind, tuple((key, frozen(value)) for key, value in fields.items()))


def saved(kind: str, **fields: Any) -> tuple[Weights, dict[str, Any]]:
    """Weights and config as `save_pretrained` writes them: of tied weights only the first."""
    model = model_of(kind, **fields)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return weights, model.config.to_dict() | {"architectures": [type(model).__name__]}


def text(length: int = LENGTH) -> Tensor:
    return torch.randint(0, 90, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(kind: str, tokens: Tensor, **fields: Any) -> Tensor:
    with in_float64():
        logits: Tensor = model_of(kind, **fields)(tokens, use_cache=False).logits
    return logits
