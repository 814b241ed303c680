"""Unlimiformer as a whole: a transformer's weights, what is carried, how far it reaches, and the laws."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws import law_cases
from zoo.models.transformer import Transformer
from zoo.models.unlimiformer import Unlimiformer
from zoo.module import IGNORE, Batch
from zoo.state import leaves, named_leaves, nbytes

NANO: dict[str, Any] = {
    "vocab_size": 23,
    "segment_len": 8,
    "depth": 2,
    "width": 16,
    "heads": 4,
    "mlp_width": 20,
}
MEMORY: dict[str, Any] = {"capacity": 16, "neighbours": 4, "block": 8}
GPT2: dict[str, Any] = {"position": "learned", "norm": "layer", "activation": "gelu_tanh", "bias": True}
MODEL = partial(Unlimiformer, **NANO, **MEMORY)
VARIANTS: dict[str, Callable[[], Unlimiformer]] = {
    "retrieval_training": partial(MODEL, retrieval_training=True, dropout=0.1),
    "retrieval_training_gpt2": partial(MODEL, **GPT2, retrieval_training=True, layer_begin=0),
    "gpt2": partial(MODEL, **GPT2, dropout=0.1, tied=False),
    "alibi": partial(MODEL, position="alibi", kv_heads=2, activation="relu"),
    "no_positions": partial(MODEL, position="none", kv_heads=1, bias=True, layer_begin=0),
    "short_bank": partial(Unlimiformer, **NANO, capacity=3, neighbours=9, layer_begin=0),
    "odd_bank": partial(Unlimiformer, **NANO, capacity=20, neighbours=3, block=5),
    "bf16_bank": partial(MODEL, memory_dtype="bfloat16"),
    "before": partial(MODEL, retrieved_positions="before"),
    "before_alibi": partial(MODEL, position="alibi", retrieved_positions="before", retrieval_training=True),
    "start": partial(MODEL, retrieved_positions="start", dropout=0.1),
    "start_retrieval_training": partial(MODEL, retrieved_positions="start", retrieval_training=True),
    "spread": partial(MODEL, retrieved_positions="spread", rope_base=20.0),
    "spread_odd_bank": partial(  # of 3 neighbours, two would have equal scores: see the page's pitfalls
        Unlimiformer, **NANO, capacity=20, neighbours=4, block=5, retrieved_positions="spread"
    ),
    "spread_retrieval_training": partial(
        MODEL, retrieved_positions="spread", retrieval_training=True, kv_heads=2, bias=True
    ),
    "faiss": partial(MODEL, backend="faiss"),
    "faiss_retrieval_training": partial(MODEL, backend="faiss", retrieval_training=True),
}


@pytest.mark.parametrize("check", law_cases(VARIANTS))
def test_law(check: Callable[[], None]) -> None:
    check()


def pair(**options: Any) -> tuple[Transformer, Unlimiformer]:
    """A transformer and an Unlimiformer with its weights."""
    torch.manual_seed(0)
    base, model = Transformer(**NANO, **options).double(), MODEL(**options).double()
    for weight in base.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.load_state_dict(base.state_dict())
    return base.eval(), model.eval()


def text(segments: int, rows: int = 2, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(23, (rows, segments * 8), generator=random)


@pytest.mark.parametrize("options", [{}, GPT2, {"position": "alibi", "kv_heads": 2, "bias": True}], ids=repr)
def test_a_transformer_in_one_segment_and_in_training(options: dict[str, Any]) -> None:
    base, model = pair(**options)
    torch.testing.assert_close(model(text(1))[0], base(text(1))[0])
    assert not torch.allclose(model(text(2))[0][:, 8:], base(text(2))[0][:, 8:])
    model.train()
    logits, state = model(text(3)[:, :-3])
    assert torch.equal(logits, base(text(3)[:, :-3])[0])
    assert all(torch.equal(*pair) for pair in zip(leaves(state), leaves(model.init_state(2)), strict=True))


def test_there_are_no_new_weights() -> None:
    base, model = pair()
    assert model.state_dict().keys() == base.state_dict().keys()
    assert model.count_parameters() == base.count_parameters()


def test_the_upper_half_by_default() -> None:
    def carries(depth: int, **options: Any) -> list[bool]:
        model = Unlimiformer(**{**NANO, "depth": depth}, **MEMORY, **options)
        return [bool(state) for state in model.init_state(1)]

    assert carries(4) == [False, False, True, True]
    assert carries(3) == [False, True, True]
    assert carries(1) == [True]
    assert carries(3, layer_begin=2) == [False, False, True]
    assert carries(2, layer_begin=0) == [True, True]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layer_begin": 2}, r"layer_begin must be one of the layers 0 .. 1, not 2"),
        ({"layer_begin": -1}, r"layer_begin must be one of the layers 0 .. 1, not -1"),
        ({"capacity": 12}, "capacity 12 is not a multiple of the block"),
        ({"neighbours": 0}, "neighbours must be at least 1, not 0"),
        ({"shifted": 4}, "shifted: expected none beside retrieval, found 4"),
        ({"retrieved_positions": "spread", "layer_begin": 0}, "expected .* with layer_begin=0, found spread"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Unlimiformer(**NANO, **{**MEMORY, **options})


def test_it_reaches_back_as_far_as_the_bank() -> None:
    """One layer with a bank, whose inputs know nothing of it: what the bank has dropped is forgotten."""
    torch.manual_seed(0)
    model = Unlimiformer(**NANO, capacity=24, neighbours=24, layer_begin=1).double().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    tokens = text(6)
    for segment in range(5):  # the last one reads segments 2 .. 4
        changed = tokens.clone()
        changed[:, segment * 8 : segment * 8 + 8] = text(1, seed=9)
        same = torch.allclose(model(tokens)[0][:, -8:], model(changed)[0][:, -8:], rtol=0, atol=1e-12)
        assert same == (segment < 2)


def batch(fresh: bool) -> Batch:
    tokens = text(2)
    return Batch(tokens, tokens.roll(-1, 1).masked_fill(tokens == 0, IGNORE), torch.full((2,), fresh))


def test_what_a_training_step_carries() -> None:
    model = MODEL().train()
    assert model.compute_loss(batch(True), None)[1] is None
    model = MODEL(retrieval_training=True).train()
    state = model.compute_loss(batch(True), None)[1]
    assert not any(leaf.requires_grad for leaf in leaves(state))
    assert [int(leaf[0]) for name, leaf in named_leaves(state) if name.endswith("length")] == [16]
    assert [
        int(leaf[0])
        for name, leaf in named_leaves(model.compute_loss(batch(False), state)[1])
        if "length" in name
    ] == [32]
    assert [
        int(leaf[0])
        for name, leaf in named_leaves(model.eval().compute_loss(batch(True), None)[1])
        if "length" in name
    ]


def test_a_bank_in_bf16_takes_half() -> None:
    banks = [MODEL(memory_dtype=dtype).init_state(2)[1] for dtype in (None, "bfloat16")]
    assert [block.dtype for bank in banks for block in bank.keys[:1]] == [torch.float32, torch.bfloat16]
    assert sum(map(nbytes, banks[0].keys)) == 2 * sum(map(nbytes, banks[1].keys))


def test_retrieval_training_learns_more() -> None:
    """The loss of the second segment alone has another gradient than the transformer's."""
    grads = []
    for options in ({}, {"retrieval_training": True}):
        torch.manual_seed(1)
        model = MODEL(**options).train()
        logits = model(text(2))[0][:, 8:]
        grads.append(torch.autograd.grad(logits.logsumexp(-1).sum(), model.embed.weight)[0])
    assert not torch.allclose(*grads)


def test_what_faiss_finds_is_measured() -> None:
    model = MODEL(backend="faiss").eval()
    assert model.costly_diagnostics(model.compute_loss(batch(True), None)[1]) == {"recall": 1.0}
    assert model.costly_diagnostics(None) == {}
    assert MODEL().costly_diagnostics(MODEL().init_state(2)) == {}
