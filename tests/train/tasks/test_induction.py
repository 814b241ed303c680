"""Induction heads: samples checked from their tokens alone."""

import numpy as np
import pytest

from tests.train.tasks.samples import check_windows, read_sample
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.tasks.base import BLOCK
from zoo.train.tasks.induction import Induction


@pytest.mark.parametrize("length", [4, 5, 64, 256])
def test_the_answer_is_the_token_after_the_special_one(length: int) -> None:
    dataset = Induction(length=length, eval_samples=200).split("val")
    for document in range(200):
        tokens, targets = read_sample(dataset, document)
        first, last = np.flatnonzero(tokens == 15)  # once inside, once at the end
        assert last == length - 1
        assert first < length - 2  # the answer is an ordinary token
        assert targets[last] == tokens[first + 1]
        assert (targets[:last] == IGNORE).all()


def test_positions_and_answers_are_uniform() -> None:
    dataset = Induction(length=34, eval_samples=6400).split("val")
    samples = [read_sample(dataset, document) for document in range(6400)]
    positions = np.bincount([np.flatnonzero(tokens == 15)[0] for tokens, _ in samples], minlength=32)
    answers = np.bincount([targets[-1] for _, targets in samples], minlength=15)
    assert len(positions) == 32
    assert len(answers) == 15
    for counts in (positions, answers):  # chi-square, far beyond p = 0.0001
        expected = 6400 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 85


def test_a_window_is_a_slice_of_the_sample_across_blocks() -> None:
    dataset = Induction(length=3 * BLOCK + 10, eval_samples=3).split("test")
    spans = [(0, 7), (BLOCK - 3, BLOCK + 3), (BLOCK, 2 * BLOCK), (2 * BLOCK + 1, 3 * BLOCK + 10)]
    check_windows(dataset, 1, spans)


def test_splits_seeds_and_samples_differ_and_are_repeatable() -> None:
    tokens = read_sample(Induction().split("train"), 0)[0]
    np.testing.assert_array_equal(tokens, read_sample(Induction().split("train"), 0)[0])
    for different, _ in (
        read_sample(Induction().split("train"), 1),
        read_sample(Induction().split("val"), 0),
        read_sample(Induction(seed=1).split("train"), 0),
    ):
        assert (tokens != different).mean() > 0.5


@pytest.mark.parametrize(
    "keys", [{"length": 3}, {"vocab_size": 2}, {"samples": 0}, {"eval_samples": 0}, {"seed": -1}]
)
def test_impossible_samples_are_refused(keys: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(keys))}.*found"):
        Induction(**keys)


def test_another_length_is_the_same_task() -> None:
    task = Induction(length=64, vocab_size=9, samples=50, eval_samples=7, seed=3)
    assert task.at(length=100.0) == Induction(100, 9, 50, 7, 3)
    longer, expected = task.at(length=100.0).split("test"), Induction(100, 9, 50, 7, 3).split("test")
    np.testing.assert_array_equal(longer.lengths, [100] * 7)
    for document in (0, 6):
        np.testing.assert_array_equal(read_sample(longer, document), read_sample(expected, document))
    assert task.length == 64
    with pytest.raises(UserError, match="no depth to vary"):
        task.at(length=100.0, depth=0.5)
