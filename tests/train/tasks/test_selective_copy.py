"""Selective copying: every sample read again from its tokens alone."""

from typing import Any

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.data.module import DataModule
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.base import Dataset
from zoo.train.tasks.selective_copy import SelectiveCopy


def sample(dataset: Dataset, document: int) -> tuple[list[int], list[int]]:
    tokens, targets = dataset.window(document, 0, int(dataset.lengths[document]))
    return tokens.tolist(), targets.tolist()


def read_again(tokens: list[int], marker: int) -> list[int]:
    seen = [token for token in tokens if 0 < token < marker]
    return [seen.pop(0) if token == marker else IGNORE for token in tokens]


@pytest.mark.parametrize(
    ("length", "remembered", "vocab_size"),
    [(4096, 16, 16), (24, 4, 16), (2, 1, 3), (32, 16, 5), (33, 16, 300)],
)
def test_the_answers_are_what_stood_between_the_noise(length: int, remembered: int, vocab_size: int) -> None:
    dataset = SelectiveCopy(length=length, remembered=remembered, vocab_size=vocab_size).split("val")
    for document in range(50):
        tokens, targets = sample(dataset, document)
        assert len(tokens) == length
        assert tokens[length - remembered :] == [vocab_size - 1] * remembered
        assert tokens.count(vocab_size - 1) == sum(target != IGNORE for target in targets) == remembered
        assert tokens.count(0) == length - 2 * remembered
        assert targets == read_again(tokens, vocab_size - 1)


def test_places_and_symbols_are_uniform() -> None:
    dataset = SelectiveCopy(length=23, remembered=3).split("train")
    places, symbols = np.zeros(20), np.zeros(16)
    for document in range(2000):
        tokens, _ = sample(dataset, document)
        for place, token in enumerate(tokens[:20]):
            places[place] += token > 0
            symbols[token] += token > 0
    assert ((places - 300) ** 2 / 300).sum() < 55  # chi-square, p = 0.0001
    assert ((symbols[1:15] - 6000 / 14) ** 2 / (6000 / 14)).sum() < 45
    assert symbols[15] == 0


def test_a_window_is_a_slice_and_samples_are_repeatable() -> None:
    dataset = SelectiveCopy(length=200).split("test")
    tokens, targets = sample(dataset, 7)
    for start, stop in ((0, 200), (0, 1), (5, 190), (185, 200), (199, 200), (9, 9)):
        piece = dataset.window(7, start, stop)
        assert (piece[0].tolist(), piece[1].tolist()) == (tokens[start:stop], targets[start:stop])
    with pytest.raises(IndexError):
        dataset.window(7, 0, 201)
    assert sample(SelectiveCopy(length=200, eval_samples=8).split("test"), 7) == (tokens, targets)
    for other in (SelectiveCopy(length=200).split("val"), SelectiveCopy(length=200, seed=1).split("test")):
        assert sample(other, 7) != (tokens, targets)
    assert sample(dataset, 8) != (tokens, targets)


def test_another_length_and_chance() -> None:
    task = SelectiveCopy(remembered=3, vocab_size=6, eval_samples=4).at(length=50)
    assert task.split("test").lengths.tolist() == [50] * 4
    same = SelectiveCopy(50, 3, 6).split("test")
    assert sample(task.split("test"), 3) == sample(same, 3)
    assert task.baselines(same) == {"chance": 1 / 4}
    with pytest.raises(UserError, match="no depth to vary"):
        task.at(depth=0.5)


def test_a_million_positions_open_and_read_at_once() -> None:
    dataset = SelectiveCopy(length=2**20).split("test")
    tokens, targets = dataset.window(0, 2**20 - 32, 2**20)
    assert tokens[16:].tolist() == [15] * 16
    found = [
        token for at in range(0, 2**20, 2**16) for token in dataset.window(0, at, at + 2**16)[0] if token
    ]
    assert found[:16] == targets[16:].tolist()


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
        assert targets[:60] == read_again(tokens[:60], 15)
        assert targets[60:] == [IGNORE] * 4
