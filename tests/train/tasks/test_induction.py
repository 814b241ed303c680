"""Induction heads: what a sample is, from the sample alone."""

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.tasks.base import BLOCK, Dataset
from zoo.train.tasks.induction import Induction


def sample(dataset: Dataset, document: int) -> tuple[np.ndarray, np.ndarray]:
    return dataset.window(document, 0, int(dataset.lengths[document]))


@pytest.mark.parametrize("length", [4, 5, 64, 256])
def test_the_answer_is_what_followed_the_special_token(length: int) -> None:
    dataset = Induction(length=length, eval_samples=200).split("val")
    for document in range(200):
        tokens, targets = sample(dataset, document)
        first, last = np.flatnonzero(tokens == 15)  # once inside, once at the end
        assert last == length - 1
        assert first < length - 2  # the answer is an ordinary token
        assert targets[last] == tokens[first + 1]
        assert (targets[:last] == IGNORE).all()


def test_places_and_answers_are_uniform() -> None:
    dataset = Induction(length=34, eval_samples=6400).split("val")
    pairs = [sample(dataset, document) for document in range(6400)]
    places = np.bincount([np.flatnonzero(tokens == 15)[0] for tokens, _ in pairs], minlength=32)
    answers = np.bincount([targets[-1] for _, targets in pairs], minlength=15)
    assert len(places) == 32
    assert len(answers) == 15
    for counts in (places, answers):  # chi-square, far beyond p = 0.0001
        expected = 6400 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 85


def test_a_window_is_a_slice_of_the_sample_across_blocks() -> None:
    dataset = Induction(length=3 * BLOCK + 10, eval_samples=3).split("test")
    tokens, targets = sample(dataset, 1)
    for start, stop in ((0, 7), (BLOCK - 3, BLOCK + 3), (BLOCK, 2 * BLOCK), (2 * BLOCK + 1, 3 * BLOCK + 10)):
        piece = dataset.window(1, start, stop)
        np.testing.assert_array_equal(piece[0], tokens[start:stop])
        np.testing.assert_array_equal(piece[1], targets[start:stop])
    with pytest.raises(IndexError):
        dataset.window(1, 0, 3 * BLOCK + 11)


def test_splits_seeds_and_samples_differ_and_are_repeatable() -> None:
    one = sample(Induction().split("train"), 0)[0]
    np.testing.assert_array_equal(one, sample(Induction().split("train"), 0)[0])
    for other in (
        sample(Induction().split("train"), 1),
        sample(Induction().split("val"), 0),
        sample(Induction(seed=1).split("train"), 0),
    ):
        assert (one != other[0]).mean() > 0.5


@pytest.mark.parametrize(
    "keys", [{"length": 3}, {"vocab_size": 2}, {"samples": 0}, {"eval_samples": 0}, {"seed": -1}]
)
def test_impossible_samples_are_refused(keys: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(keys))}.*found"):
        Induction(**keys)


def test_another_length_is_the_same_task() -> None:
    task = Induction(length=64, vocab_size=9, samples=50, eval_samples=7, seed=3)
    longer, same = task.at(length=100.0), Induction(100, 9, 50, 7, 3)
    np.testing.assert_array_equal(longer.split("test").lengths, [100] * 7)
    for document in (0, 6):
        for ours, theirs in zip(
            sample(longer.split("test"), document), sample(same.split("test"), document), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    assert task.length == 64
    with pytest.raises(UserError, match="no depth to vary"):
        task.at(length=100.0, depth=0.5)
