"""Megalodon against its slow reference, with configs that the published cases don't have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.cases import Case, read_case
from tests.golden.kinds.megalodon import KINDS
from tests.golden.reference import megalodon as reference

FIXTURES = Path(__file__).parent / "fixtures" / "megalodon"

CEMA: dict[str, Any] = {"embed_dim": 3, "ndim": 4, "L": 11, "B": 2, "segments": [4, 6, 1]}
NORM: dict[str, Any] = {"num_features": 6, "num_groups": 3, "L": 9, "B": 3, "segments": [2, 7], "eps": 1e-5}
NORM |= {"prior_count": 0}
LAYER: dict[str, Any] = {"num_layers": 2, "model_dim": 6, "z_dim": 8, "value_dim": 10, "num_heads": 2}
LAYER |= {"ffn_hidden_dim": 5, "cema_ndim": 3, "chunk_size": 4, "vocab_size": 7, "norm_num_groups": 3}
LAYER |= {"swiglu": True, "norm_eps": 1e-5, "norm_affine": True, "rope_base": None, "scale_emb": False}
LAYER |= {"share_emb": False, "rescale_nffn": False, "L": 11, "B": 2, "bounds": [3, 8, 11]}
SHAPES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "plain feed-forward": {"swiglu": False},
    "rescaled": {"rescale_nffn": True},
    "rescaled and plain": {"rescale_nffn": True, "swiglu": False, "norm_affine": False},
    "no affine norms": {"norm_affine": False},
    "rope base": {"rope_base": 50.0},
    "rope base, whole": {"rope_base": 100},
    "epsilon": {"norm_eps": 1e-2},
    "one head": {"num_heads": 1, "z_dim": 2, "value_dim": 3},
    "many heads": {"num_heads": 4, "value_dim": 4},
    "one group": {"norm_num_groups": 1},
    "one state": {"cema_ndim": 1},
    "chunk of one": {"chunk_size": 1},
    "chunk of two": {"chunk_size": 2, "bounds": [1, 2, 5, 11]},
    "chunk longer than the text": {"chunk_size": 20, "bounds": [4, 11]},
    "chunk as long as the text": {"chunk_size": 11, "bounds": [10, 11]},
    "one row": {"B": 1},
    "one token": {"B": 3, "L": 1, "bounds": [1]},
    "values narrower than keys": {"z_dim": 12, "value_dim": 4},
}
TABLES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "megalodon/cema": (
        CEMA,
        {
            "as it is": {},
            "one row": {"B": 1},
            "one state": {"ndim": 1},
            "many states": {"ndim": 16, "embed_dim": 5},
            "one channel": {"embed_dim": 1},
            "one token": {"L": 1, "segments": [1]},
            "chunks": {"L": 70, "segments": [33, 32, 5]},
        },
    ),
    "megalodon/timestepnorm": (
        NORM,
        {
            "as it is": {},
            "one row": {"B": 1},
            "one group": {"num_groups": 1},
            "a prior": {"prior_count": 1},
            "a long prior": {"prior_count": 7, "num_groups": 2},
            "groups of one feature": {"prior_count": 2, "num_groups": 6},
            "epsilon": {"eps": 0.1},
            "one token": {"L": 1, "segments": [1]},
        },
    ),
    "megalodon/layer": (LAYER, SHAPES),
    "megalodon/model": (
        LAYER,
        {name: SHAPES[name] for name in ("as it is", "rescaled and plain", "rope base", "epsilon", "one row")}
        | {
            "scaled embedding": {"scale_emb": True},
            "shared embedding": {"share_emb": True},
            "scaled and shared": {"scale_emb": True, "share_emb": True, "rescale_nffn": True},
            "one layer": {"num_layers": 1},
            "three layers": {"num_layers": 3, "rescale_nffn": True},
        },
    ),
}


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_the_reference_agrees_with_the_published_cases(path: Path) -> None:
    case = read_case(path)
    inputs = {n: x for n, x in case.tensors.items() if n.startswith(("in.", "cot.", "w."))}
    results = reference.computed(case.kind, case.config, inputs)
    case.open -= inputs.keys()
    case.compare("", {name: tensor for name, tensor in results.items() if name not in inputs})
    case.close(config=False)


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}weight": (width,), f"{name}bias": (width,)}


def average_shapes(name: str, width: int, states: int) -> dict[str, tuple[int, ...]]:
    sizes = {"alpha": (width, states, 1), "delta": (width, states, 1), "theta": (width, 1, 1)}
    return {
        name + part: size
        for part, size in (sizes | {"gamma": (width, states, 2), "omega": (width, 1)}).items()
    }


def block_shapes(c: dict[str, Any], name: str) -> dict[str, tuple[int, ...]]:
    width, z, v, hidden = c["model_dim"], c["z_dim"], c["value_dim"], c["ffn_hidden_dim"]
    shapes: dict[str, tuple[int, ...]] = {"mega.gamma": (2, z), "mega.beta": (2, z)}
    shapes |= norm_shapes("mega.timenorm.", width) | average_shapes("mega.cema.", width, c["cema_ndim"])
    for part, out in {"wv": v, "wz": z, "wr": v, "wh1": width}.items():
        shapes |= {f"mega.{part}.weight": (out, width), f"mega.{part}.bias": (out,)}
    shapes |= {
        "mega.wh2.weight": (width, v),
        "nffn.fc1.weight": (hidden, width),
        "nffn.fc2.weight": (width, hidden),
    }
    shapes |= {"nffn.fc3.weight": (hidden, width)} if c["swiglu"] else {}
    shapes |= {"nffn.alpha": (width,)} if c["rescale_nffn"] else {}
    if c["norm_affine"]:
        shapes |= {"mega.rmsnorm.weight": (width,)} | norm_shapes("nffn.norm.", width)
    return {name + part: size for part, size in shapes.items()}


def random_inputs(kind: str, c: dict[str, Any]) -> dict[str, Tensor]:
    """Random inputs and weights for a case: nothing at its initial value, nothing small enough to hide."""
    random = torch.Generator().manual_seed(sum(map(ord, kind + repr(c))))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    rows, time = c["B"], c["L"]
    inputs: dict[str, Tensor]
    weights: dict[str, Tensor] = {}
    if kind == "megalodon/cema":
        width, states = c["embed_dim"], c["ndim"]
        shapes = average_shapes("", width, states)
        inputs = {"in.x": draw(rows, width, time), "in.h0": draw(rows, width, states, 2)}
        inputs |= {"cot.y": draw(rows, width, time), "cot.h": draw(rows, width, states, 2)}
    elif kind == "megalodon/timestepnorm":
        width, groups = c["num_features"], c["num_groups"]
        shapes = norm_shapes("", width)
        inputs = {name: draw(rows, time, width) for name in ("in.x", "cot.y")}
        inputs |= {name: draw(rows, groups) for name in ("in.prev_mean", "cot.mean", "cot.var")}
        inputs |= {"in.prev_var": draw(rows, groups).exp(), "in.prev_count": torch.arange(rows) * 3 + 2}
        inputs["in.pad"] = draw(rows, time) > 0.5
        weights = {"w.prior_count": torch.tensor(c["prior_count"])}
        for name in ("prior_mean", "prior_logv"):
            weights[f"w.{name}"] = draw(groups) * bool(c["prior_count"])
    elif kind == "megalodon/layer":
        shapes = block_shapes(c, "")
        inputs = {name: draw(rows, time, c["model_dim"]) for name in ("in.x", "cot.y")}
    else:
        width, vocabulary = c["model_dim"], c["vocab_size"]
        shapes = {"embed.weight": (vocabulary, width)} | norm_shapes("output.final_norm.", width)
        shapes |= {} if c["share_emb"] else {"output.output.weight": (vocabulary, width)}
        for i in range(c["num_layers"]):
            shapes |= block_shapes(c, f"layers.{i}.")
        inputs = {
            name: torch.randint(vocabulary, (rows, time), generator=random)
            for name in ("in.tokens", "in.targets")
        }
    return inputs | weights | {f"w.{name}": draw(*shape) * 0.7 for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(kind, base | variant, id=f"{kind}: {name}")
        for kind, (base, variants) in TABLES.items()
        for name, variant in variants.items()
    ],
)
def test_our_models_agree_with_the_reference(kind: str, config: dict[str, Any]) -> None:
    case = Case(kind, config, reference.computed(kind, config, random_inputs(kind, config)), of_max=True)
    KINDS[kind](case)
    case.close()
