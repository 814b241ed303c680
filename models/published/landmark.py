"""Landmark attention as published: epfml/landmark-attention, the GPT-2-like model of lm_benchmark and the
LLaMA of llama/llama_mem.py, distinguished by the names of their weights.

Both keep the landmark as a row of the embedding table, and its logit among the others.
"""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.retrieval.landmark_attention import BankState, LandmarkAttention, Selection
from zoo.models.landmark import Landmark
from zoo.models.published.attention import parts
from zoo.models.published.fields import LLAMA, LLAMA_FIXED, knows, rope_base
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

SELECTIONS: dict[str, Selection] = {
    "per_token_and_head": "token_and_head",
    "max_over_heads": "token",
    "max_over_tokens": "head",
}
COMPUTED = (".wpe.freqs", ".rotary_emb.inv_freq")  # derived buffers, stored in some checkpoints
GPT_BLOCK: Table = {
    **affine(ln_1="mixer_norm", ln_2="mlp_norm", attn__c_attn="mixer.qkv", attn__c_proj="mixer.out_proj"),
    **affine(mlp__c_fc="mlp.in_proj", mlp__c_proj="mlp.out_proj"),
}
GPT: Table = {
    "transformer.wte.weight": ("embed.weight", same),
    **under("transformer.h.{i}.", "stack.{i}.", GPT_BLOCK),
    **affine(transformer__ln_f="norm"),
    "lm_head.weight": ("head.weight", same),
}
LLAMA_BLOCK: Table = {
    "input_layernorm.weight": ("mixer_norm.weight", same),
    "self_attn.o_proj.weight": ("mixer.out_proj.weight", same),
    "post_attention_layernorm.weight": ("mlp_norm.weight", same),
    "mlp.gate_proj.weight": ("mlp.in_proj.weight", lambda w: w.chunk(2)[0]),
    "mlp.up_proj.weight": ("mlp.in_proj.weight", lambda w: w.chunk(2)[1]),
    "mlp.down_proj.weight": ("mlp.out_proj.weight", same),
}


class LandmarkInTable(Landmark):
    """The landmark's embedding is a row of the table, and the text may contain the landmark."""

    def __init__(self, landmark_id: int, llama: bool, **shape: Any) -> None:
        super().__init__(**shape)
        if not 0 <= landmark_id < self.vocab_size:
            raise ValueError(f"landmark {landmark_id} is none of {self.vocab_size} tokens")
        self.landmark_id, self.llama = landmark_id, llama
        del self.landmark

    def landmark_embedding(self) -> Float[Tensor, " width"]:
        return self.embed.weight[self.landmark_id]

    def read_window(self, tokens: Int[Tensor, "rows time"]) -> Float[Tensor, "rows time vocab"]:
        """The published training: a window cut anywhere from a stream that has a landmark after every
        `mem_freq` tokens is a context by itself; logits at landmarks too."""
        landmarks = tokens == self.landmark_id
        first = torch.where(landmarks.any(1), landmarks.long().argmax(1), tokens.shape[1])
        offset = (self.mem_freq - first).clamp(min=0)
        positions = offset[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        if not torch.equal(landmarks, positions % (self.mem_freq + 1) == self.mem_freq):
            raise UserError(f"text: expected landmark {self.landmark_id} after every {self.mem_freq} tokens")
        x = self.dropout(self.embed(tokens))
        blocks: Any = self.stack
        for block in blocks:
            x = x + block.dropout(block.mixer.attend_alone(block.mixer_norm(x), offset))
            x = x + block.mlp(block.mlp_norm(x))
        return self.head(self.norm(x))


@knows(
    model_types=["llama"],
    architectures=["LlamaForCausalLM"],
    without_effect=["max_groups_for_softmax", "max_position_embeddings", *LLAMA],
    fixed={**LLAMA_FIXED, "rope": "half-split, base 10000"},
)
def load(weights: Mapping[str, Tensor], config: Config) -> LandmarkInTable:
    """The published model with its weights, in their dtype.

    The bank has `mem_cache_size` blocks (LLaMA: `capacity` tokens).  A segment is as long as the longest of
    the config's `segments` or `chunks`; without them `sequence_length`, or the LLaMA code's default.
    """
    weights = {name: weight for name, weight in weights.items() if not name.endswith(COMPUTED)}
    llama = any(".self_attn." in name for name in weights)
    model = build(LandmarkInTable, llama=llama, **(llama_shape if llama else gpt_shape)(config))
    epsilon = fraction(config, "rms_norm_eps", 1e-6) if llama else fraction(config, "ln_eps", 1e-5)
    for part in model.modules():
        if isinstance(part, (nn.RMSNorm, nn.LayerNorm)):
            part.eps = epsilon
            if not llama and not flag(config, "bias", False):
                part.register_parameter("bias", None)
    fill(model, weights, table(model))
    return model


def gpt_shape(config: Config) -> dict[str, Any]:
    """The constructor's keywords for lm_benchmark's model."""
    freq, topk = first_number(config, "mem_cache_freq", "mem_freq"), number(config, "cache_topk", default=2)
    method = config.get("cache_selection_method", "per_token_and_head")
    if method not in SELECTIONS:
        raise UserError(
            f"config: expected cache_selection_method, one of {', '.join(SELECTIONS)}, found {method!r}"
        )
    width = number(config, "n_embd")
    return {
        "landmark_id": number(config, "landmark_id", least=0),
        "vocab_size": number(config, "vocab_size"),
        "segment_len": segment_len(config, freq, topk),
        "depth": number(config, "n_layer"),
        "width": width,
        "heads": number(config, "n_head"),
        "mlp_width": 4 * width,
        "mem_freq": freq,
        "capacity": freq * number(config, "mem_cache_size", default=40),
        "topk": topk,
        "selection": SELECTIONS[method],
        "retrieve_from_layer": 0,
        "interleaved": True,
        "norm": "layer",
        "activation": "gelu",
        "bias": flag(config, "bias", False),
        "dropout": fraction(config, "dropout", 0.0),
    }


def llama_shape(config: Config) -> dict[str, Any]:
    """The constructor's keywords for LLaMA, whose published bank is unbounded; by default as tested there."""
    freq, topk = number(config, "mem_freq", default=50), number(config, "cache_top_k", default=4)
    width, heads = (
        first_number(config, *names)
        for names in (("hidden_size", "hidden"), ("num_attention_heads", "heads"))
    )
    require(config, num_key_value_heads=heads, head_dim=width // heads)
    if rope_base(config) != 10000:
        raise UserError(
            f"config: expected rope_theta 10000, the only one supported, found {rope_base(config)}"
        )
    return {
        "landmark_id": number(config, "mem_id", least=0),
        "vocab_size": first_number(config, "vocab_size", "vocab"),
        "segment_len": segment_len(config, freq, topk),
        "depth": first_number(config, "num_hidden_layers", "layers"),
        "width": width,
        "heads": heads,
        "mlp_width": first_number(config, "intermediate_size", "intermediate"),
        "mem_freq": freq,
        "capacity": max(number(config, "capacity", default=sum(config.get("chunks", ())) or 32_768), freq),
        "topk": topk,
        "selection": "head" if flag(config, "offload_cache_to_cpu", False) else "token_and_head",
        "retrieve_from_layer": 0,
        "tied": flag(config, "tie_word_embeddings", False),
    }


def first_number(config: Config, *names: str) -> int:
    """The value of the first of these fields that the config has."""
    return number(config, next((name for name in names if name in config), names[0]))


def segment_len(config: Config, freq: int, topk: int) -> int:
    """Tokens per segment, a multiple of `freq`."""
    block = freq + 1
    lengths = config.get("segments", config.get("chunks"))
    if lengths:
        return -(-max(lengths) // freq) * freq
    stream_len = number(config, "sequence_length", default=max(512 - 512 % block - (topk + 1) * block, block))
    return max(stream_len // block, 1) * freq


def table(model: LandmarkInTable) -> Table:
    """The table for the model's code, without biases if the model has none."""
    if not model.llama:
        learned = dict(model.named_parameters(remove_duplicate=False))
        return {name: target for name, target in GPT.items() if target[0].replace("{i}", "0") in learned}
    mixer = next(part for part in model.modules() if isinstance(part, LandmarkAttention))
    block = LLAMA_BLOCK | parts(mixer, "self_attn.{}_proj", "mixer.qkv")
    return {
        "model.embed_tokens.weight": ("embed.weight", same),
        **under("model.layers.{i}.", "stack.{i}.", block),
        "model.norm.weight": ("norm.weight", same),
        "lm_head.weight": ("head.weight", same),
    }


def published_gradients(model: LandmarkInTable) -> dict[str, Tensor]:
    return gradients(model, table(model))


def published_state(state: State, model: LandmarkInTable) -> dict[str, Tensor]:
    """`layer{l}/cache_mem_k`, `_v` (rows, block, position, heads, head_dim) in the order of the published
    ring, and `last_incomplete_k`, `_v` (rows, heads, position, head_dim) where a block is open; LLaMA's
    `cache_k_or_incomplete_k` (rows, heads, position, head_dim), closed blocks and the open one."""
    layer_tensors = llama_cache if model.llama else ring
    return {
        f"layer{layer}/{name}": tensor
        for layer, layer_state in enumerate(state)
        for name, tensor in layer_tensors(layer_state).items()
    }


def filled(state: BankState) -> tuple[int, int]:
    """Blocks closed since the rows were fresh, and positions of the open one."""
    lengths = state.length.unique().tolist()
    if len(lengths) != 1:
        raise UserError(f"state: expected rows of one length, found {lengths}")
    closed, open_len = divmod(lengths[0], state.keys.shape[3])
    return closed, open_len


def ring(state: BankState) -> dict[str, Tensor]:
    closed, open_len = filled(state)
    size = state.keys.shape[2]
    tensors = {
        f"cache_mem_{kind}": rearrange(bank[:, :, max(size - closed, 0) :], "b h n s k -> b n s h k").roll(
            closed % size if closed > size else 0, dims=1
        )
        for kind, bank in (("k", state.keys), ("v", state.values))
    }
    if open_len:
        tensors |= {
            f"last_incomplete_{kind}": part[:, :, :open_len]
            for kind, part in (("k", state.open_keys), ("v", state.open_values))
        }
    return tensors


def llama_cache(state: BankState) -> dict[str, Tensor]:
    return {"cache_k_or_incomplete_k": stored_positions(state)[0]}


def stored_positions(state: BankState) -> tuple[Tensor, Tensor]:
    """Keys and values (rows, heads, position, head_dim): the bank's closed blocks, then the open one."""
    closed, open_len = filled(state)
    keys, values = (
        torch.cat([bank[:, :, max(bank.shape[2] - closed, 0) :].flatten(2, 3), part[:, :, :open_len]], dim=2)
        for bank, part in ((state.keys, state.open_keys), (state.values, state.open_values))
    )
    return keys, values
