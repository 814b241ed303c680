"""Infini-attention against the slow reference, in more configurations than the published cases."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden.cases import Case, read_case
from tests.golden.kinds import infini
from tests.golden.reference.infini import Config, Tensors, computed

FIXTURES = Path(__file__).parent / "fixtures" / "infini"


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_the_reference_agrees_with_the_published_cases(path: Path) -> None:
    case = read_case(path)
    inputs = {name: x for name, x in case.tensors.items() if name.startswith(("in/", "param/"))}
    case.compare("", computed(case.kind, case.config, inputs))
    case.close(config=False)


LAYER: Config = {"d_model": 6, "n_head": 2, "d_key": 4, "d_value": 3, "seg_lens": [4, 4, 4], "batch": 2}
LAYER |= {"update": "delta", "rope": True, "rope_base": 10000.0}
MODEL: Config = LAYER | {"vocab": 11, "n_layer": 2, "d_ff": 7, "seg_lens": [3, 3, 3]}
NOPE: Config = {"rope": False, "rope_base": 0}
LAYER_VARIANTS: dict[str, Config] = {
    "plain": {},
    "linear": {"update": "linear"},
    "no positions": NOPE,
    "linear, no positions, odd key": {"update": "linear", "d_key": 3} | NOPE,
    "fast rotation": {"rope_base": 5.0},
    "whole base": {"rope_base": 100},
    "one head": {"n_head": 1, "d_key": 6, "d_value": 6},
    "three heads, wide values": {"n_head": 3, "d_key": 2, "d_value": 5},
    "keys of one": {"d_key": 1, "d_value": 2} | NOPE,
    "short last": {"seg_lens": [4, 4, 1]},
    "short last, linear": {"seg_lens": [4, 4, 2], "update": "linear"},
    "short first": {"seg_lens": [2, 4, 3]},
    "all lengths, linear": {"seg_lens": [3, 1, 5, 2], "update": "linear"},
    "tokens": {"seg_lens": [1, 1, 1, 1]},
    "one segment": {"seg_lens": [4]},
    "one row, many segments": {"batch": 1, "seg_lens": [2] * 7},
}
MODEL_VARIANTS: dict[str, Config] = {
    "plain": {},
    "linear": {"update": "linear", "n_layer": 1},
    "no positions, three layers": {"n_layer": 3, "seg_lens": [2, 2, 2]} | NOPE,
    "short last": {"seg_lens": [3, 3, 1], "rope_base": 50.0},
    "short first, one row": {"seg_lens": [1, 3, 2], "batch": 1, "update": "linear"},
    "one segment": {"seg_lens": [4]},
    "tied": {"lm_head": "tied", "n_head": 3, "d_key": 2, "d_value": 4},
}


def random_inputs(kind: str, c: Config) -> Tensors:
    """Random inputs and weights for a case: nothing at its initial value, nothing small enough to hide."""
    random = torch.Generator().manual_seed(sum(map(ord, kind + repr(c))))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    width, heads, time = c["d_model"], c["n_head"], sum(c["seg_lens"])
    shapes: dict[str, tuple[int, ...]] = {"beta": (heads,), "o_proj.weight": (width, heads * c["d_value"])}
    shapes |= {f"{part}_proj.weight": (heads * c["d_key"], width) for part in "qk"}
    shapes["v_proj.weight"] = (heads * c["d_value"], width)
    inputs = {"seg_lens": torch.tensor(c["seg_lens"])}
    if kind == "infini/layer":
        inputs |= {"x": draw(c["batch"], time, width), "cotangent": draw(c["batch"], time, width)}
    else:
        ids = torch.randint(c["vocab"], (c["batch"], time + 1), generator=random)
        inputs |= {"input_ids": ids[:, :-1], "target_ids": ids[:, 1:]}
        layers = range(c["n_layer"])
        shapes = {f"layers.{i}.attn.{n}": shape for i in layers for n, shape in shapes.items()}
        for i in layers:
            shapes |= {f"layers.{i}.ff.w1.weight": (c["d_ff"], width), f"layers.{i}.ff.w1.bias": (c["d_ff"],)}
            shapes |= {f"layers.{i}.ff.w2.weight": (width, c["d_ff"]), f"layers.{i}.ff.w2.bias": (width,)}
        norms = ["norm_f", *(f"layers.{i}.norm{position}" for i in layers for position in (1, 2))]
        shapes |= {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}
        tables = ("tok_emb.weight",) if c.get("lm_head") == "tied" else ("tok_emb.weight", "lm_head.weight")
        shapes |= dict.fromkeys(tables, (c["vocab"], width))
    weights = {}
    for name, shape in shapes.items():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weights[f"param/{name}"] = centre + draw(*shape) * (0.2 if "norm" in name else 0.8)
    return {f"in/{name}": x for name, x in inputs.items()} | weights


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(kind, base | variant, id=f"{kind}: {name}")
        for kind, base, variants in (
            ("infini/layer", LAYER, LAYER_VARIANTS),
            ("infini/model", MODEL, MODEL_VARIANTS),
        )
        for name, variant in variants.items()
    ],
)
def test_our_models_agree_with_the_reference(kind: str, config: Config) -> None:
    case = Case(kind, config, computed(kind, config, random_inputs(kind, config)))
    infini.KINDS[kind](case)
    case.close()
