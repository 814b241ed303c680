"""Megalodon as a whole: laws for shapes that no config has, its state's size, its loader."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.laws import law_cases
from zoo.errors import UserError
from zoo.law_tools import perturbed
from zoo.models.megalodon import Megalodon
from zoo.models.published import megalodon
from zoo.state import nbytes, replace_rows

FIXTURE = Path(__file__).parents[1] / "golden" / "fixtures" / "megalodon" / "model_2layer"
NANO: dict[str, Any] = {
    "vocab_size": 23,
    "segment_len": 8,
    "depth": 2,
    "width": 12,
    "heads": 2,
    "mlp_width": 10,
}
NANO |= {"key_width": 8, "value_width": 14, "chunk_size": 8, "state_size": 3, "norm_groups": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "short_chunks": {"chunk_size": 3, "dropout": 0.1, "attention_dropout": 0.1, "hidden_dropout": 0.1},
    "long_chunks": {"chunk_size": 21, "tied": False, "scaled_embedding": True},
    "as_the_1.3B": {"swiglu": False, "rescaled": True, "norm_affine": False, "heads": 1, "norm_groups": 1},
}
MODELS = {name: partial(Megalodon, **(NANO | options)) for name, options in VARIANTS.items()}


@pytest.mark.parametrize("check", law_cases(MODELS))
def test_law(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("rows", [1, 3])
def test_bytes_of_state(rows: int) -> None:
    """Per layer 12 x 3 complex numbers, 7 cached keys of 8 and values of 14, how many of them, and a norm's
    statistics: a count, 3 means and 3 variances of 8 bytes; the last norm's."""
    norm = 8 + 2 * 3 * 8
    layer = 12 * 3 * 8 + 7 * (8 + 14) * 4 + 8 + norm
    model = Megalodon(**NANO)
    assert nbytes(model.init_state(rows)) == rows * (2 * layer + norm)


@torch.no_grad()
def test_continuing_rows_in_the_middle_of_their_chunks() -> None:
    """Rows that began 0, 3 and 8 tokens ago go on together as each would alone."""
    model = perturbed(partial(Megalodon, **NANO)).eval()
    texts = torch.randint(23, (3, 40), generator=torch.Generator().manual_seed(0))
    state = model.init_state(3)
    for length, row in ((5, 1), (3, 0)):
        state = model(texts[:, :length], state)[1]
        state = replace_rows(state, model.init_state(3), torch.arange(3) == row)
    logits = model(texts[:, 8:30], state)[0]
    for row, before in ((0, []), (1, [texts[1:2, :3]]), (2, [texts[2:, :5], texts[2:, :3]])):
        alone = torch.cat([*before, texts[row : row + 1, 8:30]], dim=1)
        torch.testing.assert_close(logits[row], model(alone)[0][0, -22:], rtol=1e-9, atol=1e-9)


def test_what_decays() -> None:
    model = Megalodon(**NANO, rescaled=True)
    names = {id(weight): name for name, weight in model.named_parameters()}
    decaying, rest = ({names[id(w)] for w in group["params"]} for group in model.parameter_groups())
    assert decaying | rest == set(names.values())
    assert not decaying & rest
    assert all(name.endswith("weight") for name in decaying)
    for part in ("average.", "gain", "shift", "norm", "scale", "bias"):
        assert not any(part in name for name in decaying)
    assert any("average.alpha" in name for name in rest)


def test_born_with_gains_of_one_and_a_running_average() -> None:
    torch.manual_seed(0)
    model = Megalodon(**NANO, rescaled=True)
    for name, weight in model.named_parameters():
        if name.endswith(("gain", "shift", "norm.weight", "bias")):
            assert not weight.any(), name
    weights = dict(model.named_parameters())
    assert [weights[f"layers.{i}.mlp.scale"][0].item() for i in range(2)] == pytest.approx([0.1, 0.05])
    assert model.embed.weight.std().item() == pytest.approx(12**-0.5, rel=0.15)
    assert weights["layers.1.attention.average.alpha"].std().item() == pytest.approx(0.2, rel=0.4)


def read() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = load_file(FIXTURE.with_suffix(".safetensors"))
    weights = {name.removeprefix("w."): x for name, x in tensors.items() if name.startswith("w.")}
    return weights, json.loads(FIXTURE.with_suffix(".json").read_text())["config"]


def test_weights_that_are_missing_strange_or_misshapen() -> None:
    weights, config = read()
    for name, weight in weights.items():
        with pytest.raises(UserError, match="found none"):
            megalodon.load({key: x for key, x in weights.items() if key != name}, config)
        with pytest.raises(UserError, match=r"expected .* \[.*\], found \[") as refused:
            megalodon.load(weights | {name: torch.cat([weight, weight])}, config)
        assert name in str(refused.value)
    with pytest.raises(UserError, match=r"none of layers\.9\.x"):
        megalodon.load(weights | {"layers.9.x": torch.zeros(1, dtype=torch.float64)}, config)


def test_buffers_pass_and_priors_do_not() -> None:
    weights, config = read()
    buffers = {"rope.freqs": torch.ones(2), "layers.0.mega.timenorm.prior_mean": torch.zeros(4)}
    count = {"layers.0.mega.timenorm.prior_count": torch.tensor(0)}
    megalodon.load(weights | buffers | count, config)
    with pytest.raises(UserError, match="prior_count 0, found 3"):
        megalodon.load(weights | {name: x + 3 for name, x in count.items()}, config)


def test_a_shared_embedding_may_be_stored_twice() -> None:
    weights, config = read()
    shared = config | {"share_emb": True}
    twice = weights | {"output.output.weight": weights["embed.weight"]}
    model = megalodon.load(twice, shared)
    assert model.head.weight is model.embed.weight
    del twice["output.output.weight"]
    megalodon.load(twice, shared)
    with pytest.raises(UserError, match="tied"):
        megalodon.load(weights, shared)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 0),
        ("model_dim", "wide"),
        ("z_dim", 6),
        ("value_dim", 31),
        ("num_heads", 3),
        ("chunk_size", 0),
        ("norm_num_groups", 5),
        ("norm_num_groups", 16),
        ("norm_eps", 1.0),
        ("rope_base", 0),
        ("swiglu", "yes"),
        ("output_size", 20),
        ("dropout", 1.5),
    ],
)
def test_fields_that_cannot_be_honoured(field: str, value: object) -> None:
    weights, config = read()
    with pytest.raises(UserError) as refused:
        megalodon.load(weights, config | {field: value})
    assert "\n" not in str(refused.value)


def test_the_state_of_rows_at_different_places_has_no_published_form() -> None:
    model = megalodon.load(*read())
    state = model.init_state(2)
    first = state.layers[0]
    uneven = first._replace(chunk=first.chunk._replace(filled=torch.tensor([0, 3])))
    layers = (uneven, *state.layers[1:])
    with pytest.raises(UserError, match=r"found \[0, 3\]"):
        megalodon.published_state(state._replace(layers=layers))
