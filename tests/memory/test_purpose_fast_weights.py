"""What matrices of fast weights are for: a pair that is rewritten, and as many pairs as there are features.

Held without training, on memories with the shapes and rules of configs/model.  The answer to a key is a sum
of the values that were written under it; the tests state the share of each.
"""

from collections.abc import Callable
from typing import Protocol

import pytest
import torch
from torch import Tensor

from tests.memory.configured import catches, configured, parts
from zoo.memory.fast_weights import infini_attention
from zoo.memory.fast_weights.associative import EPS, AssociativeMemory, AssociativeState
from zoo.memory.fast_weights.infini_attention import CompressiveAttention, MemoryState

REPEATS = 16
WIDTH = 64  # of size=micro
SCALE = 8  # of values
PUBLISHED = "model.write=together", "model.bounded=false"
UNCORRECTED = *PUBLISHED, "model.correction=false"


class Pairs(Protocol):
    """A memory of pairs (key, value) in which feature i alone represents key i."""

    num_keys: int
    value_width: int

    def write(self, keys: list[int], values: Tensor) -> None:
        """Writes pairs at once: one segment."""

    def read(self, keys: list[int]) -> Tensor: ...


class Associative:
    """ARMT's memory; value and key of a token are separate entries of it, and b = 1."""

    def __init__(self, *settings: str, kind: type[AssociativeMemory] = AssociativeMemory) -> None:
        memory = parts(configured("armt", *settings), AssociativeMemory)[0]
        key_width, write = memory.key.out_features, "in_turn" if memory.in_turn else "together"
        self.memory = kind(
            memory.width, key_width, memory.nu, memory.correction, write, memory.bounded
        ).double()
        self.num_keys, self.value_width = self.memory.features, WIDTH - key_width - 1
        with torch.no_grad():
            self.memory.key.weight.copy_(torch.eye(key_width, WIDTH))
            self.memory.query.weight.copy_(torch.eye(key_width, WIDTH))
            entries = torch.arange(WIDTH)
            self.memory.value.weight.copy_(torch.diag((entries >= key_width) & (entries < WIDTH - 1)))
            self.memory.strength.weight.zero_()
            self.memory.strength.bias.fill_(40.0)  # sigmoid(40) is 1 in float64
        self.state = self.memory.init_state(1)

    def tokens(self, keys: list[int], values: Tensor) -> Tensor:
        """Key i is the one x of key_width entries with DPFP(x) = e_i: two entries +-1, `shift` apart in
        [x ; -x].  The last entry, which nothing reads, makes every token's root mean square 1."""
        key_width = WIDTH - self.value_width - 1
        x = torch.zeros(len(keys), WIDTH, dtype=torch.float64)
        for row, key in enumerate(keys):
            shift, first = divmod(key, 2 * key_width)
            for place in (first, (first - shift - 1) % (2 * key_width)):
                x[row, place % key_width] = 1.0 if place < key_width else -1.0
        x[:, key_width:-1] = values / SCALE
        x[:, -1] = (WIDTH - x.square().sum(1)).sqrt()
        return x[None]

    def write(self, keys: list[int], values: Tensor) -> None:
        self.state = self.memory.write(self.tokens(keys, values), self.state)

    def read(self, keys: list[int]) -> Tensor:
        empty = torch.zeros(len(keys), self.value_width, dtype=torch.float64)
        answer = self.memory.read(self.tokens(keys, empty), self.state)[0]
        return SCALE * answer[:, WIDTH - self.value_width - 1 : -1]


class Compressive:
    """One head of Infini-attention's memory; sigma(K) of key i is 1 at i and e^-60 elsewhere."""

    def __init__(self, rule: infini_attention.Rule | None = None) -> None:
        (config, *_) = parts(configured("infini"), CompressiveAttention)
        self.rule = rule or config.rule
        self.num_keys, self.value_width = config.head_dim, config.value_width
        empty = config.init_state(1)
        self.state = MemoryState(empty.matrix[:, :1], empty.normaliser[:, :1], empty.writes)

    def keys(self, keys: list[int]) -> Tensor:
        k = torch.full((len(keys), self.num_keys), -60.0, dtype=torch.float64)
        k[range(len(keys)), keys] = 0.0
        return k[None, None, None]

    def update(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, MemoryState]:
        return infini_attention.read_and_write(q, k, v, self.state, self.rule)

    def write(self, keys: list[int], values: Tensor) -> None:
        _, self.state = self.update(self.keys(keys), self.keys(keys), values[None, None, None])

    def read(self, keys: list[int]) -> Tensor:
        nothing = torch.zeros(1, 1, 1, len(keys), self.value_width, dtype=torch.float64)
        return self.update(self.keys(keys), self.keys(keys), nothing)[0][0, 0, 0]


def shares(memory: Pairs, repeats: int = REPEATS) -> tuple[float, float]:
    """The shares of the old and the new value in the answer to a key that was written `repeats` times with
    the old value and once with the new one."""
    old, new = torch.eye(2, memory.value_width, dtype=torch.float64)
    for _ in range(repeats):
        memory.write([3], old[None])
    memory.write([3], new[None])
    answer = memory.read([3])[0]
    assert not answer[2:].any()
    return float(answer[0]), float(answer[1])


S = 1 / (1 + EPS)  # |k|^2 / (|k|^2 + eps), for |k| = 1
SHARES: dict[str, tuple[Callable[[], Pairs], dict[int, tuple[float, float]]]] = {
    # gamma = 0 from the second write on: z = k.  A = k a, a <- a + v - S a, the answer is S a
    "armt, as configured": (Associative, {1: (S * (1 - S), S), REPEATS: (1 - S, S)}),
    "armt, published": (
        lambda: Associative(*PUBLISHED),
        {1: (S * (1 - S), S), REPEATS: (1 - S, S)},
    ),
    # z = n k after n writes.  A = k a, a <- a + v - a / n: a = n v / 2 from n = 2 on, the answer is a / n.
    # Written twice a value is halved, and a new value is 1 of 17 parts
    "armt, uncorrected": (
        lambda: Associative(*UNCORRECTED),
        {1: (0.0, 1 / 2), 2: (1 / 6, 1 / 3), REPEATS: (7.5 / 17, 1 / 17)},
    ),
    "infini, delta": (
        lambda: Compressive("delta"),
        {1: (0.0, 1 / 2), 2: (1 / 6, 1 / 3), REPEATS: (7.5 / 17, 1 / 17)},
    ),
    "infini, linear": (
        lambda: Compressive("linear"),
        {1: (1 / 2, 1 / 2), 2: (2 / 3, 1 / 3), REPEATS: (16 / 17, 1 / 17)},
    ),
}


@pytest.mark.parametrize("name", SHARES)
@torch.no_grad()
def test_the_answer_to_a_key_that_was_rewritten(name: str) -> None:
    build, expected = SHARES[name]
    inexact = {
        "armt, uncorrected": 2 * REPEATS * EPS,
        "armt, as configured": 1e-6,
    }  # eps in quotients, in rms
    tolerance = inexact.get(name, 1e-12)
    for repeats, old_and_new in expected.items():
        assert shares(build(), repeats) == pytest.approx(old_and_new, rel=0, abs=tolerance)


@pytest.mark.parametrize(
    ("build", "normaliser"),
    [
        (lambda: Associative(*PUBLISHED), 1),
        (lambda: Associative(*UNCORRECTED), 9),
        (lambda: Compressive("delta"), 9),
    ],
)
@torch.no_grad()
def test_tokens_of_one_segment_each_take_the_old_value_away(
    build: Callable[[], Pairs], normaliser: int
) -> None:
    """Written in parallel, each is corrected by the memory before the segment: of eight with the same key the
    old value has the share 1 - 8, which the correction doesn't divide."""
    memory = build()
    old, new = torch.eye(2, memory.value_width, dtype=torch.float64)
    memory.write([3], old[None])
    memory.write([3] * 8, new.expand(8, -1))
    expected = (-7 * old + 8 * new) / normaliser
    torch.testing.assert_close(memory.read([3])[0], expected, rtol=20 * EPS, atol=0)


@torch.no_grad()
def test_tokens_written_in_turn_overwrite_inside_a_segment_too() -> None:
    """ARMT as configured: the last of eight values under one key is the answer."""
    memory = Associative()
    memory.write([3], torch.ones(1, memory.value_width, dtype=torch.float64))
    values = torch.eye(8, memory.value_width, dtype=torch.float64)
    memory.write([3] * 8, values)
    torch.testing.assert_close(memory.read([3])[0], values[-1], rtol=0, atol=2 * EPS)


def test_infini_is_configured_with_the_delta_rule() -> None:
    assert Compressive().rule == "delta"


@torch.no_grad()
def retains_a_pair_per_feature(memory: Pairs) -> None:
    """The paper's capacity: pairs with orthogonal keys, as many as features, written eight at a time, are
    answered with their values."""
    values = torch.randn(memory.num_keys, memory.value_width, dtype=torch.float64)
    keys = torch.randperm(memory.num_keys).tolist()
    for written in range(0, memory.num_keys, 8):
        batch = keys[written : written + 8]
        memory.write(batch, values[batch])
    torch.testing.assert_close(memory.read(keys), values[keys], rtol=2 * EPS, atol=1e-12)


CAPACITY: dict[str, tuple[Callable[[], Pairs], int]] = {
    "armt, as configured": (Associative, 2 * 3 * 8),  # 2 nu key_width
    "armt, published": (lambda: Associative(*PUBLISHED), 2 * 3 * 8),
    "armt, uncorrected": (lambda: Associative(*UNCORRECTED), 2 * 3 * 8),
    "infini, delta": (lambda: Compressive("delta"), 16),  # head_dim
    "infini, linear": (lambda: Compressive("linear"), 16),
}


@pytest.mark.parametrize("name", CAPACITY)
def test_as_many_pairs_as_features_are_retained(name: str) -> None:
    build, capacity = CAPACITY[name]
    torch.manual_seed(0)
    memory = build()
    assert memory.num_keys == capacity
    retains_a_pair_per_feature(memory)


def a_gate_chooses(layer: CompressiveAttention) -> None:
    """Closed, a segment is read without the memory; open, by the memory alone, which is 0 while empty."""
    x, earlier = torch.randn(2, 1, layer.segment_len, WIDTH, dtype=torch.float64).unbind(0)
    with torch.no_grad():
        empty = layer.init_state(1)
        _, written = layer(earlier, empty)
        answers = {}
        for bias in (-60.0, 60.0):
            layer.gate.fill_(bias)
            answers[bias] = [layer(x, state)[0] for state in (empty, written)]
    torch.testing.assert_close(*answers[-60.0], rtol=0, atol=1e-12)
    torch.testing.assert_close(answers[60.0][0], torch.zeros_like(x), rtol=0, atol=1e-12)
    assert answers[60.0][1].abs().max() > 1e-3


def infini_layer() -> CompressiveAttention:
    torch.manual_seed(0)
    return parts(configured("infini"), CompressiveAttention)[0]


def test_infini_attention_s_gate_at_its_extremes() -> None:
    a_gate_chooses(infini_layer())


# -- wrong memories -----------------------------------------------------------------------------------


class CountsEveryWrite(AssociativeMemory):
    """Its correction does nothing: gamma = 1."""

    def write(self, x: Tensor, state: AssociativeState) -> AssociativeState:
        self.correction = False
        return super().write(x, state)


class AddsOnly(AssociativeMemory):
    """Adds values without taking away what is stored under their keys."""

    def write(self, x: Tensor, state: AssociativeState) -> AssociativeState:
        after = super().write(x, state._replace(matrix=torch.zeros_like(state.matrix)))
        return after._replace(matrix=state.matrix + after.matrix)


class Normalises(AssociativeMemory):
    """Its normaliser has a constant length: other writes shrink what is stored."""

    def write(self, x: Tensor, state: AssociativeState) -> AssociativeState:
        after = super().write(x, state)
        return after._replace(normaliser=after.normaliser / after.normaliser.norm(dim=-1, keepdim=True))


class TakesAwayAll(Compressive):
    """The delta rule without its normaliser."""

    def update(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, MemoryState]:
        stored = infini_attention.sigma(k) @ self.state.matrix[:, None]
        read, after = infini_attention.read_and_write(q, k, v - stored, self.state, "linear")
        return read, after


class Fades(Compressive):
    """Each write shrinks the matrix and not the normaliser."""

    def update(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, MemoryState]:
        read, after = super().update(q, k, v)
        return read, after._replace(matrix=0.99 * after.matrix)


@pytest.mark.parametrize("kind", [CountsEveryWrite, AddsOnly])
@torch.no_grad()
def test_a_wrong_rule_answers_with_the_old_value(kind: type[AssociativeMemory]) -> None:
    old, _ = shares(Associative(kind=kind))
    assert old > 0.4


@torch.no_grad()
def test_a_wrong_delta_rule_has_other_shares() -> None:
    assert shares(TakesAwayAll("delta")) != pytest.approx((7.5 / 17, 1 / 17), abs=1e-3)


@torch.no_grad()
def test_a_memory_that_shrinks_retains_less() -> None:
    assert catches(retains_a_pair_per_feature, Associative(*PUBLISHED, kind=Normalises))
    assert catches(retains_a_pair_per_feature, Fades("delta"))


def test_a_gate_that_is_never_shut_is_caught() -> None:
    layer = infini_layer()
    mix = layer.mix
    layer.mix = lambda retrieved, local: local + mix(retrieved, local)  # type: ignore[method-assign]
    assert catches(a_gate_chooses, layer)
