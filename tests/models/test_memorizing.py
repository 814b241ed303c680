"""The Memorizing Transformer as a whole: the laws for shapes that no config has, how far it reaches, what it
learns and reports."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.laws import law_cases
from zoo.law_tools import perturbed
from zoo.memory.retrieval import memorizing_attention
from zoo.models.memorizing import Memorizing
from zoo.models.transformer import Transformer
from zoo.state import detach, leaves, named_leaves, nbytes
from zoo.train.runs import budget
from zoo.train.runs.config import compose

NANO: dict[str, Any] = {
    "vocab_size": 23,
    "segment_len": 8,
    "depth": 2,
    "width": 16,
    "heads": 4,
    "mlp_width": 20,
}
MEMORY: dict[str, Any] = {"capacity": 16, "neighbours": 4, "block": 8}
MODEL = partial(Memorizing, **NANO, **MEMORY)
VARIANTS: dict[str, Callable[[], Memorizing]] = {
    "all_layers": partial(MODEL, memory_layers=[0, 1], dropout=0.1),
    "short_bank": partial(Memorizing, **NANO, capacity=3, neighbours=9, tied=False),
    "odd_bank": partial(Memorizing, **NANO, capacity=20, neighbours=3, block=5),
    "bf16_bank": partial(MODEL, memory_dtype="bfloat16"),
    "faiss": partial(MODEL, backend="faiss", memory_layers=[0, 1]),
    "faiss_odd_bank": partial(Memorizing, **NANO, capacity=20, neighbours=3, block=5, backend="faiss"),
}


EXCEPTIONS = {"short_bank": {"reach_is_true": "its bank has forgotten the first tokens of the law's text"}}


@pytest.mark.parametrize("check", law_cases(VARIANTS, EXCEPTIONS))
def test_law(check: Callable[[], None]) -> None:
    check()


def text(segments: int, rows: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(23, (rows, segments * 8), generator=torch.Generator().manual_seed(seed))


def test_it_reaches_back_as_far_as_the_bank() -> None:
    """One layer with a bank, whose inputs know nothing of it: what the bank has dropped is forgotten."""
    model, tokens = perturbed(partial(MODEL, capacity=24, neighbours=24)).eval(), text(6)
    for segment in range(5):  # the last one reads segments 2 .. 4
        changed = tokens.clone()
        changed[:, segment * 8 : segment * 8 + 8] = text(1, seed=9)
        same = torch.allclose(model(tokens)[0][:, -8:], model(changed)[0][:, -8:], rtol=0, atol=1e-12)
        assert same == (segment < 2)


def test_a_segment_is_read_before_it_is_written() -> None:
    """In the first one there is nothing to find: with the gate shut it is said what any memory would say."""
    model = perturbed(MODEL).eval()
    twin = perturbed(partial(MODEL, neighbours=1)).eval()
    assert_close(model(text(1))[0], twin(text(1))[0])
    assert (model(text(2))[0] - twin(text(2))[0]).abs().max() > 1e-6


def test_gates_that_are_shut_leave_a_transformer_on_unit_keys() -> None:
    model = perturbed(MODEL).eval()
    (memory,) = model.memories()
    with torch.no_grad():
        memory.gate.fill_(-1e9)
        piecewise = torch.cat([model(piece)[0] for piece in text(3).split(8, dim=1)], dim=1)
    assert_close(model(text(3))[0], piecewise)
    base = Transformer(**NANO)
    more = {name.rpartition(".")[2] for name in model.state_dict().keys() - base.state_dict().keys()}
    assert more == {"gate", "sharpness"}


@pytest.mark.parametrize(("depth", "layers"), [(1, [0]), (2, [1]), (4, [2]), (8, [5]), (12, [8])])
def test_the_memory_layer(depth: int, layers: list[int]) -> None:
    """The paper's 9th of 12."""
    state = Memorizing(**NANO | {"depth": depth}, **MEMORY).init_state(1)
    assert [i for i, bank in enumerate(state) if bank] == layers


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"memory_layers": []}, r"memory_layers must be some of 0 \.\. 1, not \[\]"),
        ({"memory_layers": [2]}, r"memory_layers must be some of 0 \.\. 1, not \[2\]"),
        ({"memory_layers": [-1]}, r"memory_layers must be some of 0 \.\. 1"),
        ({"capacity": 12}, "capacity 12 is not a multiple of the block"),
        ({"index": "hnsw"}, "index hnsw needs backend faiss"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MODEL(**options)


def test_memory_is_constant_but_gate_and_scale_learn() -> None:
    """At birth; and a carried bank that asks for a gradient gets none."""
    torch.manual_seed(0)
    model = MODEL().train()
    _, state = model(text(2))
    assert not any(leaf.requires_grad for leaf in leaves(state))
    bank = state[1]
    asking = bank._replace(
        keys=tuple(block.clone().requires_grad_() for block in bank.keys),
        values=tuple(block.clone().requires_grad_() for block in bank.values),
    )
    model(text(2, seed=1), (state[0], asking))[0].square().sum().backward()
    assert all(block.grad is None for block in (*asking.keys, *asking.values))
    (memory,) = model.memories()
    assert torch.equal(memory.gate.sigmoid(), torch.full((4,), 0.5))
    for weight in (memory.gate, memory.sharpness):
        assert isinstance(weight.grad, Tensor)
        assert weight.grad.abs().min() > 1e-8


def test_few_queries_at_a_time_say_and_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for at_once in (2**26, 2 * 4 * 4 * 4 * 3):
        monkeypatch.setattr(memorizing_attention, "MAX_GATHERED", at_once)
        model = perturbed(MODEL).train()
        logits, state = model(text(3))
        logits.square().sum().backward()
        results.append([logits, *(w.grad for w in model.parameters()), *leaves(detach(state))[:-3]])
    assert_close(results[1], results[0])


def test_dropout_in_both_softmaxes() -> None:
    """In training alone."""
    model = perturbed(partial(MODEL, dropout=0.5))
    (memory,) = model.memories()
    memory.dropout.p = 0.5  # the law's model has it off
    _, state = model(text(2))
    x = torch.randn(2, 8, 16, dtype=torch.float64)
    with torch.no_grad():
        for shut in (-1e9, 1e9):
            memory.gate.fill_(shut)
            assert not torch.equal(memory.train()(x, state[1])[0], memory(x, state[1])[0])
            assert torch.equal(memory.eval()(x, state[1])[0], memory(x, state[1])[0])


@torch.no_grad()
def test_what_is_reported() -> None:
    model = perturbed(partial(MODEL, memory_layers=[0, 1])).eval()
    for memory, value in zip(model.memories(), (-2.0, 3.0), strict=True):
        memory.gate.fill_(value)
    low, high = (1 / (1 + torch.tensor(-value).exp().item()) for value in (-2.0, 3.0))
    expected = {"gate": (low + high) / 2, "gate_min": low, "gate_max": high}
    assert model.diagnostics(model(text(4))[1]) == pytest.approx(expected)


@torch.no_grad()
def test_recall_is_reported_where_it_is_not_certain() -> None:
    model = perturbed(partial(MODEL, capacity=512, block=8, backend="faiss", index="ivf")).eval()
    _, state = model(text(40))
    assert 0.5 < model.costly_diagnostics(state)["recall"] <= 1
    assert "recall" not in model.costly_diagnostics(model.init_state(2))


@torch.no_grad()
def test_bytes_of_state_and_how_many_tokens_there_are() -> None:
    model = MODEL()
    per_row = 4 * 16 * (4 + 4) * 4 + 3 * 8  # keys and values, three counts
    _, state = model(text(5, rows=3))
    assert nbytes(model.init_state(3)) == nbytes(state) == 3 * per_row
    assert [leaf.tolist() for name, leaf in named_leaves(state) if name.endswith("length")] == [[40, 40, 40]]


@pytest.mark.parametrize(
    ("size", "tolerance"), [("micro", 0.03), ("tiny", 0.01), ("small", 0.01), ("base", 0.01)]
)
def test_the_budget(size: str, tolerance: float) -> None:
    cfg = compose(["model=memorizing", f"size={size}"])
    keys = budget.solve_width(cfg)
    for name in ("free", "_target_"):
        keys.pop(name, None)
    with torch.device("meta"):
        count = Memorizing(**keys).count_parameters()
    assert abs(count / cfg.size.budget - 1) <= tolerance
