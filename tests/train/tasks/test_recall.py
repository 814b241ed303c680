"""Recall over chapters: what is drawn, what is asked, and where the evidence lies."""

from typing import Any

import numpy as np
import pytest

from tests.train.tasks.mad_cases import chi_square
from tests.train.tasks.samples import check_windows, read_sample
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.data.module import DataModule
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.base import Subset
from zoo.train.tasks.recall import Recall


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_key_that_was_there_before_is_asked(split: Any) -> None:
    dataset = Recall().split(split)
    for document in range(40):
        tokens, targets = (part.tolist() for part in read_sample(dataset, document))
        value_of: dict[int, int] = {}
        for position in range(0, 256, 2):
            key, value = tokens[position : position + 2]
            assert (key < 16, 16 <= value < 24) == (True, True)
            assert targets[position] == value_of.get(key, IGNORE)
            assert targets[position + 1] == IGNORE
            assert value_of.setdefault(key, value) == value


def test_keys_and_values_are_uniform_and_values_independent_of_keys() -> None:
    dataset = Recall().split("test")
    keys, pairs = np.zeros((3, 8)), np.zeros((16, 8))
    for document in range(400):
        tokens, _ = read_sample(dataset, document)
        for chapter, (start, stop, first) in enumerate([(0, 96, 0), (96, 192, 8), (192, 256, 0)]):
            keys[chapter] += np.bincount(tokens[start:stop:2] - first, minlength=8)
        np.add.at(pairs, tuple(np.unique(tokens.reshape(-1, 2), axis=0).T - [[0], [16]]), 1)
    assert max(chi_square(of_chapter, np.full(8, 1 / 8)) for of_chapter in keys) < 30  # 7 degrees
    assert max(chi_square(of_key, np.full(8, 1 / 8)) for of_key in pairs) < 30


def test_training_chapters_differ_between_samples() -> None:
    dataset = Recall().split("train")
    alphabets = {tuple((read_sample(dataset, document)[0][::2] < 8).tolist()) for document in range(20)}
    assert len(alphabets) == 20


def test_evidence_is_the_key_s_last_value() -> None:
    dataset, beyond = Recall().split("test"), []
    for document in range(100):
        tokens, targets = read_sample(dataset, document)
        distances = dataset.evidence_distances(document, 0, 256)
        assert distances is not None
        for position in range(256):
            before = [i for i in range(0, position, 2) if tokens[i] == tokens[position]]
            is_asked = targets[position] != IGNORE
            assert distances[position] == (position - before[-1] - 1 if is_asked else -1)
        np.testing.assert_array_equal(dataset.evidence_distances(document, 100, 131), distances[100:131])
        beyond.append((distances >= 80).sum())
    # of 8 keys those that come in 32 pairs again: 8 (1 - (7/8)^32)
    assert np.mean(beyond) == pytest.approx(8 * (1 - (7 / 8) ** 32), abs=0.15)


def test_baselines() -> None:
    task = Recall()
    dataset = Subset(task.split("test"), 100)
    baselines = task.baselines(dataset)
    hits, constant = [], np.zeros(24)
    for document in range(100):
        tokens, targets = read_sample(dataset, document)
        for position in np.flatnonzero(targets != IGNORE):
            values = tokens[1:position:2]
            hits.append((values == targets[position]).mean())
            constant[targets[position]] += 1
    assert baselines["chance"] == 1 / 8
    assert baselines["any value of the sample"] == pytest.approx(np.mean(hits))
    assert baselines["constant"] == constant.max() / constant.sum()
    assert baselines["constant"] < 0.16
    assert max(task.exact_baselines(dataset).values()) < 1e-50


def test_windows_and_other_lengths() -> None:
    dataset = Recall().split("test")
    check_windows(dataset, 7, [(0, 256), (0, 1), (5, 250), (255, 256), (9, 9)])
    for length in (16, 32, 1024):
        other = Recall().at(length=length).split("test")
        assert [len(part) for part in read_sample(other, 0)] == [length, length]
        assert any((read_sample(other, document)[1] != IGNORE).any() for document in range(20))
    others = (Recall().split("val"), Recall().split("train"), Recall(seed=1).split("test"))
    for different in (*(read_sample(other, 7) for other in others), read_sample(dataset, 8)):
        assert not np.array_equal(different[0], read_sample(dataset, 7)[0])


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"length": 14}, "length"), ({"length": 17}, "length"), ({"vocab_size": 23}, "vocab_size")],
)
def test_impossible_samples_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=rf"task\.{name}: expected .*, found"):
        Recall(**settings)


def test_the_config_s_window_holds_a_sample() -> None:
    cfg = compose(["task=recall", "size=nano"])
    assert build.task(cfg) == Recall()
    batch = next(iter(DataModule(build.task(cfg), 4, cfg.data.seq_len, 16, seed=0).train_dataloader()))
    assert batch.fresh.all()
    assert (batch.targets != IGNORE).any(1).all()
