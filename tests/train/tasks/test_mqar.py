"""MQAR: every sample read again from its tokens alone, and where later keys stand."""

from typing import Any

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.data.module import DataModule
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.base import Dataset, Subset
from zoo.train.tasks.mqar import Mqar

BASED = [[64, 4, 100_000], [128, 8, 20_000], [256, 16, 20_000], [256, 32, 20_000], [256, 64, 20_000]]


def sample(dataset: Dataset, document: int) -> tuple[list[int], list[int]]:
    tokens, targets = dataset.window(document, 0, int(dataset.lengths[document]))
    return tokens.tolist(), targets.tolist()


def read_again(tokens: list[int], pairs: int) -> list[int]:
    """The targets, from tokens whose filler is 0."""
    book: dict[int, int] = {}
    targets = []
    for place, token in enumerate(tokens):
        if place >= 2 * pairs:
            targets.append(book[token] if token else IGNORE)
        else:
            targets.append(IGNORE)
            if place % 2:
                book[tokens[place - 1]] = token
    return targets


@pytest.mark.parametrize(
    ("length", "pairs", "vocab_size", "power_a"),
    [(4, 1, 5, 0.01), (64, 4, 8192, 0.01), (64, 16, 65, 1.0), (512, 64, 8192, 0.01), (30, 3, 31, 0.5)],
)
def test_the_answer_is_what_came_with_the_key(
    length: int, pairs: int, vocab_size: int, power_a: float
) -> None:
    keys: dict[str, Any] = {"length": length, "pairs": pairs, "vocab_size": vocab_size, "power_a": power_a}
    plain = Mqar(**keys, random_non_queries=False).split("val")
    noisy = Mqar(**keys).split("val")
    for document in range(100):
        tokens, targets = sample(plain, document)
        assert len(tokens) == length
        assert targets == read_again(tokens, pairs)
        asked = [place for place, target in enumerate(targets) if target != IGNORE]
        assert len(asked) == pairs
        assert all(place >= 2 * pairs and place % 2 == 0 for place in asked)
        first, second = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert len(set(first)) == len(set(second)) == pairs
        assert sorted(tokens[place] for place in asked) == sorted(first)
        assert all(1 <= key < vocab_size // 2 for key in first)
        assert all(vocab_size // 2 <= value < vocab_size for value in second)
        again, labels = sample(noisy, document)  # filler alone is another
        assert labels == targets
        told = [*range(2 * pairs), *asked]
        assert [again[place] for place in told] == [tokens[place] for place in told]
        assert all(0 <= token < vocab_size for token in again)


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    expected = counts.sum() * shares
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("power_a", [0.01, 0.3, 1.0])
def test_slots_are_drawn_by_a_power_law_without_replacement(power_a: float) -> None:
    dataset = Mqar(length=16, pairs=2, vocab_size=1000, power_a=power_a, random_non_queries=False).split(
        "train"
    )
    space, count = 6, 3000
    weights = np.array([float(slot) ** (power_a - 1) for slot in range(1, space + 1)])
    weights /= weights.sum()
    chance = np.array(  # of the first key's slot and the second's, one drawn after the other
        [
            0.0 if one == other else weights[one] * weights[other] / (1 - weights[one])
            for one in range(space)
            for other in range(space)
        ]
    ).reshape(space, space)
    counts = np.zeros((space, space))
    for document in range(count):
        tokens, _ = sample(dataset, document)
        one, other = ((tokens.index(tokens[place], 4) - 4) // 2 for place in (0, 2))
        counts[one, other] += 1
    assert chi_square(counts[chance > 0], chance[chance > 0]) < 65  # 29 degrees of freedom, p = 0.0001


def test_filler_keys_and_values_are_uniform() -> None:
    dataset = Mqar(length=16, pairs=1, vocab_size=40).split("train")
    filler, first, second = np.zeros(40), np.zeros(40), np.zeros(40)
    for document in range(1500):
        tokens, targets = sample(dataset, document)
        for place in range(2, 16):
            filler[tokens[place]] += targets[place] == IGNORE
        first[tokens[0]] += 1
        second[tokens[1]] += 1
    assert chi_square(filler, np.full(40, 1 / 40)) < 85
    assert chi_square(first[1:20], np.full(19, 1 / 19)) < 55
    assert first[1:20].sum() == 1500
    assert chi_square(second[20:], np.full(20, 1 / 20)) < 55


def test_a_mixture_trains_and_one_kind_is_held_out() -> None:
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
        tokens, targets = sample(train, document)
        assert (len(tokens), sum(target != IGNORE for target in targets)) == (length, pairs)
        assert task.groups(train, document) == {"length": length, "pairs": pairs}
    assert val.lengths.tolist() == [256] * 50
    assert task.groups(Subset(val, 3), 2) == {"length": 256, "pairs": 64}
    # (0 mod 5) kinds of samples: shares of all targets
    few = Mqar(length=16, pairs=1, vocab_size=100, mixture=[[16, 1, 2], [16, 3, 1]])
    assert few.baselines(few.split("train")) == {"chance": 1 / 50, "any value of the sample": 3 / 5}
    assert few.baselines(Subset(few.split("test"), 7)) == {"chance": 1 / 50, "any value of the sample": 1}


def test_another_point_of_the_axes() -> None:
    there = Mqar(eval_samples=5, power_a=0.5, seed=3).at(length=128, pairs=8)
    same = Mqar(length=128, pairs=8, eval_samples=5, power_a=0.5, seed=3)
    assert sample(there.split("test"), 4) == sample(same.split("test"), 4)
    with pytest.raises(UserError, match="mqar has no depth to vary"):
        Mqar().at(depth=0.5)
    with pytest.raises(UserError, match="found length=8, pairs=4"):
        Mqar().at(length=8)


def test_a_window_is_a_slice_and_samples_are_repeatable() -> None:
    dataset = Mqar(length=64).split("test")
    tokens, targets = sample(dataset, 7)
    for start, stop in ((0, 64), (0, 1), (5, 40), (63, 64), (9, 9)):
        piece = dataset.window(7, start, stop)
        assert (piece[0].tolist(), piece[1].tolist()) == (tokens[start:stop], targets[start:stop])
    for start, stop in ((-1, 3), (4, 3), (0, 65)):
        with pytest.raises(IndexError):
            dataset.window(7, start, stop)
    assert sample(Mqar(length=64, eval_samples=9).split("test"), 7) == (tokens, targets)
    for other in (Mqar(length=64).split("val"), Mqar(length=64, seed=1).split("test")):
        assert np.mean(np.array(sample(other, 7)[0]) != tokens) > 0.5
    assert np.mean(np.array(sample(dataset, 8)[0]) != tokens) > 0.5


@pytest.mark.parametrize(
    ("keys", "said"),
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
def test_impossible_samples_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Mqar(**keys)


def test_the_loader_reads_it_as_configured() -> None:
    words = ["task=mqar", "size=nano", "task.length=60", "task.mixture=[[8,2,10],[60,4,10]]"]
    cfg = compose(words)
    task = build.task(cfg)
    assert cfg.data.seq_len == 64
    batch = next(iter(DataModule(task, 4, 64, 16, seed=0).train_dataloader()))
    for tokens, targets, fresh in zip(*(part.tolist() for part in batch), strict=True):
        pairs = sum(target != IGNORE for target in targets)
        assert fresh
        assert pairs in (2, 4)
        book = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        assert all(book[t] == a for t, a in zip(tokens, targets, strict=True) if a != IGNORE)
