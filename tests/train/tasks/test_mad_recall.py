"""MAD's recall: texts checked from their tokens alone, their distributions, what needs no key.

tests/golden_tasks holds the targets to the suite's own texts.
"""

from itertools import groupby
from typing import Any

import numpy as np
import pytest

from tests.train.tasks.mad_cases import chi_square, mad, samples
from zoo.module import IGNORE
from zoo.train.tasks.base import Dataset, Split, Subset
from zoo.train.tasks.mad import Mad


def num_targets(task: Mad, count: int) -> float:
    return float(np.mean([sum(t != IGNORE for t in targets) for _, targets in samples(task, count)]))


def expected_recall(tokens: list[int], answer: int, noise_from: int) -> list[int]:
    """Token by token: the value that a key had last, where the same one follows."""
    last: dict[int, int] = {}
    targets = [IGNORE] * len(tokens)
    followed_by = [*tokens, answer]
    for position in range(0, len(tokens), 2):
        key, value = followed_by[position : position + 2]
        if key < noise_from:
            if last.get(key) == value:
                targets[position] = value
            last[key] = value
    return targets


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keys": 1},
        {"keys": 3, "rewrite": 0.3},
        {"rewrite": 1.0},
        {"length": 4},
        {"length": 7},
        {"vocab_size": 4},
        {"kind": "noisy_in_context_recall"},
        {"kind": "noisy_in_context_recall", "noise": 1.0},
        {"kind": "noisy_in_context_recall", "noise": 0.7, "rewrite": 0.5, "keys": 2, "length": 300},
    ],
    ids=str,
)
def test_recall(settings: dict[str, Any]) -> None:
    task = mad(**{"kind": "in_context_recall"} | settings)
    contents = task.vocab_size - (16 if "noisy" in task.kind else 0)
    for tokens, targets in samples(task, 60):
        assert len(tokens) == 2 * (task.length // 2) - 1
        assert contents // 2 <= targets[-1] < contents
        assert targets == expected_recall(tokens, targets[-1], contents)
        pairs = list(zip(tokens[::2], tokens[1::2], strict=False))
        assert all(
            (key < contents // 2 <= value < contents) or min(key, value) >= contents for key, value in pairs
        )
        keys = {key for key, _ in pairs if key < contents}
        assert tokens[-1] in keys
        assert len(keys) <= (task.keys or contents // 2)


def test_the_suite_s_numbers_of_targets() -> None:
    """As measured on its own texts."""
    assert num_targets(mad("in_context_recall"), 300) == pytest.approx(56, abs=0.3)
    assert num_targets(mad("noisy_in_context_recall"), 300) == pytest.approx(43, abs=0.8)
    assert num_targets(mad("fuzzy_in_context_recall"), 300) == pytest.approx(4.5, abs=0.4)


@pytest.mark.parametrize("rewrite", [0.0, 0.4])
def test_pairs_are_uniform_and_rewritten_as_often_as_said(rewrite: float) -> None:
    task = mad("in_context_recall", rewrite=rewrite)
    keys, values, last_keys, repeated, rewritten = np.zeros(8), np.zeros(8), np.zeros(8), 0, 0
    steps = np.zeros(8)
    for tokens, _ in samples(task, 400):
        last: dict[int, int] = {}
        for key, value in zip(tokens[:-1:2], tokens[1::2], strict=True):
            keys[key] += 1
            if key in last:
                repeated += 1
                rewritten += last[key] != value
                steps[(value - last[key]) % 8] += 1
            else:
                values[value - 8] += 1
            last[key] = value
        last_keys[tokens[-1]] += 1
    assert chi_square(keys, np.full(8, 1 / 8)) < 30  # 7 degrees of freedom, p = 0.0001
    assert chi_square(values, np.full(8, 1 / 8)) < 30
    assert chi_square(last_keys, np.full(8, 1 / 8)) < 30
    assert rewritten / repeated == pytest.approx(rewrite, abs=0.015)
    if rewrite:
        assert chi_square(steps[1:], np.full(7, 1 / 7)) < 28


def test_noise_is_uniform_and_as_much_as_said() -> None:
    counts, pairs = np.zeros(16), 0
    for tokens, _ in samples(mad("noisy_in_context_recall", noise=0.3), 300):
        pairs += len(tokens) // 2
        for token in tokens:
            if token >= 16:
                counts[token - 16] += 1
    assert counts.sum() / (2 * pairs) == pytest.approx(0.3, abs=0.015)
    assert chi_square(counts, np.full(16, 1 / 16)) < 45


def motifs(symbols: list[int], pad: int, first_value: int) -> list[tuple[int, ...]]:
    """Keys and values in turn."""
    text = [symbol for symbol in symbols if symbol != pad]
    return [tuple(run) for _, run in groupby(text, key=lambda symbol: symbol >= first_value)]


@pytest.mark.parametrize(("length", "vocab_size", "first_value"), [(128, 16, 7), (12, 7, 3), (300, 40, 19)])
@pytest.mark.parametrize("split", ["train", "val"])
def test_fuzzy_recall(split: Split, length: int, vocab_size: int, first_value: int) -> None:
    task = mad("fuzzy_in_context_recall", length=length, vocab_size=vocab_size)
    key_sizes, value_sizes = np.zeros(4), np.zeros(4)
    for tokens, targets in samples(task, 150, split):
        assert len(tokens) == length
        line = [*tokens, targets[-1]]
        assert line[: line.count(vocab_size - 1)] == [vocab_size - 1] * line.count(vocab_size - 1)
        runs = motifs(line, vocab_size - 1, first_value)
        keys, values = runs[::2], runs[1::2]
        assert len(keys) == len(values)
        assert all(len(set(run)) == len(run) <= 3 for run in runs)
        expected: list[int] = []
        seen: dict[tuple[int, ...], tuple[int, ...]] = {}
        for key, value in zip(keys, values, strict=True):
            asked = list(value) if key in seen else [IGNORE] * len(value)
            expected += [IGNORE] * len(key) + asked
            assert seen.setdefault(key, value) == value
        assert keys[-1] in keys[:-1]
        assert targets == ([IGNORE] * line.count(vocab_size - 1) + expected)[1:]
        for key in keys[:-1]:
            key_sizes[len(key)] += 1
        for key in dict.fromkeys(keys[:-3]):  # the last pair to fit is rather a short one
            value_sizes[len(seen[key])] += 1
    if split == "val":
        assert key_sizes[:3].sum() == 0
    elif length > 12:
        assert chi_square(key_sizes[1:], np.full(3, 1 / 3)) < 20
    if length > 12:
        assert chi_square(value_sizes[1:], np.full(3, 1 / 3)) < 20


def test_the_baselines_of_recall_by_hand() -> None:
    task = mad("in_context_recall", keys=3, rewrite=0.3, samples=50)
    dataset: Dataset = Subset(task.split("val"), 40)
    hits: dict[str, list[bool]] = {"commonest value": [], "last value": []}
    for tokens, targets in samples(task, 40):
        for position, target in enumerate(targets):
            values = [token for token in tokens[: position + 1] if token >= 8]
            if target != IGNORE:
                commonest = max(sorted(set(values)), key=values.count)
                hits["commonest value"].append(commonest == target)
                hits["last value"].append(values[-1] == target)
    baselines = task.baselines(dataset)
    for name, of_targets in hits.items():
        assert baselines[name] == pytest.approx(np.mean(of_targets))
