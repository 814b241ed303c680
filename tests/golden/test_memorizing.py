"""The Memorizing Transformer against the slow reference, in more configurations than the published cases."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.cases import Case, read_case
from tests.golden.kinds import memorizing
from tests.golden.reference.memorizing import Config, Reference, layer, paper
from zoo.errors import UserError
from zoo.models.memorizing import Memorizing
from zoo.models.published import memorizing as published

FIXTURES = Path(__file__).parent / "fixtures" / "memorizing"


def draw(seed: object, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(sum(map(ord, repr(seed))))
    return torch.randn(shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "computed"), [("paper_gate_topk", paper), ("luc_core_knn_attention", layer)]
)
def test_the_reference_agrees_with_the_published_case(name: str, computed: Any) -> None:
    case = read_case(FIXTURES / f"{name}.json")
    inputs = {part: case.read(part) for part in list(case.tensors) if part.startswith(("in/", "w/"))}
    case.compare("", computed(case.config, inputs))
    case.close(config=False)


PAPER: Config = {"B": 2, "H": 2, "segment": 4, "head_dim": 3, "k": 2, "memory_cap": 8, "segments": 4}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"memory_cap": 6, "k": 6},
        {"memory_cap": 2, "segment": 5, "k": 4},
        {"memory_cap": 1, "k": 1},
        {"k": 9, "memory_cap": 30},
        {"B": 1, "H": 1, "head_dim": 1, "segments": 3},
        {"B": 3, "H": 3, "segment": 1, "memory_cap": 3, "segments": 6},
    ],
    ids=repr,
)
def test_our_functions_agree_with_the_reference(config: Config) -> None:
    c = PAPER | config
    shape = (c["B"], c["H"], c["segment"], c["head_dim"])
    inputs = {"w/scale": 2 + draw("scale", c["H"]), "w/gate_bias": draw("gate", c["H"])}
    if len(config) != 1:
        inputs["in/local_bias"] = draw("bias", c["H"], c["segment"], c["segment"])
    for s in range(c["segments"]):
        inputs |= {f"in/seg{s}/{name}": draw((s, name), *shape) for name in ("q", "k", "v", "cotangent")}
        begins = draw(("begins", s), c["B"]) > 0.5
        inputs[f"in/seg{s}/start_of_document"] = begins if s else torch.ones_like(begins)
    case = Case("memorizing/paper_gate_topk", c, inputs | paper(c, inputs))
    memorizing.check_paper(case)
    case.close()


LAYER: Config = {"B": 2, "n": 5, "dim": 6, "heads": 2, "dim_head": 3, "memories": 7}
LAYER |= {"num_retrieved_memories": 3, "gate_output": False}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"gate_output": True},
        {"num_retrieved_memories": 9, "B": 1},
        {"heads": 3, "dim_head": 1, "memories": 1},
        {"max_knn_memories": 8, "gate_output": True},
        {"memories": 0},
        {"n": 1, "heads": 1, "dim_head": 6},
    ],
    ids=repr,
)
@pytest.mark.parametrize("biased", [True, False])
def test_our_layer_agrees_with_the_reference(config: Config, biased: bool) -> None:
    c = LAYER | config
    rows, size, dim, heads, width = (c[name] for name in ("B", "n", "dim", "heads", "dim_head"))
    inputs = {
        "in/x": draw("x", rows, size, dim),
        "in/cotangent": draw("cotangent", rows, size, dim),
        "in/memories": draw("memories", rows, c["memories"], 2, width),
        "w/scale": 1 + 0.3 * draw("scale", heads, 1, 1),
        "w/to_q.weight": draw("q", heads * width, dim),
        "w/to_kv.weight": draw("kv", 2 * width, dim),
        "w/to_out.weight": draw("out", dim, heads * width),
    }
    inputs |= {"w/output_gate": draw("gate", 1)} if c["gate_output"] else {}
    inputs |= {"in/rel_pos_bias": draw("bias", 1, heads, size, size)} if biased else {}
    case = Case("memorizing/luc_core", c, inputs | layer(c, inputs))
    memorizing.check_layer(case)
    case.close()


def test_what_the_layer_has_none_of() -> None:
    with pytest.raises(UserError, match="expected no XL memory, found xl_max_memories 4"):
        published.load_layer({}, LAYER | {"xl_max_memories": 4})


MODEL: Config = {"vocab_size": 11, "segment_len": 4, "depth": 2, "width": 8, "heads": 2, "mlp_width": 6}
MODEL |= {"capacity": 8, "neighbours": 3, "memory_layers": [1]}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"memory_layers": [0, 1], "capacity": 6, "block": 2},
        {"capacity": 3, "neighbours": 5, "heads": 1},
        {"depth": 1, "memory_layers": [0], "tied": False, "capacity": 16, "block": 4},
    ],
    ids=repr,
)
def test_our_model_agrees_with_the_reference(config: Config) -> None:
    c = MODEL | config
    model = Memorizing(**c).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(0.6 * draw(name, *weight.shape) + weight.mean())
        p = {name: weight.detach() for name, weight in model.state_dict().items()}
        text = torch.randint(11, (2, 15), generator=torch.Generator().manual_seed(1))
        expected = []
        for row in text.tolist():
            reference = Reference(c, p)
            pieces = [row[start : start + c["segment_len"]] for start in range(0, 15, c["segment_len"])]
            expected.append(torch.cat([reference.segment(piece) for piece in pieces]))
        for read in (model.forward, model.fold):
            torch.testing.assert_close(read(text)[0], torch.stack(expected), rtol=1e-9, atol=1e-9)
