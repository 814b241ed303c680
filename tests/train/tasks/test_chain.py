"""Chains over chapters: what is drawn, where the evidence lies, and the exact references."""

import math
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
from zoo.train.tasks.base import Subset, unwrap
from zoo.train.tasks.chain import UNINFORMED, Chain, ChainDataset, predictive_nats

POSITIONS = np.arange(256)
REACH_61, REACH_80 = (np.maximum(0, POSITIONS - reach + 1) for reach in (61, 80))
SEGMENT = POSITIONS // 16 * 16


def chain(split: Any = "test", **settings: Any) -> ChainDataset:
    return unwrap(Chain(**settings).split(split), ChainDataset)


def visible(tokens: Any, targets: Any, position: int, first: int = 0) -> list[int]:
    """The next symbols of the same symbol in its own chapters, before a position."""
    steps = range(first, position)
    return [targets[i] for i in steps if tokens[i] == tokens[position] and targets[i] != IGNORE]


@pytest.mark.parametrize("split", ["train", "test"])
def test_next_symbols_of_a_chapter_are_asked(split: Any) -> None:
    for document in range(40):
        tokens, targets = read_sample(chain(split), document)
        same_alphabet = (tokens[:-1] < 8) == (tokens[1:] < 8)
        np.testing.assert_array_equal(targets[:-1][same_alphabet], tokens[1:][same_alphabet])
        assert (targets[:-1][~same_alphabet] == IGNORE).all()
        assert targets[-1] == IGNORE
        if split == "test":
            assert np.flatnonzero(targets == IGNORE).tolist() == [95, 191, 255]


def test_rows_are_dirichlet_and_chapters_begin_anywhere() -> None:
    """The first two symbols that follow the same one are equal with probability (a + 1) / (8 a + 1)."""
    equal, first, counts = [], np.zeros(8), np.zeros(16)
    for document in range(600):
        sample = chain().sample(document)
        counts += np.bincount(sample.tokens, minlength=16)
        first[sample.tokens[96] - 8] += 1
        for state in range(8):
            following = [
                sample.targets[i] for i in range(192) if sample.tokens[i] == state and sample.targets[i] >= 0
            ]
            equal += [following[0] == following[1]] if len(following) > 1 else []
    share, expected = np.mean(equal), 1.1 / 1.8
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(equal))
    assert chi_square(first, np.full(8, 1 / 8)) < 30  # 7 degrees of freedom
    assert counts.max() / counts.sum() < 0.1, "no constant answers it"


def test_the_loss_of_bayes_is_that_of_all_transitions_together() -> None:
    """Of n(s, y) by the Dirichlet-multinomial distribution, which knows no order."""
    for document in range(20):
        sample = chain().sample(document)
        counts = np.zeros((16, 16))
        is_target = sample.targets != IGNORE
        np.add.at(counts, (sample.tokens[is_target], sample.targets[is_target]), 1)
        nats = 0.0
        for symbol, row in enumerate(counts):
            of_alphabet = row[:8] if symbol < 8 else row[8:]
            nats -= math.lgamma(0.8) - math.lgamma(of_alphabet.sum() + 0.8)
            nats -= sum(math.lgamma(count + 0.1) - math.lgamma(0.1) for count in of_alphabet)
        assert predictive_nats(sample).sum() == pytest.approx(nats, rel=1e-12)
        np.testing.assert_array_equal(chain().bayes_nats(document, 9, 200), predictive_nats(sample)[9:200])


@pytest.mark.parametrize("first", [np.zeros(256, int), SEGMENT, REACH_61, REACH_80])
def test_the_best_prediction_counts_what_is_visible(first: Any) -> None:
    for document in range(3):
        sample = chain("train").sample(document)
        expected = []
        for position, target in enumerate(sample.targets):
            following = visible(sample.tokens, sample.targets, position, first[position])
            share = (following.count(target) + 0.1) / (len(following) + 0.8)
            expected.append(0.0 if target == IGNORE else -math.log(share))
        np.testing.assert_allclose(predictive_nats(sample, first), expected, rtol=1e-12)


def test_beyond_its_reach_a_reader_knows_nothing() -> None:
    """ln 8 exactly where the evidence lies `reach` positions back or more, something else where it is nearer
    (but where one of eight transitions, or two of sixteen, is the target's)."""
    for document in range(50):
        sample = chain().sample(document)
        distances = chain().evidence_distances(document, 0, 256)
        is_target = sample.targets != IGNORE
        for reach, first in ((61, REACH_61), (80, REACH_80)):
            nats = predictive_nats(sample, first)
            is_beyond = is_target & ((distances >= reach) | (distances < 0))
            np.testing.assert_allclose(nats[is_beyond], math.log(8), rtol=1e-15)
            is_near = (distances >= 0) & (distances < reach - 1)  # both symbols of the transition
            assert (abs(nats[is_near] - math.log(8)) > 1e-3).mean() > 0.9


def test_evidence_is_the_symbol_that_followed_the_same_one_last() -> None:
    for document in range(20):
        tokens, targets = read_sample(chain(), document)
        distances = chain().evidence_distances(document, 0, 256)
        for position in range(256):
            steps = [i for i in range(position) if tokens[i] == tokens[position] and targets[i] != IGNORE]
            is_known = targets[position] != IGNORE and steps
            assert distances[position] == (position - steps[-1] - 1 if is_known else -1)
        np.testing.assert_array_equal(chain().evidence_distances(document, 50, 77), distances[50:77])


TABLE = {  # nats: of all targets, of the return chapter, of those beyond 80 positions
    "constant": (2.079, 2.079, 2.079),
    "segment": (1.391, 1.393, 2.079),
    "reach 61": (0.989, 1.039, 2.079),
    "reach 80": (0.982, 1.039, 2.079),
    "Bayes": (0.910, 0.758, 0.932),
}


@pytest.mark.slow
def test_the_references_of_512_samples() -> None:
    """Numbers that were measured once on 512 other samples, within 4 standard errors of the difference."""
    readers = {"segment": SEGMENT, "reach 61": REACH_61, "reach 80": REACH_80, "Bayes": POSITIONS * 0}
    samples = [chain(eval_samples=512).sample(document) for document in range(512)]
    is_target = np.stack([sample.targets != IGNORE for sample in samples])
    distances = np.stack([chain().evidence_distances(document, 0, 256) for document in range(512)])
    shown = {"all": is_target, "return": is_target & (POSITIONS >= 192), "beyond": distances >= 80}
    assert shown["beyond"].sum() / 512 == pytest.approx(6.2, abs=0.6)
    for reader, expected in TABLE.items():
        if reader == "constant":
            nats = np.where(is_target, UNINFORMED, 0)
        else:
            nats = np.stack([predictive_nats(sample, readers[reader]) for sample in samples])
        for mask, value in zip(shown.values(), expected, strict=True):
            sums, counts = (nats * mask).sum(1), mask.sum(1)
            mean = sums.sum() / counts.sum()
            error = math.sqrt(((sums - mean * counts) ** 2).sum()) / counts.sum()
            assert abs(mean - value) < 0.0006 + 4 * math.sqrt(2) * error, reader


def test_baselines() -> None:
    task = Chain()
    dataset = Subset(task.split("test"), 60)
    baselines = task.baselines(dataset)
    hits = []
    for document in range(60):
        tokens, targets = read_sample(dataset, document)
        for position in np.flatnonzero(targets != IGNORE):
            following = visible(tokens, targets, position)
            options = range(8) if tokens[position] < 8 else range(8, 16)
            counts = [following.count(symbol) for symbol in options]
            likeliest = [
                symbol for symbol, count in zip(options, counts, strict=True) if count == max(counts)
            ]
            hits.append((targets[position] in likeliest) / len(likeliest))
    assert baselines["Bayes"] == pytest.approx(np.mean(hits))
    assert baselines["chance"] == 1 / 8
    assert baselines["constant"] < 0.12


def test_windows_and_other_lengths() -> None:
    dataset = chain()
    check_windows(dataset, 7, [(0, 256), (0, 1), (5, 250), (255, 256), (9, 9)])
    for length in (16, 17, 1024):
        tokens, targets = read_sample(Chain().at(length=length).split("test"), 0)
        assert len(tokens) == length
        assert (targets == IGNORE).sum() == 3
    others = (chain("val"), chain("train"), chain(seed=1))
    for different in (*(read_sample(other, 7) for other in others), read_sample(dataset, 8)):
        assert not np.array_equal(different[0], read_sample(dataset, 7)[0])


@pytest.mark.parametrize(
    ("settings", "name"), [({"length": 15}, "length"), ({"vocab_size": 15}, "vocab_size")]
)
def test_impossible_samples_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=rf"task\.{name}: expected .*, found"):
        Chain(**settings)


def test_the_config_s_window_holds_a_sample() -> None:
    cfg = compose(["task=chain", "size=nano"])
    assert build.task(cfg) == Chain()
    batch = next(iter(DataModule(build.task(cfg), 4, cfg.data.seq_len, 16, seed=0).train_dataloader()))
    assert batch.fresh.all()
    assert (batch.targets != IGNORE).sum() > 4 * 200
