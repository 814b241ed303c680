"""ARMT's associative retrieval: samples checked from their tokens alone."""

from typing import Any

import numpy as np
import pytest

from tests.train.tasks.samples import check_windows, read_sample
from tests.train.tasks.test_algorithmic import check_uniform, read_line
from zoo.errors import UserError
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.base import Dataset, Subset
from zoo.train.tasks.pairs import Pairs


def read_pairs(
    dataset: Dataset, document: int, k: int = 1, v: int = 1
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], tuple[int, ...], tuple[int, ...]]:
    """Keys, values, the key at the end, and the targets."""
    line, answer = read_line(dataset, document)
    segments = [line[start : start + k + v + 2] for start in range(0, len(line), k + v + 2)]
    *pairs, query = segments
    assert len(query) == k + 1
    assert query[-1] == 17
    assert all((pair[k], pair[-1]) == (16, 18) for pair in pairs)
    assert len(answer) == v
    return (
        [(*pair[:k],) for pair in pairs],
        [(*pair[k + 1 : -1],) for pair in pairs],
        (*query[:k],),
        (*answer,),
    )


@pytest.mark.parametrize(("k", "v", "pairs"), [(1, 1, 16), (2, 3, 10), (3, 1, 200), (1, 2, 2)])
@pytest.mark.parametrize("rewrite", [False, True])
def test_the_answer_is_the_last_value_of_the_key(k: int, v: int, pairs: int, rewrite: bool) -> None:
    dataset = Pairs(pairs=pairs, key_size=k, value_size=v, rewrite=rewrite).split("val")
    for document in range(20):
        keys, values, key, answer = read_pairs(dataset, document, k, v)
        assert len(keys) == pairs
        assert rewrite or len(set(keys)) == pairs
        assert dict(zip(keys, values, strict=True))[key] == answer  # of equal keys a dict keeps the last
        assert {digit for digits in (*keys, *values) for digit in digits} <= set(range(16))


def test_keys_values_and_the_key_at_the_end_are_uniform() -> None:
    dataset = Pairs(pairs=5).split("train")
    samples = [read_pairs(dataset, document) for document in range(1500)]
    check_uniform([keys[0][0] for keys, *_ in samples], 0, 16)
    check_uniform([answer[0] for *_, answer in samples], 0, 16)
    check_uniform([keys.index(key) for keys, _, key, _ in samples if len(keys) == 5], 0, 5)
    dataset = Pairs(pairs=2, key_size=2).split("val")
    first_keys = np.array([read_pairs(dataset, document, 2)[0][0] for document in range(512)])
    check_uniform(first_keys[:, 0], 0, 16)
    check_uniform(first_keys[:, 1], 0, 16)


def test_a_rewritten_key_is_as_likely_as_a_key_that_came_once() -> None:
    """Of three pairs with two keys the question is the repeated one in half of the samples, not in 2/3."""
    dataset = Pairs(pairs=3, rewrite=True, eval_samples=3000).split("val")
    samples = [read_pairs(dataset, document) for document in range(3000)]
    repeated = [keys.count(key) == 2 for keys, _, key, _ in samples if len(set(keys)) == 2]
    check_uniform(np.array(repeated, int), 0, 2)
    assert abs(len(repeated) / 3000 - 45 / 256) < 0.035  # 3 * 15 / 16^2


def test_baselines_are_what_copying_reaches() -> None:
    task = Pairs(pairs=8, value_size=2, rewrite=True, eval_samples=300)
    subset = Subset(task.split("val"), 250)
    samples = [read_pairs(subset, document, 1, 2) for document in range(250)]
    hits = np.array([[np.equal(value, answer) for value in values] for _, values, _, answer in samples])
    assert task.baselines(subset) == pytest.approx(
        {"chance": 1 / 16, "last value": hits[:, -1].mean(), "any value of the sample": hits.mean()}
    )
    exact = hits.all(2)
    assert task.exact_baselines(subset) == pytest.approx(
        {"chance": 1 / 256, "last value": exact[:, -1].mean(), "any value of the sample": exact.mean()}
    )
    assert hits.mean() < 0.3


def test_numbers_of_pairs() -> None:
    task = Pairs(pairs=4, samples=3000, eval_samples=3)
    check_uniform((task.split("train").lengths - 2) // 4, 1, 5)
    assert task.split("test").lengths.tolist() == [18] * 3
    assert set(Pairs(pairs=4, lengths="fixed", samples=30).split("train").lengths) == {18}
    more = task.at(pairs=9)
    assert more == Pairs(pairs=9, samples=3000, eval_samples=3)
    assert more.groups(more.split("test"), 0) == {"pairs": 9}
    with pytest.raises(UserError, match="no length to vary"):
        task.at(length=9)


def test_a_window_is_a_sample_and_a_segment_a_pair() -> None:
    cfg = compose(["task=pairs", "size=nano", "size.segment_len=6", "task.key_size=2", "task.value_size=2"])
    assert cfg.data.seq_len == 11 * 6
    dataset = build.task(cfg).split("test")
    assert set(dataset.lengths) == {11 * 6 - 2}
    assert read_sample(dataset, 0)[0][5:60:6].tolist() == [18] * 10


def test_windows_are_slices_and_splits_and_seeds_differ() -> None:
    dataset = Pairs().split("test")
    check_windows(dataset, 3, [(0, 42), (0, 1), (20, 30), (41, 42), (9, 9)])
    for different in (Pairs().split("val"), Pairs(seed=1).split("test")):
        assert not np.array_equal(read_sample(different, 3)[0], read_sample(dataset, 3)[0])
    np.testing.assert_array_equal(
        read_sample(Pairs(eval_samples=4).split("test"), 3)[0], read_sample(dataset, 3)[0]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": 1}, "task.pairs: expected at least 2, found 1"),
        ({"pairs": 17}, "task.pairs: expected at most the 16 keys of key_size=1, or rewrite=true, found 17"),
        ({"key_size": 0}, "expected 1 to 8 and at least 1, found 0 and 1"),
        ({"value_size": 0}, "expected 1 to 8 and at least 1, found 1 and 0"),
        ({"vocab_size": 18}, "task.vocab_size: expected at least 19, found 18"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pairs(**settings)
