"""Unlimiformer's attention against its definition, and what its bank holds."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.memory.retrieval.loops import attend_memory_loop
from tests.memory.watch import Watch
from zoo.memory.attention.core import Attention
from zoo.memory.retrieval import unlimiformer_attention
from zoo.memory.retrieval.bank import Bank, KNNMemory
from zoo.memory.retrieval.unlimiformer_attention import RetrievedPositions, UnlimiformerAttention
from zoo.state import leaves, replace_rows, take_rows, tree_map

WIDTH, HEADS, SEGMENT_LEN = 8, 4, 5
SETTINGS = get_args(RetrievedPositions)
TEMPERATURE = {"kind": "rope", "scaling": "yarn", "factor": 1.0, "attention_factor": 1.5, "trained": 64}
"""yarn's temperature on plain frequencies."""


def make_mixer(
    capacity: int = 12, block: int = 4, neighbours: int = 3, **options: Any
) -> UnlimiformerAttention:
    torch.manual_seed(0)
    mixer = UnlimiformerAttention(
        WIDTH, HEADS, KNNMemory(capacity, 1, WIDTH, 0, neighbours, block), segment_len=SEGMENT_LEN, **options
    )
    for weight in mixer.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    return mixer.double().eval()


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def filled_bank(mixer: UnlimiformerAttention, rows: int, tokens: int) -> Bank:
    bank: Bank = mixer.init_state(rows)
    return mixer.knn.add(bank, randn(rows, 1, tokens, WIDTH)) if tokens else bank


@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 12, 17, 40])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "kv_heads": 2},
        {"kv_heads": 1, "position": "alibi", "neighbours": 1},
        {"neighbours": 50, "position": "none", "bias": True},
        {"capacity": 5, "block": 5, "neighbours": 2},
        *(
            {"retrieved_positions": setting} | options
            for setting in SETTINGS
            for options in (
                {"bias": True, "kv_heads": 2, "rope_base": 9.0},
                {"position": "alibi"},
                {"position": TEMPERATURE, "bias": True, "head_dim": 6, "rotated": 4},
            )
        ),
    ],
    ids=repr,
)
def test_the_sums_equal_recomputed_keys_and_values(
    options: dict[str, Any], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all gradients, the bank's among them; gathered at once or query by query."""
    mixer = make_mixer(**options)
    x, bank = randn(2, 4, WIDTH), filled_bank(mixer, 2, tokens)
    bank = mixer.knn.add(replace_rows(bank, mixer.init_state(2), torch.tensor([False, True])), x[:, None, :1])
    cotangent = randn(2, HEADS, 4, mixer.head_dim)
    results = []
    forms = [
        (attend_memory_loop, 1),
        *((UnlimiformerAttention.attend_memory, size) for size in (2**26, 1, 100)),
    ]
    for form, max_gathered in forms:
        monkeypatch.setattr(unlimiformer_attention, "MAX_GATHERED", max_gathered)
        leaf_bank = bank._replace(keys=tree_map(lambda leaf: leaf.clone().requires_grad_(), bank.keys))
        q, k, v = mixer.project(x)
        y = form(mixer, q, mixer.local_scores(q, k), v, leaf_bank)
        inputs = [mixer.qkv.weight, *leaf_bank.keys] + ([] if mixer.qkv.bias is None else [mixer.qkv.bias])
        grads = torch.autograd.grad((y * cotangent).sum(), inputs, allow_unused=True)
        results.append(
            [y, *(torch.zeros_like(w) if g is None else g for w, g in zip(inputs, grads, strict=True))]
        )
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_an_empty_bank_changes_nothing(position: Any, setting: RetrievedPositions) -> None:
    mixer = make_mixer(position=position, kv_heads=2, bias=True, retrieved_positions=setting)
    x = randn(2, 5, WIDTH)
    torch.testing.assert_close(mixer(x, mixer.init_state(2))[0], Attention.forward(mixer, x, ())[0])


def test_in_training_the_bank_is_neither_read_nor_written() -> None:
    mixer = make_mixer().train()
    x, bank = randn(2, 5, WIDTH), filled_bank(mixer, 2, 9)
    y, after = mixer(x, bank)
    assert after is bank
    assert torch.equal(y, Attention.forward(mixer, x, ())[0])


def test_the_bank_stores_the_inputs_themselves() -> None:
    mixer = make_mixer()
    x = randn(2, 7, WIDTH)
    bank = mixer(x, mixer.init_state(2))[1]
    assert [block.shape for block in bank.keys] == [(2, 1, 4, WIDTH)] * 3
    assert bank.values == ()
    assert torch.equal(torch.cat(bank.keys, dim=2)[:, 0, :7], x)


def test_the_oldest_inputs_are_overwritten() -> None:
    mixer = make_mixer()
    x = randn(2, 4 * 5, WIDTH)
    bank = mixer.init_state(2)
    for piece in x.split(5, dim=1):
        bank = mixer(piece, bank)[1]
    slots = torch.cat(bank.keys, dim=2)[:, 0]
    for token in range(8, 20):
        assert torch.equal(slots[:, token % 12], x[:, token])


@pytest.mark.parametrize("setting", ["none", "start", "before"])
def test_stored_inputs_have_no_positions(setting: RetrievedPositions) -> None:
    """The order of slots and the length of the text before them change nothing."""
    mixer = make_mixer(neighbours=4, retrieved_positions=setting)
    x, bank = randn(2, 5, WIDTH), filled_bank(mixer, 2, 12)
    order = torch.randperm(12)
    permuted_keys = torch.cat(bank.keys, dim=2)[:, :, order].split(4, dim=2)
    permuted = bank._replace(keys=permuted_keys, length=bank.length + 7, stamp=bank.stamp + 1)
    torch.testing.assert_close(mixer(x, permuted)[0], mixer(x, bank)[0])


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, {0: -1}),
        (4, {0: -4, 1: -3, 2: -2, 3: -1}),
        (5, {0: -5, 1: -4, 2: -3, 3: -2, 4: -1}),
        (8, {0: -5, 1: -5, 2: -4, 3: -4, 4: -3, 5: -2, 6: -2, 7: -1}),
        (10, {slot: slot // 2 - 5 for slot in range(10)}),
        (12, {slot: slot * 5 // 12 - 5 for slot in range(12)}),
        (13, {(slot + 1) % 12: slot * 5 // 12 - 5 for slot in range(12)}),
        (12 * 10**9 + 11, {(slot + 11) % 12: slot * 5 // 12 - 5 for slot in range(12)}),
    ],
    ids=repr,
)
def test_stored_inputs_spread_over_a_segment_before(length: int, expected: dict[int, int]) -> None:
    """The newest stands at -1; a text shorter than a segment has its positions, a longer one is scaled."""
    mixer = make_mixer(retrieved_positions="spread")
    bank = mixer.init_state(2)
    bank = bank._replace(length=torch.tensor([length, 3]))
    slots = torch.tensor(list(expected)).expand(2, HEADS, 4, -1)
    positions = mixer.key_positions(torch.arange(4), slots, bank)
    assert (positions[0] == torch.tensor(list(expected.values()))).all()
    short = mixer.key_positions(torch.arange(4), torch.arange(3).expand(2, HEADS, 4, 3), bank)[1]
    assert (short == torch.tensor([-3, -2, -1])).all()


def test_where_retrieved_keys_stand_counts_only_for_encodings_that_see_distances() -> None:
    x, outputs = randn(2, 5, WIDTH), {}
    for position in ("rope", "alibi", "learned", "none"):
        for setting in SETTINGS:
            mixer = make_mixer(position=position, retrieved_positions=setting)
            outputs[position, setting] = mixer(x, filled_bank(mixer, 2, 12))[0]
    for position, setting in outputs:
        for other in set(SETTINGS) - {setting}:
            differs = not torch.allclose(outputs[position, setting], outputs[position, other])
            assert differs == (position in ("rope", "alibi"))


@pytest.mark.parametrize("setting", ["before", "spread"])
def test_one_segment_needs_its_length(setting: RetrievedPositions) -> None:
    with pytest.raises(ValueError, match=f"retrieved_positions {setting} needs segment_len"):
        UnlimiformerAttention(WIDTH, HEADS, KNNMemory(12, 1, WIDTH), retrieved_positions=setting)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_query_of_a_search_has_no_position(setting: RetrievedPositions) -> None:
    """An input finds the same slots with the same scores at any position of a segment."""
    mixer = make_mixer(retrieved_positions=setting)
    ids = []
    search = mixer.knn.search
    mixer.knn.search = lambda q, bank: ids.append((q, search(q, bank))) or ids[-1][1]  # type: ignore[method-assign]
    mixer(randn(1, 1, WIDTH).expand(1, 5, WIDTH), filled_bank(mixer, 1, 12))
    for part in (part.unflatten(2, (HEADS, 5)) for part in ids[0]):
        torch.testing.assert_close(part, part[:, :, :, :1].expand_as(part))


@pytest.mark.parametrize("setting", SETTINGS)
def test_segments_of_a_row_are_rows_of_one_batch(setting: RetrievedPositions) -> None:
    mixer = make_mixer(retrieved_positions=setting)
    x, bank = randn(2, 3 * 5, WIDTH), filled_bank(mixer, 2, 3)
    pieces, end = x.view(6, 5, WIDTH), bank
    outputs = []
    for piece in x.split(5, dim=1):
        y, end = mixer(piece, end)
        outputs.append(y)
    y, after = mixer(pieces, bank)
    torch.testing.assert_close(y.view(2, 15, WIDTH), torch.cat(outputs, dim=1))
    torch.testing.assert_close(after.keys, end.keys)
    assert torch.equal(after.length, end.length)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("retrieval_training", [False, True])
def test_the_gradient_reaches_the_bank_with_retrieval_training_alone(
    retrieval_training: bool, training: bool
) -> None:
    mixer = make_mixer(retrieval_training=retrieval_training).train(training)
    early, late = randn(2, 5, WIDTH).requires_grad_(), randn(2, 5, WIDTH).requires_grad_()
    bank = mixer(early, mixer.init_state(2))[1]
    assert bank.keys[0].requires_grad == retrieval_training
    y, _ = mixer(late, bank)
    to_early, to_late = torch.autograd.grad(y.sum(), [early, late], allow_unused=True)
    assert to_late.any()
    assert (to_early is not None and bool(to_early.any())) == retrieval_training


def test_dropout_has_the_same_mask_in_the_backward_pass() -> None:
    mixer = make_mixer(retrieval_training=True, dropout=0.4, bias=True).train()
    x, bank = randn(2, 5, WIDTH), filled_bank(mixer, 2, 12)
    block = bank.keys[0].clone().requires_grad_()

    def output(first: Tensor) -> Tensor:
        torch.manual_seed(5)
        return mixer(x, bank._replace(keys=(first, *bank.keys[1:])))[0]

    assert not torch.equal(output(block), mixer.eval()(x, bank)[0])
    mixer.train()
    assert torch.autograd.gradcheck(output, (block,), fast_mode=True)


def bytes_of_a_segment(capacity: int) -> int:
    """Storage that a segment allocates, without its search."""
    mixer = make_mixer(capacity=capacity, neighbours=3)
    x, bank = randn(2, 16, WIDTH), filled_bank(mixer, 2, 9)
    ids = torch.randint(-1, capacity, (2, 1, HEADS * 16, 3), generator=torch.Generator().manual_seed(0))
    mixer.knn.search = lambda _queries, _bank: ids  # type: ignore[method-assign]
    with Watch() as watch, torch.no_grad():
        mixer(x, bank)
    return watch.nbytes


def test_a_segment_costs_the_same_with_any_bank() -> None:
    """The bank isn't copied, only the retrieved inputs."""
    assert bytes_of_a_segment(4096) < 1.1 * bytes_of_a_segment(128)


def test_faiss_gives_the_same_output() -> None:
    mixer = make_mixer(neighbours=4)
    x, bank = randn(3, 5, WIDTH), filled_bank(mixer, 3, 9)
    expected = mixer(x, bank)[0]
    mixer.knn = KNNMemory(12, 1, WIDTH, 0, 4, 4, backend="faiss")
    torch.testing.assert_close(mixer(x, bank)[0], expected)
    later = mixer.knn.add(bank, randn(3, 1, 6, WIDTH))
    torch.testing.assert_close(mixer(x, bank)[0], expected)  # of this bank, not of the later one
    alone = mixer(x[2:], take_rows(later, torch.tensor([2])))[0]
    torch.testing.assert_close(alone, mixer(x, later)[0][2:])
    fresh = replace_rows(later, mixer.init_state(3), torch.tensor([True, False, False]))
    torch.testing.assert_close(mixer(x, fresh)[0][:1], mixer(x, mixer.init_state(3))[0][:1])
    assert len(leaves(later)) == 6
