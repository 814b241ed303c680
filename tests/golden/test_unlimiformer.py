"""Unlimiformer against the slow reference, in more configurations than the published cases."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden.cases import Case, read_case
from tests.golden.kinds import unlimiformer
from tests.golden.reference.unlimiformer import Config, Reference, Tensors, core
from zoo.models.unlimiformer import Unlimiformer

FIXTURE = Path(__file__).parent / "fixtures" / "unlimiformer" / "core_retrieval_attention.json"


def draw(seed: object, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(sum(map(ord, repr(seed))))
    return torch.randn(shape, generator=random, dtype=torch.float64)


def random_tensors(c: Config, bias: bool) -> Tensors:
    tensors = {"in/h_dec": draw("dec", c["B"] * c["beam"], 1, c["dim"])}
    tensors["in/h_enc"] = draw("enc", c["B"], c["n_hidden"], c["dim"])
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        tensors[f"w/{name}.weight"] = 0.6 * draw(name, c["dim"], c["dim"])
        if bias:
            tensors[f"w/{name}.bias"] = draw([name], c["dim"])
    return tensors


def test_the_reference_agrees_with_the_published_case() -> None:
    case = read_case(FIXTURE)
    inputs = {name: case.read(name) for name in list(case.tensors) if name.startswith(("in/", "w/"))}
    case.compare("", core(case.config, inputs))
    case.close(config=False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"B": 1, "beam": 3},
        {"heads": 1, "dim": 5},
        {"heads": 3, "dim": 12, "k": 1},
        {"k": 9},
        {"n_hidden": 40, "k": 17, "beam": 2},
        {"B": 3, "beam": 4, "heads": 4},
        {"B": 2, "beam": 2, "heads": 1, "dim": 3, "k": 1},
        {"n_hidden": 1, "k": 1},
    ],
    ids=repr,
)
def test_our_attention_agrees_with_the_reference(config: Config, bias: bool) -> None:
    c: Config = {"B": 2, "beam": 1, "heads": 2, "dim": 8, "n_hidden": 9, "k": 4} | config
    tensors = random_tensors(c, bias)
    case = Case("unlimiformer/core_retrieval_attention", c, tensors | core(c, tensors))
    unlimiformer.check_core(case)
    case.close()


@pytest.mark.parametrize("shape", [(3, 2, 8), (6, 1, 8), (6, 8)])
def test_beams_may_share_an_axis_with_the_rows(shape: tuple[int, ...]) -> None:
    c: Config = {"B": 3, "beam": 2, "heads": 2, "dim": 8, "n_hidden": 9, "k": 4}
    tensors = random_tensors(c, bias=False)
    tensors |= core(c, tensors)
    for name in ("in/h_dec", "out/attn_output"):
        tensors[name] = tensors[name].reshape(shape)
    case = Case("unlimiformer/core_retrieval_attention", c, tensors)
    unlimiformer.check_core(case)
    case.close()

    case = Case("unlimiformer/core_retrieval_attention", c, tensors)
    case.tensors["out/attn_output"] = (
        tensors["out/attn_output"].flatten(0, -2)[[1, 0, 2, 3, 4, 5]].view(shape)
    )
    unlimiformer.check_core(case)
    with pytest.raises(AssertionError, match=r"2 of \d+ tensors: out/attn_output: off by"):
        case.close()


NANO: Config = {"vocab_size": 7, "segment_len": 4, "depth": 2, "width": 8, "heads": 2, "mlp_width": 5}
NANO |= {"capacity": 8, "neighbours": 3}


@pytest.mark.parametrize("trained", [False, True], ids=["evaluation", "retrieval training"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"capacity": 12, "block": 4, "neighbours": 5, "bias": True},
        {"capacity": 5, "neighbours": 2, "rope_base": 50.0},
        {"capacity": 3, "neighbours": 9},
        {"capacity": 40, "neighbours": 1, "heads": 4, "kv_heads": 2, "bias": True},
        {"position": "alibi", "heads": 4, "kv_heads": 1, "activation": "relu"},
        {"position": "learned", "norm": "layer", "bias": True, "tied": False},
        {"position": "none", "layer_begin": 1, "depth": 3},
        {"layer_begin": 0, "capacity": 6, "segment_len": 3},
        {"depth": 1, "heads": 1, "segment_len": 1},
        {"retrieved_positions": "start", "kv_heads": 1, "bias": True},
        {"retrieved_positions": "start", "position": "alibi"},
        {"retrieved_positions": "before", "rope_base": 50.0, "capacity": 5},
        {"retrieved_positions": "spread", "kv_heads": 1, "bias": True},
        {"retrieved_positions": "spread", "rope_base": 50.0, "capacity": 5, "neighbours": 5},
        {"retrieved_positions": "spread", "position": "alibi", "capacity": 7},
    ],
    ids=repr,
)
def test_our_model_agrees_with_the_reference(config: Config, trained: bool) -> None:
    c = NANO | config
    torch.manual_seed(0)
    model = Unlimiformer(**c, retrieval_training=trained).double().train(trained)
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight.add_(0.3 * draw(index, *weight.shape))
    p: Tensors = dict(model.named_parameters(remove_duplicate=False))
    text = torch.randint(c["vocab_size"], (2, 3 * c["segment_len"] + 1))
    # segments that begin alike have equal keys, among which rounding would choose
    text[:, :: c["segment_len"]] = torch.randperm(c["vocab_size"])[:4]
    cotangent = draw("cotangent", *text.shape, c["vocab_size"])
    logits, state = model(text)
    grads = torch.autograd.grad((logits * cotangent).sum(), list(model.parameters()))
    readers = [Reference(c, p, trained) for _ in text]
    expected = torch.stack([reader.read(row) for reader, row in zip(readers, text.tolist(), strict=True)])
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    expected_grads = torch.autograd.grad((expected * cotangent).sum(), list(model.parameters()))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-9)
    for layer, bank in enumerate(state):
        if not bank:
            assert layer < c.get("layer_begin", c["depth"] // 2)
            continue
        slots = torch.cat(bank.keys, dim=2)[:, 0]
        for row, reader in enumerate(readers):
            assert bank.length[row] == text.shape[1]
            for age, kept in enumerate(reversed(reader.past[layer]), 1):
                slot = (text.shape[1] - age) % c["capacity"]
                torch.testing.assert_close(slots[row, slot], kept, rtol=1e-9, atol=1e-9)
