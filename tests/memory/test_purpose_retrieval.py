"""What a bank is for: a token is answered as long as it is held, with the score of the model's equations.

Held without training, on the attention layers of configs/model at size=micro.  Of a text of blank tokens one,
the needle, has a key and a value, and one later token asks for it; each model's function gives the weight of
its value in the answer.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws import untyped
from tests.memory.configured import catches, configured, parts
from zoo.memory.attention.core import Attention
from zoo.memory.retrieval.bank import Bank
from zoo.memory.retrieval.focused_attention import FocusedAttention
from zoo.memory.retrieval.landmark_attention import LandmarkAttention
from zoo.memory.retrieval.memorizing_attention import MemorizingAttention
from zoo.memory.retrieval.unlimiformer_attention import UnlimiformerAttention

SEGMENT, HEADS, HEAD_DIM, WIDTH = 64, 4, 16, 64
CAPACITY = 16  # segments that a bank of 1,024 tokens holds
FEATURE, ANGLE = 4, 0.01  # of the key: the rotary positions of one token more turn it by 10000^(-8/16)
SHARP = 4.0  # the score of equal keys, where no position counts
NEEDLE = 13  # its position in the first segment
BLANK = torch.zeros(WIDTH, dtype=torch.float64)


def token(query: float = 0.0, key: float = 0.0, value: float = 0.0) -> Tensor:
    """A token's input: what becomes its query, its key and its value in every head."""
    x = BLANK.clone()
    x[FEATURE], x[HEAD_DIM + FEATURE], x[2 * HEAD_DIM] = query, key, value
    return x


NEEDLE_TOKEN, QUERY_TOKEN = token(key=SHARP, value=1.0), token(query=SHARP)


@torch.no_grad()
def layer_of(name: str, kind: type[Attention], *overrides: str) -> Any:
    """The model's first layer with a bank, whose heads all read the same entries of a token."""
    layer = next(layer for layer in parts(configured(name, *overrides), kind) if layer_has_bank(layer))
    thirds = torch.eye(WIDTH, dtype=torch.float64)[: 3 * HEAD_DIM].split(HEAD_DIM)
    layer.qkv.weight.copy_(torch.cat([part.repeat(HEADS, 1) for part in thirds]))
    layer.out_proj.weight.copy_(torch.eye(WIDTH))
    return layer


def layer_has_bank(layer: Any) -> bool:
    return getattr(layer, "num_blocks", 1) > 0


def weight(*scores: float, blanks: int) -> float:
    """The first score's share in a softmax with the others and blank keys, whose scores are 0."""
    terms = [math.exp(score) for score in scores]
    return terms[0] / (sum(terms) + blanks)


def score(distance: int) -> float:
    return SHARP * math.cos(ANGLE * distance)


def local(query: int) -> float:
    """The needle in the query's segment, by ordinary attention."""
    return weight(score(query - NEEDLE), blanks=query)


# Each function: the needle's weight, `age` segments after its own, for a query at this position.


def memorizing(age: int, query: int, gate: float = 0.5) -> float:
    """A retrieved key has no position, and neither has the query that retrieves it."""
    if age == 0:
        return (1 - gate) * local(query)
    return gate * weight(SHARP, blanks=15) if age <= CAPACITY else 0.0


def unlimiformer(age: int, query: int, distance: Callable[[int, int], int] | None = None) -> float:
    """One softmax, in which retrieved keys stand one segment before the query's, or at another distance."""
    if age == 0:
        return local(query)
    gap = SEGMENT + query if distance is None else distance(age, query)
    return weight(score(gap), blanks=31 + query + 1) if age <= CAPACITY else 0.0


def spread(age: int, query: int) -> int:
    """The needle's distance where the stored text is scaled to the segment before the query's."""
    stored = SEGMENT * min(age, CAPACITY)
    rank = NEEDLE - (SEGMENT * age - stored)
    return query + SEGMENT - SEGMENT * rank // stored


def focused(age: int, query: int) -> float:
    """One softmax, in which retrieved keys stand at the segment's first token; the last segment is held
    beside the bank."""
    if age == 0:
        return local(query)
    return weight(score(query), blanks=15 + query + 1) if age <= CAPACITY + 1 else 0.0


def landmark(age: int, query: int) -> float:
    """Positions count landmarks too: eight tokens and one, eight such blocks a segment.  The newest four
    blocks of the bank have their distances; older ones stand just before them."""
    block, inside = divmod(NEEDLE, 8)
    needle, asks, asks_in = 9 * block + inside, 9 * (query // 8) + query % 8, query % 8
    blanks = query // 8 + asks_in + 1  # landmarks of the segment before the query's block, and its tokens
    if age == 0 and block == query // 8:
        return weight(score(asks - needle), blanks=blanks - 1)
    if age > CAPACITY:
        return 0.0
    distance = 72 * age + asks - needle
    if age:
        blanks += 3  # the other blocks that are retrieved
        if 8 * age - 1 - block >= 4:
            distance = 5 * 9 + asks - inside
    else:
        blanks -= 1  # the needle's landmark
    gate = weight(score(distance - (8 - inside)), blanks=blanks)
    return gate * weight(score(distance), blanks=7)


KINDS: dict[str, tuple[type[Attention], Callable[..., float]]] = {
    "memorizing": (MemorizingAttention, memorizing),
    "unlimiformer": (UnlimiformerAttention, unlimiformer),
    "focused": (FocusedAttention, focused),
    "landmark": (LandmarkAttention, landmark),
}
QUERIES = [(0, 15), (0, SEGMENT - 1), *((age, query) for age in range(1, CAPACITY + 3) for query in (0, 11))]
"""(segments after the needle's, position in the segment) of each query"""


@torch.no_grad()
def answers(layer: Any) -> Tensor:
    """The output of each head at each query, (queries, heads, head_dim)."""
    x = BLANK.repeat(CAPACITY + 3, SEGMENT, 1)
    x[0, NEEDLE] = NEEDLE_TOKEN
    ages, queries = torch.tensor(QUERIES).unbind(1)
    x[ages, queries] = QUERY_TOKEN
    with untyped():
        if isinstance(layer, LandmarkAttention):
            stream, _ = layer(with_landmarks(x), layer.init_state(1))
            y = stream.unflatten(1, (-1, 8, 9))[0, :, :, :8].flatten(1, 2)
        else:
            y, _ = layer(x, layer.init_state(1))
    return y[ages, queries].unflatten(1, (HEADS, HEAD_DIM))


def with_landmarks(x: Tensor) -> Tensor:
    """The segments in one stream; the landmark of the needle's block has its key, all others are blank."""
    blocks = x.unflatten(1, (8, 8))
    landmarks = torch.zeros_like(blocks[:, :, :1])
    landmarks[0, NEEDLE // 8, 0, HEAD_DIM + FEATURE] = SHARP
    return torch.cat([blocks, landmarks], dim=2).flatten(0, 2)[None]


def finds_the_needle(layer: Any, weight_of: Callable[[int, int], float]) -> None:
    expected = torch.zeros(len(QUERIES), HEADS, HEAD_DIM, dtype=torch.float64)
    expected[..., 0] = torch.tensor([weight_of(*query) for query in QUERIES], dtype=torch.float64)[:, None]
    torch.testing.assert_close(answers(layer), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_the_needle_is_answered_with_its_score_until_the_bank_has_overwritten_it(name: str) -> None:
    kind, weight_of = KINDS[name]
    finds_the_needle(layer_of(name, kind), weight_of)


@pytest.mark.parametrize(
    ("setting", "distance"),
    [("none", lambda age, query: 0), ("start", lambda age, query: query), ("spread", spread)],
)
def test_unlimiformer_s_other_positions(setting: str, distance: Callable[[int, int], int]) -> None:
    layer = layer_of("unlimiformer", UnlimiformerAttention, f"model.retrieved_positions={setting}")
    finds_the_needle(layer, lambda age, query: unlimiformer(age, query, distance))


@pytest.mark.parametrize(("bias", "gate"), [(-60.0, 0.0), (60.0, 1.0), (math.log(3), 0.75)])
def test_the_memorizing_transformer_s_gate_at_its_extremes(bias: float, gate: float) -> None:
    layer = layer_of("memorizing", MemorizingAttention)
    with torch.no_grad():
        layer.gate.fill_(bias)
    finds_the_needle(layer, lambda age, query: memorizing(age, query, gate))


# -- wrong memories -----------------------------------------------------------------------------------


def stores_half(layer: Any) -> None:
    """Overwrites what it should hold: a bank of half the size."""
    init_state = layer.init_state

    def halved(rows: int) -> Any:
        state = init_state(rows)
        bank = state if isinstance(state, Bank) else state.bank
        bank = bank._replace(
            keys=bank.keys[: len(bank.keys) // 2], values=bank.values[: len(bank.values) // 2]
        )
        return bank if isinstance(state, Bank) else state._replace(bank=bank)

    layer.init_state = halved


def returns_the_neighbour(layer: Any) -> None:
    """Returns key and value of the same slot in the next block."""
    gather = layer.knn.gather
    layer.knn.gather = lambda bank, slots: gather(bank, (slots + SEGMENT) % layer.knn.capacity)


def stores_rotated_keys(layer: Any) -> None:
    """Stores keys with the positions of their segments."""
    add = layer.knn.add

    def add_rotated(bank: Bank, keys: Tensor, values: Tensor, **options: Any) -> Bank:
        return add(bank, layer.positions.rotate(keys, torch.arange(keys.shape[2])), values, **options)

    layer.knn.add = add_rotated


def searches_with_positions(layer: Any) -> None:
    """Searches for the query as it is rotated for local attention, and scores it so."""
    project = layer.project

    def rotated(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = project(x)
        return layer.positions.rotate(q, torch.arange(x.shape[1])), k, v

    layer.project = rotated


def retrieves_the_newest(layer: Any) -> None:
    """Reads the newest blocks, whatever their landmarks."""

    def newest(q: Tensor, state: Any) -> Tensor:
        ids = torch.arange(layer.num_blocks - layer.topk, layer.num_blocks)
        ids = ids.masked_fill(ids < layer.num_blocks - state.num_closed, -1)
        return ids.expand(*q.shape[:3], -1)

    layer.choose_blocks = newest


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, stores_half) for name in ("memorizing", "focused", "unlimiformer")),
        *((name, returns_the_neighbour) for name in ("memorizing", "focused", "unlimiformer")),
        *((name, stores_rotated_keys) for name in ("memorizing", "focused")),
        ("unlimiformer", searches_with_positions),
        ("landmark", retrieves_the_newest),
    ],
)
def test_a_wrong_bank_is_caught(name: str, change: Callable[[Any], None]) -> None:
    kind, weight_of = KINDS[name]
    layer = layer_of(name, kind)
    change(layer)
    assert catches(lambda wrong: finds_the_needle(wrong, weight_of), layer)
