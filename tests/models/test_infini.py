"""Infini-attention's model: its gates' learning, what it reports, what its loader refuses, and the laws for
shapes that no config has."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.laws import law_cases
from zoo.errors import UserError
from zoo.law_tools import perturbed
from zoo.models.infini import GATE_LR_SCALE, Infini
from zoo.models.published import infini
from zoo.optim import Optim
from zoo.state import nbytes

FIXTURE = Path(__file__).parents[1] / "golden" / "fixtures" / "infini" / "infini_model_delta_rope"
NANO: dict[str, Any] = {
    "vocab_size": 23,
    "segment_len": 8,
    "depth": 2,
    "width": 16,
    "heads": 4,
    "mlp_width": 20,
}
GPT: dict[str, Any] = {"norm": "layer", "activation": "gelu", "bias": True, "tied": False}
VARIANTS: dict[str, Callable[[], Infini]] = {
    "linear": partial(Infini, **NANO, rule="linear", position="none", head_dim=3, value_width=5),
    "normed": partial(Infini, **NANO, qk_norm=True),
    "gpt": partial(Infini, **NANO, **GPT, head_dim=6, rope_base=100.0, dropout=0.1),
}


def text(time: int, rows: int = 2) -> Tensor:
    return torch.randint(23, (rows, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("check", law_cases(VARIANTS))
def test_law(check: Callable[[], None]) -> None:
    check()


def test_gates_learn_faster_and_do_not_decay() -> None:
    model = Infini(**NANO)
    matrices, rest, gates = model.parameter_groups()
    assert [id(weight) for weight in gates["params"]] == [id(gate) for gate in model.gates()]
    assert len(gates["params"]) == NANO["depth"]
    in_groups = [id(weight) for group in (matrices, rest, gates) for weight in group["params"]]
    assert sorted(in_groups) == sorted(id(weight) for weight in model.parameters())
    optimizer = Optim(steps=10, lr=0.01, warmup=1, weight_decay=0.5).build(model.parameter_groups())[
        "optimizer"
    ]
    before = [gate.detach().clone() for gate in model.gates()]
    for gate in model.gates():
        gate.grad = torch.ones_like(gate)
    optimizer.step()
    for gate, old in zip(model.gates(), before, strict=True):
        torch.testing.assert_close(gate, old - 0.01 * GATE_LR_SCALE)  # Adam's first step: the rate itself


def test_frozen_gates_are_in_no_group() -> None:
    model = Infini(**NANO)
    model.gates()[0].requires_grad_(False)
    in_groups = {id(weight) for group in model.parameter_groups() for weight in group["params"]}
    assert in_groups == {id(weight) for weight in model.parameters() if weight.requires_grad}


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_gates_have_a_gradient_from_birth(rule: Any) -> None:
    torch.manual_seed(0)
    model = Infini(**NANO, rule=rule)
    assert not any(gate.any() for gate in model.gates())  # half open
    model(text(24))[0].square().sum().backward()
    for gate in model.gates():
        assert isinstance(gate.grad, Tensor)
        assert gate.grad.abs().min() > 1e-8


@torch.no_grad()
def test_what_is_reported() -> None:
    model = perturbed(partial(Infini, **NANO)).eval()
    for gate, value in zip(model.gates(), (-2.0, 3.0), strict=True):
        gate.fill_(value)
    _, state = model(text(32))
    figures = model.diagnostics(state)
    low, high = (1 / (1 + torch.tensor(-value).exp().item()) for value in (-2.0, 3.0))
    norms = [matrix.square().sum().sqrt() for layer in state for row in layer.matrix for matrix in row]
    expected = {"gate": (low + high) / 2, "gate_min": low, "gate_max": high}
    assert figures == pytest.approx(expected | {"norm": torch.stack(norms).mean().item()}, rel=1e-6)
    assert model.diagnostics(model.init_state(2))["norm"] == 0


@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_bytes_of_state(rows: int) -> None:
    """Per layer and head M and z, d_key (d_value + 1) numbers (the paper's table 1), and a count."""
    model = Infini(**NANO, head_dim=6, value_width=5)
    per_row = NANO["depth"] * (4 * 6 * (5 + 1) * 4 + 8)
    assert nbytes(model.init_state(rows)) == nbytes(model(text(24, rows))[1]) == rows * per_row


@torch.no_grad()
def test_what_was_read_far_back_is_still_there() -> None:
    """Seven segments later: as far as no window of this depth reaches."""
    model, tokens = perturbed(partial(Infini, **NANO)).eval(), text(8 * 8)
    changed = tokens.clone()
    changed[:, :8] = (changed[:, :8] + 1) % 23
    assert (model(tokens)[0] - model(changed)[0])[:, -8:].abs().max() > 1e-4


def read() -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = load_file(FIXTURE.with_suffix(".safetensors"))
    weights = {name.removeprefix("param/"): x for name, x in tensors.items() if name.startswith("param/")}
    return weights, json.loads(FIXTURE.with_suffix(".json").read_text())["config"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"update": "gamma"}, "update, linear or delta, found 'gamma'"),
        ({"rope": "yes"}, "rope, true or false"),
        ({"rope_base": 0}, "rope_base, a number above 0, found 0"),
        ({"d_key": 7}, "even head_dim, not 7"),
        ({"d_key": 0}, "d_key, a whole number from 1 on"),
        ({"d_value": 4}, r"layers\.0\.attn\.v_proj\.weight \[8, 16\], found \[16, 16\]"),
        ({"seg_lens": []}, r"seg_lens, a list of lengths, found \[\]"),
        ({"seg_lens": None}, "segment_len, a whole number from 1 on, found None"),
        ({"seg_lens": [8, 0]}, "seg_lens, a whole number from 1 on, found 0"),
        ({"seg_lens": 8}, "seg_lens, a list of lengths, found 8"),
        ({"n_layer": 3}, "layers.2"),
    ],
)
def test_what_the_loader_refuses(fields: dict[str, Any], says: str) -> None:
    weights, config = read()
    with pytest.raises(UserError, match=says):
        infini.load(weights, config | fields)


def test_weights_that_are_missing_strange_or_misshapen() -> None:
    weights, config = read()
    for name in weights:
        with pytest.raises(UserError, match="found none"):
            infini.load({key: x for key, x in weights.items() if key != name}, config)
    with pytest.raises(UserError, match=r"none of layers\.9\.x"):
        infini.load(weights | {"layers.9.x": torch.zeros(1, dtype=torch.float64)}, config)
    del weights["lm_head.weight"], config["lm_head"]
    model = infini.load(weights, config)
    assert model.head.weight is model.embed.weight
    model = infini.load(weights, config | {"lm_head": "tied"})
    assert model.head.weight is model.embed.weight
    assert model.segment_len == 8
    assert infini.load(weights, config | {"seg_lens": None, "segment_len": 5}).segment_len == 5
