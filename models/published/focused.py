"""The Focused Transformer as published: CStanKonrad/long_llama, LongLLaMA (PyTorch, Hugging Face's names) and
its training code (`fot_continued_pretraining`, EasyLM, flax names).

In training its contexts are earlier rows of the same forward (`contrast: rows`); in evaluation it attends
to the whole memory, here to its `neighbours` nearest keys, by default all of them.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.memory.retrieval.crossbatch import Contexts, earlier_rows
from zoo.memory.retrieval.focused_attention import FocusedAttention, FocusedState
from zoo.models.focused import Focused
from zoo.models.published.fields import LLAMA, LLAMA_FIXED, Renamed, knows, rope_base
from zoo.models.published.weights import (
    Config,
    Table,
    View,
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

SHORT = {"hidden": "hidden_size", "heads": "num_attention_heads", "layers": "num_hidden_layers"}
SHORT |= {"intermediate": "intermediate_size", "vocab": "vocab_size"}


def chunk(index: int, of: int) -> View:
    return lambda weight: weight.chunk(of)[index]


LAYER: Table = {
    "input_layernorm.weight": ("mixer_norm.weight", same),
    "post_attention_layernorm.weight": ("mlp_norm.weight", same),
    "self_attn.q_proj.weight": ("mixer.qkv.weight", chunk(0, 3)),
    "self_attn.k_proj.weight": ("mixer.qkv.weight", chunk(1, 3)),
    "self_attn.v_proj.weight": ("mixer.qkv.weight", chunk(2, 3)),
    "self_attn.o_proj.weight": ("mixer.out_proj.weight", same),
    "mlp.gate_proj.weight": ("mlp.in_proj.weight", chunk(0, 2)),
    "mlp.up_proj.weight": ("mlp.in_proj.weight", chunk(1, 2)),
    "mlp.down_proj.weight": ("mlp.out_proj.weight", same),
}
TABLE: Table = {
    "model.embed_tokens.weight": ("embed.weight", same),
    "model.norm.weight": ("norm.weight", same),
    "lm_head.weight": ("head.weight", same),
    **under("model.layers.{i}.", "stack.{i}.", LAYER),
}
FLAX = {  # flax names; matrices are (in, out)
    "model.layers.{i}.": "transformer/h/{i}/",
    "model.embed_tokens.weight": "transformer/wte/embedding",
    "model.norm.weight": "transformer/ln_f/kernel",
    "lm_head.weight": "lm_head/kernel",
    "input_layernorm.weight": "attention_norm/kernel",
    "post_attention_layernorm.weight": "ffn_norm/kernel",
    **{f"self_attn.{name}_proj.weight": f"attention/w{name}/kernel" for name in "qkvo"},
    "mlp.gate_proj.weight": "feed_forward/w1/kernel",
    "mlp.down_proj.weight": "feed_forward/w2/kernel",
    "mlp.up_proj.weight": "feed_forward/w3/kernel",
}
MEMORY_DTYPES = {
    "bfloat16": "bfloat16",
    "float32": None,
    "float64": None,
}  # mem_dtype: memory_dtype; None is the weights'
INTERLEAVED = ("/wq/kernel", "/wk/kernel")  # rotary pairs are adjacent there, half a head apart here


def transposed(view: View) -> View:
    return lambda weight: view(weight).mT if weight.ndim == 2 else view(weight)


def flax_table() -> Table:
    table = {}
    for theirs, (ours, view) in TABLE.items():
        for name, flax in FLAX.items():
            theirs = theirs.replace(name, flax)
        table[theirs] = (ours, view if ours == "embed.weight" else transposed(view))
    return table


class EarlierRows(FocusedAttention):
    """Attends to earlier rows of the same forward: `reach` of them, fewer by `packing` and `stepping`."""

    reach, packing, stepping = 0, 1, False

    def training_contexts(
        self, k: Tensor, v: Tensor, state: FocusedState
    ) -> tuple[Contexts, Int[Tensor, "rows d"]]:
        seen_rows = earlier_rows(len(k), self.reach, self.packing, self.stepping)[:, 1:].to(k.device)
        return Contexts(k, v, torch.full_like(state.filled, k.shape[2])), seen_rows


class LongLLaMA(Focused):
    learns_through_memory = False
    decodes = True
    memory = EarlierRows

    def forward(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """In training a row's segments must not be one another's rows."""
        return self.fold(tokens, state) if self.training else super().forward(tokens, state)


def shape(config: Config) -> dict[str, Any]:
    """Our constructor's keywords."""
    config = Renamed(config, SHORT)
    heads, depth = number(config, "num_attention_heads"), number(config, "num_hidden_layers")
    width = number(config, "hidden_size")
    require(config, num_key_value_heads=heads, head_dim=width // heads, tie_word_embeddings=False)
    require(config, contrast="rows")
    layers = config.get("mem_layers")
    if not isinstance(layers, (list, tuple)) or not all(type(layer) is int for layer in layers):
        raise UserError(f"config: expected mem_layers, a list of layers from 0 on, found {layers!r}")
    memory_dtype = config.get("mem_dtype", "bfloat16")
    if memory_dtype not in MEMORY_DTYPES:
        raise UserError(f"config: expected mem_dtype, bfloat16, float32 or float64, found {memory_dtype!r}")
    context = "max_position_embeddings" if "max_position_embeddings" in config else "max_sequence_length"
    segment_len = max(number(config, context), number(config, "last_context_length", default=1))
    capacity = number(config, "capacity", default=16 * segment_len)
    return {
        "vocab_size": number(config, "vocab_size"),
        "segment_len": segment_len,
        "depth": depth,
        "width": width,
        "heads": heads,
        "mlp_width": number(config, "intermediate_size"),
        "capacity": capacity,
        "neighbours": number(config, "neighbours", default=capacity + segment_len),
        "memory_layers": list(layers),
        "memory_dtype": MEMORY_DTYPES[memory_dtype],
        "memory_position": "rope" if flag(config, "mem_positionals", True) else "none",
        "rope_base": rope_base(config),
        "tied": False,
    }


@knows(
    model_types=["longllama", "llama"],
    architectures=["LongLlamaForCausalLM", "LlamaForCausalLM"],
    without_effect=["mem_attention_grouping", "torch_attention", "gradient_checkpoint_every_ith", *LLAMA],
    fixed=LLAMA_FIXED,
)
def load(weights: dict[str, Tensor], config: Config) -> LongLLaMA:
    """The published model with its weights, in their dtype; by their names from PyTorch or from flax.

    Raises UserError for a config or weights that aren't LongLLaMA's, and for a memory of neither their dtype
    nor bfloat16.
    """
    model = build(LongLLaMA, **shape(config))
    for memory in model.memories():
        assert isinstance(memory, EarlierRows)
        memory.reach = number(config, "cross_batch_range", least=0, default=0)
        memory.packing = number(config, "dataset_packing", default=1)
        memory.stepping = flag(config, "cross_batch_stepping", False)
    model.mixes_rows_in_training = config.get("cross_batch_range", 0) > 0
    for norm in model.modules():
        if isinstance(norm, nn.RMSNorm):
            norm.eps = fraction(config, "rms_norm_eps", 1e-6)
    for weight in weights.values():
        dtype = str(weight.dtype).removeprefix("torch.")
        if config.get("mem_dtype", "bfloat16") not in ("bfloat16", dtype):
            raise UserError(
                f"config: expected mem_dtype bfloat16, or the weights' {dtype}, found {config['mem_dtype']}"
            )
    heads = model.memories()[0].heads
    ours = {
        name: rearrange(weight, "i (h k two) -> i (h two k)", h=heads, two=2)
        if name.endswith(INTERLEAVED)
        else weight
        for name, weight in weights.items()
        if not name.endswith("rotary_emb.inv_freq")
    }
    fill(model, ours, flax_table() if "transformer/wte/embedding" in weights else TABLE)
    return model


def published_gradients(model: LongLLaMA, flax: bool = False) -> dict[str, Tensor]:
    heads = model.memories()[0].heads
    return {
        name: rearrange(grad, "i (h two k) -> i (h k two)", h=heads, two=2)
        if name.endswith(INTERLEAVED)
        else grad
        for name, grad in gradients(model, flax_table() if flax else TABLE).items()
    }


def published_state(state: State) -> dict[str, Tensor]:
    """`layer{l}/mem_k` and `mem_v` (rows, heads, tokens, head_dim), oldest first."""
    return {
        f"layer{layer}/{name}": tensor
        for layer, layer_state in enumerate(state)
        if isinstance(layer_state, FocusedState)
        for name, tensor in zip(("mem_k", "mem_v"), stored_keys_values(layer_state), strict=True)
    }


def stored_keys_values(state: FocusedState) -> tuple[Tensor, Tensor]:
    """All stored keys and values: the bank's, then the last segment's."""
    counts = torch.stack([state.bank.length, state.filled]).unique(dim=1).T.tolist()
    if len(counts) != 1:
        raise UserError(f"state: expected rows of one length, found {counts}")
    ((written, filled),) = counts
    ring = [torch.cat(blocks, dim=2) for blocks in (state.bank.keys, state.bank.values)]
    capacity = ring[0].shape[2]
    slots = torch.arange(max(0, written - capacity), written, device=state.filled.device) % capacity
    keys, values = (
        torch.cat([stored[:, :, slots], last[:, :, :filled]], dim=2)
        for stored, last in zip(ring, (state.previous_keys, state.previous_values), strict=True)
    )
    return keys, values
