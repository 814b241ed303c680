"""GPT-2, by itself and as the body of RMT and ARMT: Hugging Face's names, whose `Conv1D` matrices are
(in, out)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.models.blocks import Activation
from zoo.models.decoder import Decoder
from zoo.models.published.weights import Config, Table, affine, flag, fraction, number, require, same, under
from zoo.module import SequenceModule
from zoo.state import State

ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
WITHOUT_EFFECT = (
    "segment_len",  # beside segment_size
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn", "n_ctx"),
    *("k2", "vary_n_segments", "sum_loss", "return_all_logits"),  # of RMT's training
    *(f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")),
)
BLOCK: Table = {
    **affine(ln_1="mixer_norm", ln_2="mlp_norm", attn__c_attn="mixer.qkv", attn__c_proj="mixer.out_proj"),
    **affine(mlp__c_fc="mlp.in_proj", mlp__c_proj="mlp.out_proj"),
}
BLOCK |= {
    theirs: (ours, Tensor.t) for theirs, (ours, _) in BLOCK.items() if ".c_" in theirs and "weight" in theirs
}


def body(block: str, ours: str) -> Table:
    """Memory tokens and decoder, with what stands between a layer's name and its block's, there and here."""
    return {
        "memory": ("memory", same),
        "model.transformer.wte.weight": ("embed.weight", same),
        "model.transformer.wpe.weight": ("positions", same),
        **under("model.transformer.h.{i}." + block, "stack.{i}." + ours, BLOCK),
        **affine(model__transformer__ln_f="norm"),
        "model.lm_head.weight": ("head.weight", same),
    }


def prefix(weights: dict[str, Tensor]) -> str:
    """A whole model keeps everything in its `memory_cell`."""
    return "memory_cell." if any(name.startswith("memory_cell.") for name in weights) else ""


def as_body(weights: Mapping[str, Tensor], block: str = "") -> dict[str, Tensor]:
    """The weights of a whole GPT-2 under the names that they have as a body (`block` is that of `body`).

    GPT2LMHeadModel's begin with `transformer.`, GPT2Model's with nothing; more may stand before all of them.
    """
    embed = next((name for name in weights if name.endswith("wte.weight")), "")
    stem = embed.removesuffix("wte.weight")
    head = stem.removesuffix("transformer.") + "lm_head."
    renamed = {}
    for name, weight in weights.items():
        ours, theirs = ("lm_head.", head) if name.startswith(head) else ("transformer.", stem)
        inner = re.sub(r"^(h\.\d+\.)", rf"\1{block}", name.removeprefix(theirs))
        renamed[f"model.{ours}{inner}"] = weight
    return renamed


def is_plain(weights: Iterable[str]) -> bool:
    """True if these are the names of a GPT-2 that has been given no memory yet."""
    return not {"wte.weight", "transformer.wte.weight"}.isdisjoint(weights)


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Weights that start anew here are the same in every import."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def with_new_memory(weights: Mapping[str, Tensor], config: Config, block: str = "") -> dict[str, Tensor]:
    """A plain GPT-2 as a body, with memory tokens of its embeddings' standard deviation, as the published
    code begins."""
    body = as_body(weights, block)
    if (embed := body.get("model.transformer.wte.weight")) is not None:
        with fixed_seed():
            memory = torch.randn(number(config, "num_mem_tokens"), embed.shape[1])
        body["memory"] = (memory * embed.float().std()).to(embed.dtype)
    return body


def tied(weights: dict[str, Tensor], config: Config) -> bool:
    """Hugging Face stores a tied output projection twice or once; without `tie_word_embeddings` the weights
    decide."""
    model = f"{prefix(weights)}model."
    head, embed = weights.get(f"{model}lm_head.weight"), weights.get(f"{model}transformer.wte.weight")
    equal = head is None or (embed is not None and torch.equal(head, embed))
    if config.get("tie_word_embeddings") is None:
        return equal
    if flag(config, "tie_word_embeddings") and not equal:
        raise UserError("config: expected tie_word_embeddings false, as the weights are, found true")
    return flag(config, "tie_word_embeddings")


def shape(config: Config) -> dict[str, Any]:
    """The keywords of a model with memory tokens."""
    segment = "segment_size" if "segment_size" in config else "segment_len"
    return decoder_shape(config) | {
        "segment_len": number(config, segment),
        "memory_tokens": number(config, "num_mem_tokens"),
    }


def decoder_shape(config: Config) -> dict[str, Any]:
    """Our constructor's keywords, but for the memory's."""
    require(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width = number(config, "n_embd")
    hidden = {} if config.get("n_inner") is None else {"n_inner": config["n_inner"]}
    activation = str(config.get("activation", config.get("activation_function", "gelu_new")))
    if activation.split(" ")[0] not in ACTIVATIONS:
        raise UserError(f"config: expected activation, one of {', '.join(ACTIVATIONS)}, found {activation!r}")
    return {
        "vocab_size": number(config, "vocab_size"),
        "segment_len": number(config, "segment_len", default=number(config, "n_positions", default=1024)),
        "depth": number(config, "n_layer"),
        "width": width,
        "heads": number(config, "n_head"),
        "mlp_width": number(hidden, "n_inner", default=4 * width),
        "position": "learned",
        "norm": "layer",
        "activation": ACTIVATIONS[activation.split(" ")[0]],
        "bias": True,
        "dropout": fraction(config, "dropout", 0.0),
    }


def finish(model: Decoder, config: Config, positions: int) -> None:
    """What a configuration of the published model has and our constructor hasn't."""
    assert model.positions is not None
    needed = len(model.positions)
    if positions < needed:
        raise UserError(f"config: expected a table of at least {needed} positions, found {positions}")
    model.positions = nn.Parameter(torch.empty(positions, model.width))
    epsilon = fraction(config, "layer_norm_epsilon", 1e-5)
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = epsilon


class FromTheEnd(SequenceModule):
    """Cuts its text from the end: a short segment comes first (`segment_alignment: right`)."""

    def fold(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        short = tokens.shape[1] % self.segment_len
        if not short or short == tokens.shape[1]:
            return super().fold(tokens, state)
        state = self.init_state(len(tokens)) if state is None else state
        first, state = self.segment(tokens[:, :short], state)
        rest, state = super().fold(tokens[:, short:], state)
        return torch.cat([first, rest], dim=1), state


def from_the_end(config: Config) -> bool:
    alignment = config.get("segment_alignment")
    if alignment not in (None, "left", "right"):
        raise UserError(f"config: expected segment_alignment left or right, found {alignment!r}")
    return alignment == "right"
