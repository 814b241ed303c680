"""RMT's algorithmic tasks: samples checked from their tokens alone."""

from typing import Any

import numpy as np
import pytest

from tests.train.tasks.samples import check_windows, read_sample
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.algorithmic import VOCAB_SIZES, Algorithmic
from zoo.train.tasks.base import Dataset, Subset


def make(kind: Any, **settings: Any) -> Algorithmic:
    return Algorithmic(kind=kind, vocab_size=VOCAB_SIZES[kind], **settings)


def read_line(dataset: Dataset, document: int) -> tuple[list[int], list[int]]:
    """The symbols before the first target, and the targets, which are read one position later."""
    tokens, targets = (row.tolist() for row in read_sample(dataset, document))
    count = sum(target != IGNORE for target in targets)
    answer = targets[len(targets) - count :]
    assert tokens[len(tokens) - count + 1 :] == answer[:-1]
    return tokens[: len(tokens) - count + 1], answer


@pytest.mark.parametrize("length", [2, 9, 24])
def test_copies_and_reversals(length: int) -> None:
    for document in range(50):
        (*inputs, start), answer = read_line(make("copy", length=length).split("val"), document)
        assert (len(inputs), start) == (length, 1)
        assert answer == 2 * inputs
        (*inputs, start), answer = read_line(make("reverse", length=length).split("val"), document)
        assert (len(inputs), start) == (length, 1)
        assert answer[::-1] == inputs


@pytest.mark.parametrize("length", [2, 10, 11, 26])
def test_a_key_has_one_value(length: int) -> None:
    dataset = make("retrieval", length=length).split("test")
    for document in range(100):
        (*pairs, key, start), answer = read_line(dataset, document)
        keys, values = pairs[::2], pairs[1::2]
        assert (len(keys), len(set(keys)), start) == (length, length, 10)
        assert answer == [dict(zip(keys, values, strict=True))[key]]
        assert len(set(values)) == length or length > 10
        assert set(values) <= set(range(10))
        assert set(keys) <= set(range(11, 37))


def check_uniform(values: Any, low: int, high: int) -> None:
    """Chi-square at 5 standard deviations of its own distribution."""
    counts = np.bincount(values, minlength=high)
    assert counts.sum() == counts[low:high].sum()
    counts, freedom = counts[low:high], high - low - 1
    expected = counts.sum() / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_symbols_keys_values_and_the_key_at_the_end_are_uniform() -> None:
    dataset = make("copy").split("val")
    check_uniform(np.array([read_line(dataset, document)[0][:-1] for document in range(300)]).ravel(), 2, 12)
    dataset = make("copy", alphabet_size=3).split("val")
    check_uniform(np.array([read_line(dataset, document)[0][:-1] for document in range(99)]).ravel(), 2, 5)
    dataset = make("retrieval", length=4).split("train")
    lines = [read_line(dataset, document) for document in range(2000)]
    check_uniform([line[0] for line, _ in lines], 11, 37)
    check_uniform([answer[0] for _, answer in lines], 0, 10)
    check_uniform([line[::2].index(line[-2]) for line, _ in lines], 0, 4)


def test_baselines_are_what_a_guess_reaches() -> None:
    task = make("retrieval", length=5, eval_samples=200)
    assert task.baselines(task.split("val")) == pytest.approx({"chance": 0.1, "any of the sample": 1 / 5})
    assert task.exact_baselines(task.split("val")) == pytest.approx(
        {"chance": 0.1, "any of the sample": 1 / 5}
    )
    task = make("reverse", length=3, alphabet_size=4, eval_samples=200)
    one = Subset(task.split("val"), 1)
    answer = read_line(one, 0)[1]
    shares = [answer.count(symbol) / 3 for symbol in answer]
    assert task.baselines(one) == pytest.approx({"chance": 1 / 4, "any of the sample": sum(shares) / 3})
    expected = {"chance": 1 / 4**3, "any of the sample": np.prod(shares)}
    assert task.exact_baselines(one) == pytest.approx(expected)


def test_lengths_of_training_samples_and_of_others() -> None:
    assert set(make("copy", length=5, samples=50).split("train").lengths) == {15}
    task = make("reverse", length=5, lengths="uniform", samples=3000, eval_samples=9)
    check_uniform(task.split("train").lengths // 2, 1, 6)
    read_line(task.split("train"), 7)
    longer = task.at(length=50.0)
    assert longer == make("reverse", length=50, lengths="uniform", samples=3000, eval_samples=9)
    assert longer.split("test").lengths.tolist() == [100] * 9
    assert longer.groups(longer.split("test"), 1) == {"length": 50}


@pytest.mark.parametrize("kind", VOCAB_SIZES)
def test_the_window_is_a_sample(kind: str) -> None:
    cfg = compose(["task=algorithmic", f"task.kind={kind}", "size=nano", "size.segment_len=1"])
    task = build.task(cfg)
    assert set(task.split("train").lengths) == {cfg.data.seq_len}
    assert task.vocab_size == VOCAB_SIZES[kind]


def test_windows_are_slices_and_splits_and_seeds_differ() -> None:
    dataset = make("copy").split("test")
    check_windows(dataset, 3, [(0, 72), (0, 1), (20, 30), (71, 72), (9, 9)])
    for different in (make("copy").split("val"), make("copy", seed=1).split("test")):
        assert not np.array_equal(read_sample(different, 3)[0], read_sample(dataset, 3)[0])
    np.testing.assert_array_equal(
        read_sample(make("copy", eval_samples=4).split("test"), 3)[0], read_sample(dataset, 3)[0]
    )


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("copy", {"length": 1}, "task.length: expected at least 2, found 1"),
        ("retrieval", {"length": 27}, "task.length: expected at most 26 pairs, found 27"),
        ("copy", {"alphabet_size": 11}, "task.alphabet_size: expected 2 to 10, found 11"),
        ("copy", {"samples": 0}, "expected at least 1, found 0"),
    ],
)
def test_impossible_settings_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(kind, **settings)
    with pytest.raises(UserError, match="vocab_size: expected at least 37, found 12"):
        Algorithmic(kind="retrieval", vocab_size=12)
