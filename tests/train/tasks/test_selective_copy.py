"""Selective copying: samples checked from their tokens alone."""

from typing import Any

import numpy as np
import pytest

from tests.train.tasks.samples import check_windows, read_sample
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.data.module import DataModule
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.selective_copy import SelectiveCopy


def expected_targets(tokens: list[int], marker: int) -> list[int]:
    symbols = [token for token in tokens if 0 < token < marker]
    return [symbols.pop(0) if token == marker else IGNORE for token in tokens]


@pytest.mark.parametrize(
    ("length", "remembered", "vocab_size"),
    [(4096, 16, 16), (24, 4, 16), (2, 1, 3), (32, 16, 5), (33, 16, 300)],
)
def test_the_answers_are_the_symbols_between_the_noise(length: int, remembered: int, vocab_size: int) -> None:
    dataset = SelectiveCopy(length=length, remembered=remembered, vocab_size=vocab_size).split("val")
    for document in range(50):
        tokens, targets = (row.tolist() for row in read_sample(dataset, document))
        assert len(tokens) == length
        assert tokens[length - remembered :] == [vocab_size - 1] * remembered
        assert tokens.count(vocab_size - 1) == sum(target != IGNORE for target in targets) == remembered
        assert tokens.count(0) == length - 2 * remembered
        assert targets == expected_targets(tokens, vocab_size - 1)


def test_positions_and_symbols_are_uniform() -> None:
    dataset = SelectiveCopy(length=23, remembered=3).split("train")
    position_counts, symbol_counts = np.zeros(20), np.zeros(16)
    for document in range(2000):
        tokens, _ = read_sample(dataset, document)
        for position, token in enumerate(tokens[:20].tolist()):
            position_counts[position] += token > 0
            symbol_counts[token] += token > 0
    assert ((position_counts - 300) ** 2 / 300).sum() < 55  # chi-square, p = 0.0001
    assert ((symbol_counts[1:15] - 6000 / 14) ** 2 / (6000 / 14)).sum() < 45
    assert symbol_counts[15] == 0


def test_a_window_is_a_slice_and_samples_are_repeatable() -> None:
    dataset = SelectiveCopy(length=200).split("test")
    check_windows(dataset, 7, [(0, 200), (0, 1), (5, 190), (185, 200), (199, 200), (9, 9)])
    sample = read_sample(dataset, 7)
    fewer = SelectiveCopy(length=200, eval_samples=8).split("test")
    np.testing.assert_array_equal(read_sample(fewer, 7), sample)
    different_datasets = (
        SelectiveCopy(length=200).split("val"),
        SelectiveCopy(length=200, seed=1).split("test"),
    )
    for different_sample in (
        *(read_sample(different, 7) for different in different_datasets),
        read_sample(dataset, 8),
    ):
        assert not np.array_equal(different_sample, sample)


def test_another_length_and_chance() -> None:
    task = SelectiveCopy(remembered=3, vocab_size=6, eval_samples=4).at(length=50)
    dataset = task.split("test")
    assert dataset.lengths.tolist() == [50] * 4
    expected = read_sample(SelectiveCopy(50, 3, 6).split("test"), 3)
    np.testing.assert_array_equal(read_sample(dataset, 3), expected)
    assert task.baselines(dataset) == {"chance": 1 / 4}
    assert task.exact_baselines(dataset) == {"chance": 1 / 4**3}
    with pytest.raises(UserError, match="no depth to vary"):
        task.at(depth=0.5)


def test_a_window_of_a_million_positions_needs_no_others() -> None:
    dataset = SelectiveCopy(length=2**20).split("test")
    tokens, targets = dataset.window(0, 2**20 - 32, 2**20)
    assert tokens[16:].tolist() == [15] * 16
    windows = [dataset.window(0, start, start + 2**16)[0] for start in range(0, 2**20, 2**16)]
    symbols = [token for window in windows for token in window.tolist() if token]
    assert symbols[:16] == targets[16:].tolist()


@pytest.mark.parametrize(
    "keys",
    [{"length": 31}, {"remembered": 0}, {"vocab_size": 2}, {"samples": 0}, {"eval_samples": 0}, {"seed": -1}],
)
def test_impossible_samples_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(keys))}.*found"):
        SelectiveCopy(**keys)


def test_the_loader_reads_it_as_configured() -> None:
    cfg = compose(["task=selective_copy", "size=nano", "task.length=60", "task.remembered=5"])
    assert cfg.data.seq_len == 64
    batch = next(iter(DataModule(build.task(cfg), 4, 64, 16, seed=0).train_dataloader()))
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert targets[:60] == expected_targets(tokens[:60], 15)
        assert targets[60:] == [IGNORE] * 4
