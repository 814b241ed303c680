"""Which weights decay: those of linear maps, convolutions and tables of embeddings, and no others."""

import re
from fnmatch import fnmatch
from functools import cache, partial
from typing import Any

import pytest
import torch

from tests.contract.test_contract import MODELS, NANO, VARIANTS
from zoo.models.decoder import Decoder
from zoo.models.mamba2 import Mamba2
from zoo.models.megalodon import Megalodon
from zoo.models.published.memorizing import JointAttention
from zoo.module import SequenceModule
from zoo.train.runs import build
from zoo.train.runs.config import compose

DECAY = (
    "embed.weight",
    "positions",  # a table of embeddings too
    "head.weight",
    "*.qkv.weight",
    "*.r.weight",
    "*.k.weight",
    "*.v.weight",
    "*.q.weight",
    "*.kv.weight",
    "*.in_proj.weight",
    "*.out_proj.weight",
    "*.up.weight",
    "*.relative.weight",
    "*.conv.weight",
    "*.select.weight",
    "*.dt_weight",
    "*.gate_weight",
    "*.rnn.weight_ih_l0",
    "*.rnn.weight_hh_l0",
    "*.gate.weight",
    "*.gate_proj.weight",
    "*.decay_proj.weight",
    "*.decay_gate.weight",
    "*.input_gate.weight",
    "*.memory.key.weight",
    "*.memory.query.weight",
    "*.memory.value.weight",
    "*.memory.strength.weight",
    "*.attention.mixed.weight",
    "*.attention.shared.weight",
    "*.attention.straight.weight",
    "*.attention.value.weight",
)
DONT_DECAY = (
    "*.bias_?h_l0",
    "*bias",  # also Transformer-XL's content_bias and position_bias, a vector per head
    "*norm.weight",
    "*.norm_weight",
    "memory",  # memory tokens
    "landmark",
    "*.gate",
    "*.gain",
    "*.shift",
    "*.scale",
    "*.average_gain",
    "*.sharpness",
    "*.mix",  # RWKV's
    "*.mix_down",
    "*.mix_up",
    "*.bonus",
    "*.skip",
    "*.removal",
    "*.replacement",
    "*.down",
    "*.up",
    "*.A_log",
    "*.bounds.logits",
    "*.D",
    "*.rate",
    "*.average.alpha",
    "*.average.delta",
    "*.average.gamma",
    "*.average.omega",
    "*.average.theta",
)
"""Patterns of the names of weights; every weight of every model matches one of them all."""

OTHERS: dict[str, Any] = {
    "a D for each channel": partial(Mamba2, 23, 8, depth=2, width=16, all_heads=4, skip_per_channel=True),
    "rescaled": partial(
        Megalodon, **NANO, key_width=8, value_width=16, chunk_size=4, rescaled=True, swiglu=False, tied=False
    ),
    "the published memorizing layer": lambda: Decoder(
        23, 8, 16, [JointAttention(16, 4, 4, 8, 2, gated=True)], mlp_width=20
    ),
}


@cache
def built(name: str) -> SequenceModule:
    with torch.device("meta"):
        if name in MODELS:
            return build.model(compose([f"model={name}", "size=nano"]))
        return (VARIANTS | OTHERS)[name]()


def decaying(model: SequenceModule) -> dict[str, bool]:
    """Of each weight, in the groups' order, whether it decays."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        names[id(weight)]: group.get("decays", True)
        for group in model.parameter_groups()
        for weight in group["params"]
    }


@pytest.mark.parametrize("name", [*MODELS, *VARIANTS, *OTHERS])
def test_what_decays(name: str) -> None:
    model = built(name)
    decays = decaying(model)
    assert decays.keys() == dict(model.named_parameters()).keys()
    for weight, does in decays.items():
        patterns = [pattern for pattern in DECAY + DONT_DECAY if fnmatch(weight, pattern)]
        assert len(patterns) == 1, f"{weight}: expected one pattern above, found {patterns}"
        assert does == (patterns[0] in DECAY), weight


def test_every_pattern_is_of_some_weight() -> None:
    names = {
        re.sub(r"\d+", "0", name)
        for model in (*MODELS, *VARIANTS, *OTHERS)
        for name in decaying(built(model))
    }
    assert [
        pattern for pattern in DECAY + DONT_DECAY if not any(fnmatch(name, pattern) for name in names)
    ] == []


class Undeclared(SequenceModule):
    """A plug-in's model without a declaration."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bias = torch.nn.Embedding(5, 3), torch.nn.Parameter(torch.zeros(3))
        self.turn = torch.nn.Parameter(torch.zeros(2, 3, 3))

    def init_state(self, rows: int) -> Any:
        return ()

    def segment(self, tokens: Any, state: Any) -> Any:
        raise NotImplementedError


class Declared(Undeclared):
    no_weight_decay = ("turn",)


def test_without_a_declaration_all_but_vectors_decay() -> None:
    assert decaying(Undeclared()) == {"embed.weight": True, "turn": True, "bias": False}
    assert decaying(Declared()) == {"embed.weight": True, "turn": False, "bias": False}
