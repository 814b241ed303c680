"""MQAR: samples checked from their tokens alone, and the positions of later keys."""

from typing import Any

import numpy as np
import pytest

from tests.train.tasks.samples import check_windows, read_sample
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.data.module import DataModule
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.base import Subset
from zoo.train.tasks.mqar import Mqar

BASED = [[64, 4, 100_000], [128, 8, 20_000], [256, 16, 20_000], [256, 32, 20_000], [256, 64, 20_000]]


def expected_targets(tokens: list[int], pairs: int) -> list[int]:
    """The targets, from tokens whose filler is 0."""
    value_of = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
    later = [value_of[token] if token else IGNORE for token in tokens[2 * pairs :]]
    return [IGNORE] * (2 * pairs) + later


@pytest.mark.parametrize(
    ("length", "pairs", "vocab_size", "power_a"),
    [(4, 1, 5, 0.01), (64, 4, 8192, 0.01), (64, 16, 65, 1.0), (512, 64, 8192, 0.01), (30, 3, 31, 0.5)],
)
def test_the_answer_is_the_value_of_the_key(length: int, pairs: int, vocab_size: int, power_a: float) -> None:
    settings: dict[str, Any] = {
        "length": length,
        "pairs": pairs,
        "vocab_size": vocab_size,
        "power_a": power_a,
    }
    zero_filler = Mqar(**settings, random_non_queries=False).split("val")
    random_filler = Mqar(**settings).split("val")
    for document in range(100):
        tokens, targets = (row.tolist() for row in read_sample(zero_filler, document))
        assert len(tokens) == length
        assert targets == expected_targets(tokens, pairs)
        queries = [position for position, target in enumerate(targets) if target != IGNORE]
        assert len(queries) == pairs
        assert all(position >= 2 * pairs and position % 2 == 0 for position in queries)
        keys, values = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert sorted(tokens[position] for position in queries) == sorted(keys)
        assert all(1 <= key < vocab_size // 2 for key in keys)
        assert all(vocab_size // 2 <= value < vocab_size for value in values)
        random_tokens, random_targets = (row.tolist() for row in read_sample(random_filler, document))
        assert random_targets == targets  # only the filler differs
        fixed = [*range(2 * pairs), *queries]
        assert [random_tokens[position] for position in fixed] == [tokens[position] for position in fixed]
        assert all(0 <= token < vocab_size for token in random_tokens)


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    expected = counts.sum() * shares
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("power_a", [0.01, 0.3, 1.0])
def test_slots_are_drawn_by_a_power_law_without_replacement(power_a: float) -> None:
    task = Mqar(length=16, pairs=2, vocab_size=1000, power_a=power_a, random_non_queries=False)
    dataset = task.split("train")
    num_slots, num_samples = 6, 3000
    weights = np.array([float(slot) ** (power_a - 1) for slot in range(1, num_slots + 1)])
    weights /= weights.sum()
    # of the first key's slot and the second's, one drawn after the other
    probabilities = np.outer(weights / (1 - weights), weights)
    np.fill_diagonal(probabilities, 0.0)
    counts = np.zeros((num_slots, num_slots))
    for document in range(num_samples):
        tokens = read_sample(dataset, document)[0].tolist()
        first, second = ((tokens.index(tokens[position], 4) - 4) // 2 for position in (0, 2))
        counts[first, second] += 1
    possible = probabilities > 0
    assert chi_square(counts[possible], probabilities[possible]) < 65  # 29 degrees of freedom, p = 0.0001


def test_filler_keys_and_values_are_uniform() -> None:
    dataset = Mqar(length=16, pairs=1, vocab_size=40).split("train")
    filler, keys, values = np.zeros(40), np.zeros(40), np.zeros(40)
    for document in range(1500):
        tokens, targets = (row.tolist() for row in read_sample(dataset, document))
        for position in range(2, 16):
            filler[tokens[position]] += targets[position] == IGNORE
        keys[tokens[0]] += 1
        values[tokens[1]] += 1
    assert chi_square(filler, np.full(40, 1 / 40)) < 85
    assert chi_square(keys[1:20], np.full(19, 1 / 19)) < 55
    assert keys[1:20].sum() == 1500
    assert chi_square(values[20:], np.full(20, 1 / 20)) < 55


def test_a_mixture_is_for_training_and_held_out_samples_are_of_one_kind() -> None:
    task = Mqar(length=256, pairs=64, mixture=BASED, eval_samples=50)
    train, val = task.split("train"), task.split("val")
    assert len(train.lengths) == 180_000
    assert np.bincount(train.lengths)[[64, 128, 256]].tolist() == [100_000, 20_000, 60_000]
    for document, (length, pairs) in {
        0: (64, 4),
        99_999: (64, 4),
        100_000: (128, 8),
        159_999: (256, 32),
        179_999: (256, 64),
    }.items():
        tokens, targets = read_sample(train, document)
        assert (len(tokens), (targets != IGNORE).sum()) == (length, pairs)
        assert task.groups(train, document) == {"length": length, "pairs": pairs}
    assert val.lengths.tolist() == [256] * 50
    assert task.groups(Subset(val, 3), 2) == {"length": 256, "pairs": 64}
    # two samples of one target and one of three: shares of all targets
    small = Mqar(length=16, pairs=1, vocab_size=100, mixture=[[16, 1, 2], [16, 3, 1]])
    assert small.baselines(small.split("train")) == {"chance": 1 / 50, "any value of the sample": 3 / 5}
    held_out = Subset(small.split("test"), 7)
    assert small.baselines(held_out) == {"chance": 1 / 50, "any value of the sample": 1}
    assert small.exact_baselines(held_out) == {"chance": 1 / 50, "any value of the sample": 1}
    assert small.exact_baselines(small.split("train")) == {
        "chance": pytest.approx((2 / 50 + 1 / 50**3) / 3),
        "any value of the sample": pytest.approx((2 + 1 / 27) / 3),
    }


def test_another_point_of_the_axes() -> None:
    expected = Mqar(length=128, pairs=8, eval_samples=5, power_a=0.5, seed=3)
    assert Mqar(eval_samples=5, power_a=0.5, seed=3).at(length=128, pairs=8) == expected
    mixed = Mqar(length=256, pairs=64, mixture=BASED, eval_samples=5, power_a=0.5, seed=3)
    assert mixed.at(length=128, pairs=8) == expected
    assert mixed.at() is mixed
    with pytest.raises(UserError, match="mqar has no depth to vary"):
        Mqar().at(depth=0.5)
    with pytest.raises(UserError, match="found length=8, pairs=4"):
        Mqar().at(length=8)


def test_a_window_is_a_slice_and_samples_are_repeatable() -> None:
    dataset = Mqar(length=64).split("test")
    check_windows(dataset, 7, [(0, 64), (0, 1), (5, 40), (63, 64), (9, 9)])
    sample = read_sample(dataset, 7)
    np.testing.assert_array_equal(read_sample(Mqar(length=64, eval_samples=9).split("test"), 7), sample)
    different_datasets = (Mqar(length=64).split("val"), Mqar(length=64, seed=1).split("test"))
    for tokens, _ in (
        *(read_sample(different, 7) for different in different_datasets),
        read_sample(dataset, 8),
    ):
        assert np.mean(tokens != sample[0]) > 0.5


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"length": 63}, "even length.*length=63"),
        ({"length": 64, "vocab_size": 64}, "vocab_size=64"),
        ({"pairs": 17}, "pairs=17"),
        ({"pairs": 0}, "pairs=0"),
        ({"length": 0}, "length=0"),
        ({"eval_samples": 0}, "at least 1"),
        ({"seed": -1}, "task.seed"),
        ({"mixture": [[64, 4]]}, r"\[length, pairs, samples\].*\[64, 4\]"),
        ({"mixture": [[64, 4, 0]]}, r"found \[64, 4, 0\]"),
        ({"mixture": [[128, 4, 10]]}, "at most length=64, found 128"),
        ({"mixture": [[32, 9, 10]]}, "found length=32, pairs=9"),
    ],
)
def test_impossible_samples_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mqar(**keys)


def test_the_loader_reads_it_as_configured() -> None:
    cfg = compose(["task=mqar", "size=nano", "task.length=60", "task.mixture=[[8,2,10],[60,4,10]]"])
    task = build.task(cfg)
    assert cfg.data.seq_len == 64
    batch = next(iter(DataModule(task, 4, 64, 16, seed=0).train_dataloader()))
    for tokens, targets, fresh in zip(*(part.tolist() for part in batch[:3]), strict=True):
        pairs = sum(target != IGNORE for target in targets)
        assert fresh
        assert pairs in (2, 4)
        value_of = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        for token, target in zip(tokens, targets, strict=True):
            assert target == IGNORE or target == value_of[token]
