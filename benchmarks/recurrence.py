"""The recurrences of fast weights for `scan.py`: four layers of 4 heads of 64, one after another, each form
beside memory's ssd, the loop, and flash-linear-attention's plain functions where that package is installed
(its files are read alone: the package itself needs Triton).
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import fast_weights, fast_weights_loop
from zoo.memory.state_space.inputs import SSDInputs
from zoo.memory.state_space.ssd import ssd

DEPTH, HEADS, HEAD_DIM = 4, 4, 64
Read = Callable[[Tensor], Tensor]
Layer = Callable[[Inputs], Tensor]
PLAIN = {  # form: file below fla/ops, function, its chunk size
    "head": ("simple_gla/naive.py", "naive_chunk_simple_gla", 64),
    "head_delta": ("gated_delta_rule/naive.py", "naive_chunk_gated_delta_rule", 64),
    "channel_delta": ("kda/naive.py", "naive_chunk_kda", 64),
    "channel_general": ("generalized_delta_rule/dplr/naive.py", "dplr_chunkwise", 32),
}
FORMS = ("head", "channel", "head_delta", "channel_delta", "channel_general")
"""RetNet, Lightning, mLSTM · GLA, HGRN2, RWKV-6 · Gated DeltaNet · KDA · RWKV-7."""


def inputs_of(form: str, time: int) -> Inputs:
    """Leaves that require a gradient."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    shape = (1, time, HEADS, HEAD_DIM)
    q, k, v, state = draw(*shape), draw(*shape), draw(*shape), draw(1, HEADS, HEAD_DIM, HEAD_DIM)
    g = -draw(*shape[:3], 1 if form.startswith("head") else HEAD_DIM).exp()
    a = b = strength = None
    if form.endswith("delta"):
        k, strength = F.normalize(k, dim=-1), draw(*shape[:3], 1).sigmoid()
    elif form.endswith("general"):
        a = -F.normalize(k, dim=-1)
        b = -a * draw(*shape).sigmoid()
    leaves = (q, k, v, g, state, a, b, None, strength)
    return Inputs(*(x if x is None else x.requires_grad_() for x in leaves))


def stacked(form: str, layer: Layer) -> Read:
    """A loss over four layers, the values of each of which are the outputs of the one below."""
    made: dict[int, Inputs] = {}

    def read(tokens: Tensor) -> Tensor:
        inputs = made.setdefault(tokens.shape[1], inputs_of(form, tokens.shape[1]))
        o = inputs.v
        for _ in range(DEPTH):
            o = F.normalize(layer(inputs._replace(v=o)), dim=-1)
        return o.square().sum() + (o * inputs.q).sum()

    return read


def by_ssd(inputs: Inputs) -> Tensor:
    """The same heads, each a group, with B = k and C = q; dt and A instead of the decays."""
    dt = inputs.q[..., 0]
    return ssd(SSDInputs(inputs.v, dt, -torch.ones(HEADS), inputs.k, inputs.q, inputs.state))[0]


def by_fla(form: str) -> Layer:
    file, name, chunk_size = PLAIN[form]
    spec = importlib.util.find_spec("fla")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("expected the package flash-linear-attention, found none")
    path = Path(spec.submodule_search_locations[0]) / "ops" / file
    loaded = importlib.util.spec_from_file_location(f"fla_{form}", path)
    assert loaded is not None
    assert loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    function: Any = getattr(module, name)

    def layer(inputs: Inputs) -> Tensor:
        q, k, v, g, state, a, b, _, strength = inputs
        beta = None if strength is None else strength[..., 0]
        if form == "head":
            result = function(q, k, v, g[..., 0], initial_state=state, chunk_size=chunk_size)
        elif form == "head_delta":
            result = function(q, k, v, g[..., 0], beta, chunk_size=chunk_size, initial_state=state)
        elif form == "channel_delta":
            result = function(q, k, v, g, beta, initial_state=state, chunk_size=chunk_size)
        else:
            heads_first = (x.transpose(1, 2) for x in (q, k, v, a, b, g))
            result = function(*heads_first, initial_state=state, chunk_size=chunk_size)
            return result[0].transpose(1, 2)
        return result[0]

    return layer


def implementations(form: str) -> dict[str, Callable[[], Read]]:
    """Builders; the zoo's comes first."""
    builders: dict[str, Callable[[], Read]] = {
        "zoo": lambda: stacked(form, lambda inputs: fast_weights(inputs)[0]),
        "ssd": lambda: stacked("head", by_ssd),
        "loop": lambda: stacked(form, lambda inputs: fast_weights_loop(inputs)[0]),
    }
    if form in PLAIN and importlib.util.find_spec("fla") is not None:
        builders["fla"] = lambda: stacked(form, by_fla(form))
    return builders
