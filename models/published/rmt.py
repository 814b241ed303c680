"""Recurrent Memory Transformer as published, in both forms, told apart by the config's `n_embd` or `d_model`:

around GPT-2, batch-first: booydar/recurrent-memory-transformer, modeling_rmt/language_modeling.py, or a plain
GPT-2, which training begins with: its memory tokens are new;
on Transformer-XL, time-first: booydar/LM-RMT, pytorch/mem_transformer.py.
"""

from collections.abc import Iterable

from torch import Tensor

from zoo.models.published import gpt2, transformer_xl
from zoo.models.published.fields import knows
from zoo.models.published.weights import Config, Table, build, fill, flag, gradients, number, under
from zoo.models.rmt import RMT, RMTState
from zoo.models.rmt_xl import RMTXL, RMTXLState
from zoo.module import SequenceModule

TABLE: Table = gpt2.body("", "")
XL_TABLE: Table = {**transformer_xl.TABLE, "mem_tokens": ("memory", lambda memory: memory[:, None])}


class RMTFromTheEnd(gpt2.FromTheEnd, RMT):
    pass


@knows(
    model_types=["gpt2"], architectures=["GPT2LMHeadModel", "GPT2Model"], without_effect=gpt2.WITHOUT_EFFECT
)
def load(weights: dict[str, Tensor], config: Config) -> RMT | RMTXL:
    """The published model with its weights, in their dtype."""
    return _load_xl(weights, config) if "d_model" in config else _load_gpt2(weights, config)


def new_weights(names: Iterable[str]) -> list[str]:
    """Weights that this checkpoint lacks and that training initialises."""
    return ["memory"] if gpt2.is_plain(names) else []


def _load_gpt2(weights: dict[str, Tensor], config: Config) -> RMT:
    if gpt2.is_plain(weights):
        weights = gpt2.with_new_memory(weights, config)
    model = build(
        RMTFromTheEnd if gpt2.from_the_end(config) else RMT,
        **gpt2.shape(config),
        tied=gpt2.tied(weights, config),
    )
    gpt2.finish(model, config, number(config, "n_positions"))
    fill(model, weights, under(gpt2.prefix(weights), "", TABLE))
    return model


def _load_xl(weights: dict[str, Tensor], config: Config) -> RMTXL:
    model = build(
        RMTXL,
        **transformer_xl.shape(config),
        memory_tokens=number(config, "num_mem_tokens"),
        write_at_end=flag(config, "mem_at_end", True),
        read_cache=flag(config, "read_mem_from_cache", False),
        wrapped=True,
    )
    fill(model, weights, XL_TABLE)
    return model


def published_gradients(model: SequenceModule, prefix: str = "memory_cell.") -> dict[str, Tensor]:
    """Under the names of the whole model; a GPT-2 cell alone has none of its `prefix`."""
    return gradients(model, XL_TABLE if isinstance(model, RMTXL) else under(prefix, "", TABLE))


def published_state(state: RMTState | RMTXLState) -> dict[str, Tensor]:
    """`memory_state` (rows, memory, width); on XL `mem_tokens` (memory, rows, width) and `mems{l}`."""
    if isinstance(state, RMTXLState):
        return {"mem_tokens": state.memory.transpose(0, 1), **transformer_xl.published_state(state.layers)}
    return {"memory_state": state.memory}
