"""The Focused Transformer: what training and evaluation see, schedules, fresh rows, laws in more shapes.

Whole models are held to slow loops in tests/golden/test_focused.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.laws import law_cases
from zoo.errors import UserError
from zoo.law_tools import perturbed, random_text
from zoo.memory.attention.positions import Rope
from zoo.memory.attention.rotary import rotary
from zoo.memory.retrieval.bank import KNNMemory
from zoo.memory.retrieval.crossbatch import Contexts, Segments, context_rows, crossbatch_loop
from zoo.memory.retrieval.focused_attention import FocusedAttention
from zoo.models.focused import Focused, parse_schedule
from zoo.models.published import focused as published
from zoo.state import leaves, replace_rows, take_rows
from zoo.train.runs import build
from zoo.train.runs.config import compose

NANO: dict[str, Any] = {
    "vocab_size": 23,
    "segment_len": 8,
    "depth": 2,
    "width": 16,
    "heads": 4,
    "mlp_width": 20,
}
MADE = partial(Focused, **NANO, capacity=16, block=8, neighbours=24)
BUDGETS = {"micro": (200_000, 0.03), "tiny": (1_500_000, 0.01), "small": (25_000_000, 0.01)}
BUDGETS |= {"base": (125_000_000, 0.01)}

VARIANTS: dict[str, Callable[[], Focused]] = {
    "paper": partial(MADE, normalised=True, memory_position="none"),
    "few_neighbours": partial(MADE, neighbours=3),
    "own_past_alone": partial(MADE, contexts=1),
    "all_rows": partial(MADE, contexts=3, dropout=0.1),
    "all_layers": partial(MADE, memory_layers=[0, 1], tied=False),
    "one_block": partial(Focused, **NANO, capacity=11, neighbours=5),
    "half_a_memory": partial(MADE, neighbours=4, memory_dtype="bfloat16"),
}
FAISS = {"faiss": partial(MADE, neighbours=5, backend="faiss")}
ON_FAISS = ("purity", "streaming", "fresh_rows_forget", "saved_and_loaded", "parallel_equals_fold")


@pytest.mark.parametrize("check", [*law_cases(VARIANTS), *law_cases(FAISS, only=ON_FAISS)])
def test_law(check: Callable[[], None]) -> None:
    check()


SIZES = ["nano", "micro", "tiny", "small", pytest.param("base", marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES)
def test_the_memory_layer_stands_at_three_quarters_and_the_budget_is_met(size: str) -> None:
    with torch.device("meta"):
        model: Any = build.model(compose(["model=focused", f"size={size}"]))
    layers = [i for i, block in enumerate(model.stack) if isinstance(block.mixer, FocusedAttention)]
    assert layers == {"nano": [1], "micro": [2], "tiny": [2], "small": [5], "base": [11]}[size]
    if size in BUDGETS:
        budget, share = BUDGETS[size]
        assert abs(model.count_parameters() - budget) < share * budget


# -- one layer, against what it should see


def layer(capacity: int, neighbours: int, **more: Any) -> FocusedAttention:
    torch.manual_seed(0)
    return FocusedAttention(8, 2, 4, KNNMemory(capacity, 2, 4, 4, neighbours, 4), {0.0: 2}, **more).double()


def heads(mixer: FocusedAttention, x: Tensor) -> list[Tensor]:
    """Queries and keys with positions in the segment, keys at its start and values, for one segment."""
    q, k, v = mixer.project(x)
    if mixer.sharpness is not None:
        q, k = (part / part.norm(dim=-1, keepdim=True) for part in (q, k))
        q = q * mixer.sharpness.exp()[:, None, None] * 2  # sqrt(K)
    if not isinstance(mixer.positions, Rope):
        return [q, k, k, v]
    positions, rotated = torch.arange(x.shape[1]), mixer.positions.rotated
    scaling = mixer.positions.frequencies
    a = torch.ones(mixer.head_dim)
    a[:rotated] = 1.0 if scaling is None else scaling.factor

    def turned(x: Tensor) -> Tensor:
        return a * torch.cat([rotary(x[..., :rotated], positions, 10000.0), x[..., rotated:]], dim=-1)

    return [turned(q), turned(k), a * k, v]


TEMPERATURE = {"kind": "rope", "scaling": "yarn", "factor": 1.0, "attention_factor": 1.5, "trained": 64}
FORMS: list[dict[str, Any]] = [
    {},
    {"normalised": True},
    {"position": "none"},
    {"position": {**TEMPERATURE, "rotated": 2}},  # plain frequencies with yarn's temperature
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_training_sees_the_previous_segments_of_the_next_rows(form: dict[str, Any]) -> None:
    mixer = layer(8, 8, **form).train()
    x = torch.randn(3, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state, outputs = mixer.init_state(3), []
    past, filled = [state.previous_keys, state.previous_values], torch.zeros(3, dtype=torch.long)
    for piece in x.split(4, dim=1):
        y, state = mixer(piece, state)
        q, local, k, v = heads(mixer, piece)
        expected = crossbatch_loop(
            Segments(q, local, v), Contexts(*past, filled), context_rows(3, 2, x.device)
        )
        assert_close(y, mixer.out_proj(expected.transpose(1, 2).flatten(2)))
        past, filled = [k, v], torch.full((3,), 4)
        outputs.append(y)
    at_once, after = mixer(x.reshape(9, 4, 8), mixer.init_state(3))
    assert_close(at_once.reshape(3, 12, 8), torch.cat(outputs, dim=1))
    assert_close(leaves(after), leaves(state))
    assert all(not leaf.any() for leaf in leaves(after.bank))  # training leaves it empty


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("capacity", "neighbours"), [(4, 4), (8, 3), (8, 12), (16, 16), (16, 5)])
def test_evaluation_sees_the_nearest_of_its_own_past(
    capacity: int, neighbours: int, form: dict[str, Any]
) -> None:
    """Of the last segment and the `capacity` tokens before it, query by query and head by head."""
    mixer = layer(capacity, neighbours, **form).eval()
    x = torch.randn(2, 22, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = mixer.init_state(2)
    past: list[list[Tensor]] = [[], []]
    for piece in x.split(4, dim=1):
        y, state = mixer(piece, state)
        q, local, k, v = heads(mixer, piece)
        expected = torch.empty_like(q)
        for row in range(2):
            for head in range(2):
                for t in range(piece.shape[1]):
                    keys, values = local[row, head, : t + 1], v[row, head, : t + 1]
                    if past[0]:
                        old_k, old_v = (torch.cat(part, dim=2)[row, head, -capacity - 4 :] for part in past)
                        best = (old_k @ q[row, head, t]).argsort(descending=True)[:neighbours]
                        keys, values = torch.cat([keys, old_k[best]]), torch.cat([values, old_v[best]])
                    weights = (keys @ q[row, head, t] / 2).softmax(0)
                    expected[row, head, t] = weights @ values
        assert_close(y, mixer.out_proj(expected.transpose(1, 2).flatten(2)))
        past[0].append(k)
        past[1].append(v)


def test_rows_that_stopped_at_different_places_go_on_together() -> None:
    """A fresh row, one after a short segment and one after a whole one."""
    model = perturbed(partial(MADE, neighbours=5)).eval()
    text, after = random_text(model)[:, :24], random_text(model, segments=2, seed=1)
    with torch.no_grad():
        states = [model.init_state(3), model(text[:, :13])[1], model(text)[1]]
        mixed = states[0]
        for row, state in enumerate(states):
            mixed = replace_rows(mixed, state, torch.arange(3) == row)
        logits = model(after, mixed)[0]
        for row, state in enumerate(states):
            alone = model(after[row : row + 1], take_rows(state, torch.tensor([row])))[0]
            assert_close(logits[row : row + 1], alone)


def test_only_the_blocks_that_are_written_are_new() -> None:
    """A fresh row among others has no segment to write, and touches no block."""
    model = perturbed(partial(Focused, **NANO, capacity=64, block=8, neighbours=5)).eval()
    with torch.no_grad():
        state = model(random_text(model))[1]
        model(random_text(model), state)
        _, after = model.segment(random_text(model)[:, :8], state)
        assert sum(old is new for old, new in zip(state[1].bank.keys, after[1].bank.keys, strict=True)) == 7
        mixed = replace_rows(state, model.init_state(3), torch.tensor([True, False, False]))
        _, after = model.segment(random_text(model)[:, :8], mixed)
    assert sum(old is new for old, new in zip(mixed[1].bank.values, after[1].bank.values, strict=True)) == 7
    assert after[1].bank.length.tolist() == [0, 32, 32]
    assert torch.equal(after[1].bank.stamp == mixed[1].bank.stamp, torch.tensor([True, False, False]))


# -- training among rows


def test_a_fresh_row_has_no_past_and_shows_none() -> None:
    """What its last document said changes nothing in any row, once the row is fresh."""
    model = perturbed(MADE).train()
    text, fresh = random_text(model), torch.tensor([False, True, False])
    outputs = []
    for before in (text, torch.where(fresh[:, None], (text + 1) % 23, text)):
        state = model(before[:, :8])[1]
        state = replace_rows(state, model.init_state(3), fresh)
        outputs.append(model(text, state)[0])
    assert_close(outputs[0], outputs[1], rtol=0, atol=0)


@pytest.mark.parametrize(("contexts", "mixes"), [(1, False), (2, True)])
def test_negatives_are_the_next_rows_in_training_alone(contexts: int, mixes: bool) -> None:
    model = perturbed(partial(MADE, contexts=contexts))
    assert model.mixes_rows_in_training == mixes
    text = random_text(model)[:, :16]
    for training in (True, False):
        model.train(training)
        for neighbour, expected in ((1, mixes and training), (2, False)):
            changed = text.clone()
            changed[neighbour, :8] = (changed[neighbour, :8] + 1) % 23
            differs = (model(text)[0][0] - model(changed)[0][0]).abs().amax(-1) > 1e-9
            assert not differs[:8].any()
            assert bool(differs[8:].any()) == expected


def test_d_grows_by_its_schedule() -> None:
    model = MADE(contexts={0: 1, 0.5: 2, 0.9: 3})
    assert model.mixes_rows_in_training
    contexts = []
    for step in (0, 49, 50, 89, 90, 99):
        model.set_progress(step, 100)
        contexts.append(model.diagnostics(model.init_state(1))["contexts"])
    assert contexts == [1, 1, 2, 2, 3, 3]
    model = perturbed(partial(MADE, contexts={0: 1, 0.5: 2})).train()
    text, outputs = random_text(model)[:, :16], []
    for step in (0, 60):
        model.set_progress(step, 100)
        outputs.append(model(text)[0])
    fixed = [perturbed(partial(MADE, contexts=d)).train()(text)[0] for d in (1, 2)]
    assert_close(outputs, fixed)


def test_more_contexts_than_rows_is_one_clear_line() -> None:
    """Also when the schedule would come to it much later; evaluation doesn't ask."""
    model = MADE(contexts={0: 1, 0.9: 4})
    text = random_text(model)
    with pytest.raises(UserError, match="contexts: expected at most the 3 rows of a batch, found 4"):
        model.train()(text)
    model.eval()(text)


@pytest.mark.parametrize(
    "contexts", [0, -1, True, None, [2], {}, {0.5: 2}, {0: 2, 1.0: 3}, {0: 2.0}, {"a": 2}]
)
def test_a_schedule_that_is_none(contexts: Any) -> None:
    with pytest.raises(ValueError, match="contexts must be a number from 1 on"):
        parse_schedule(contexts)


@pytest.mark.parametrize("layers", [[], [2], [-1]])
def test_memory_layers_are_layers(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"memory_layers must be some of 0 \.\. 1"):
        MADE(memory_layers=layers)


PUBLISHED: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
PUBLISHED |= {"intermediate_size": 12, "vocab_size": 9, "max_position_embeddings": 8, "mem_layers": [1]}


def test_a_published_model_reads_all_its_memory_by_default() -> None:
    model = Focused(**published.shape(PUBLISHED))
    (memory,) = model.memories()
    assert memory.knn.neighbours == memory.knn.capacity + memory.segment_len == 17 * 8
    few = published.shape(PUBLISHED | {"neighbours": 3, "capacity": 20})
    assert (few["neighbours"], few["capacity"]) == (3, 20)


def test_a_published_memory_is_bf16_unless_it_says_otherwise() -> None:
    for keys, expected in (({}, "bfloat16"), ({"mem_dtype": "bfloat16"}, "bfloat16")):
        assert published.shape(PUBLISHED | keys)["memory_dtype"] == expected
    assert published.shape(PUBLISHED | {"mem_dtype": "float32"})["memory_dtype"] is None
    model = Focused(**published.shape(PUBLISHED))
    assert model.init_state(1)[1].bank.keys[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mem_layers": None}, "expected mem_layers, a list of layers from 0 on, found None"),
        ({"mem_layers": []}, r"memory_layers must be some of 0 \.\. 1"),
        ({"mem_layers": [2]}, r"memory_layers must be some of 0 \.\. 1"),
        ({"mem_dtype": "nonsense"}, "expected mem_dtype, bfloat16, float32 or float64, found 'nonsense'"),
        ({"mem_dtype": "float16"}, "expected mem_dtype, bfloat16, float32 or float64, found 'float16'"),
        ({"mem_dtype": None}, "expected mem_dtype, bfloat16, float32 or float64, found None"),
        ({"mem_dtype": "float64"}, "expected mem_dtype bfloat16, or the weights' float32, found float64"),
        ({"rope_theta": -1}, "expected rope_theta, a number above 0, found -1"),
        ({"num_key_value_heads": 1}, "expected num_key_value_heads 2, the only one supported, found 1"),
        ({"tie_word_embeddings": True}, "expected tie_word_embeddings False"),
        ({"cross_batch_range": -1}, "expected cross_batch_range, a whole number from 0 on"),
    ],
)
def test_what_a_published_config_can_have_wrong(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        published.load({"model.norm.weight": torch.ones(8)}, PUBLISHED | change)


def test_contexts_come_from_the_command_line() -> None:
    model: Any = build.model(compose(["model=focused", "size=nano", "model.contexts={0:2,0.9:4}"]))
    model.set_progress(95, 100)
    assert model.diagnostics(model.init_state(1)) == {"contexts": 4.0}
    with pytest.raises(UserError, match="contexts must be a number from 1 on"):
        build.model(compose(["model=focused", "size=nano", "model.contexts={0.5:2}"]))
