"""MAD: every kind, checked from the tokens alone; recall has more in test_mad_recall.py.

tests/golden_tasks holds the targets to the suite's own texts.
"""

from typing import Any, get_args

import numpy as np
import pytest

from tests.train.tasks.mad_cases import KINDS, chi_square, mad, samples
from tests.train.tasks.samples import check_windows, read_sample
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.data.module import DataModule
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.base import Subset
from zoo.train.tasks.mad import Kind


def test_all_kinds_are_here() -> None:
    assert list(get_args(Kind)) == KINDS


# -- the kinds whose answer never enters the text
def test_memorization() -> None:
    """One table for all splits, of different values, another one for another seed."""
    values: dict[int, int] = {}
    keys = np.zeros(127)
    for split in ("train", "val", "test"):
        for tokens, targets in samples(mad("memorization"), 200, split):
            assert tokens[1::2] == [255] * 16
            assert targets[::2] == [IGNORE] * 16
            for key, value in zip(tokens[::2], targets[1::2], strict=True):
                assert values.setdefault(key, value) == value
                keys[key] += 1
    assert sorted(values) == list(range(127))
    assert len(set(values.values())) == 127
    assert set(values.values()) <= set(range(127, 255))
    assert chi_square(keys, np.full(127, 1 / 127)) < 200  # 126 degrees of freedom, p = 0.00003
    other = mad("memorization", seed=1).table.tolist()
    assert sum(values[key] == value for key, value in enumerate(other)) < 8


def test_compression() -> None:
    symbols = np.zeros((31, 15))
    for tokens, targets in samples(mad("compression"), 400):
        text = tokens[:31]
        assert tokens[31:] == [15] * 32
        assert targets == [IGNORE] * 32 + text
        symbols[np.arange(31), text] += 1
    assert max(chi_square(of_position, np.full(15, 1 / 15)) for of_position in symbols) < 50


def test_selective_copying() -> None:
    symbols, last = np.zeros(14), 0
    for tokens, targets in samples(mad("selective_copying"), 300):
        assert tokens[239:] == [15] + [14] * 16
        text = [token for token in tokens[:239] if token != 14]
        assert len(text) == 16
        assert max(text) < 14
        assert targets == [IGNORE] * 240 + text
        np.add.at(symbols, text, 1)
        last += tokens[238] != 14
    assert chi_square(symbols, np.full(14, 1 / 14)) < 45
    assert last == pytest.approx(300 * 16 / 239, abs=20), "always in the suite"


# -- all kinds
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_a_slice_and_samples_are_repeatable(kind: str) -> None:
    dataset = mad(kind).split("test")
    length = int(dataset.lengths[0])
    check_windows(dataset, 7, [(0, length), (0, 1), (5, length - 1), (length - 1, length), (9, 9)])
    sample = read_sample(dataset, 7)
    np.testing.assert_array_equal(read_sample(mad(kind, eval_samples=8).split("test"), 7), sample)
    others = (mad(kind).split("val"), mad(kind).split("train"), mad(kind, seed=1).split("test"))
    for different in (*(read_sample(other, 7) for other in others), read_sample(dataset, 8)):
        assert not np.array_equal(different[0], sample[0])


@pytest.mark.parametrize("kind", KINDS)
def test_no_constant_answers_a_kind(kind: str) -> None:
    task = mad(kind, samples=200)
    dataset = Subset(task.split("val"), 200)
    baselines, exact = task.baselines(dataset), task.exact_baselines(dataset)
    chance = {"memorization": 1 / 128, "compression": 1 / 15, "selective_copying": 1 / 14}.get(kind, 1 / 8)
    assert baselines["chance"] == chance
    assert baselines["constant"] < chance + 0.03
    assert baselines["position"] < chance + 0.03
    assert max(exact.values()) < 0.05
    assert ("commonest value" in baselines) == ("recall" in kind)
    assert max(baselines.values()) < 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_all_next_symbols_are_targets_in_training_alone(kind: str) -> None:
    if "recall" not in kind:
        with pytest.raises(UserError, match=r"train_on.*found all"):
            mad(kind, train_on="all")
        return
    asked, every = mad(kind), mad(kind, train_on="all")
    for (tokens, targets), (same, shifted) in zip(
        samples(asked, 20, "train"), samples(every, 20, "train"), strict=True
    ):
        assert same == tokens
        assert shifted == [*tokens[1:], targets[-1]]
    assert samples(every, 20) == samples(asked, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_other_points_of_the_axes(kind: str) -> None:
    if kind == "memorization":
        with pytest.raises(UserError, match="no length to vary with kind=memorization"):
            mad(kind).at(length=64)
    else:
        longer = mad(kind).at(length=300)
        assert samples(longer, 2) == samples(mad(kind, length=300), 2)
    if kind in ("in_context_recall", "noisy_in_context_recall"):
        ((tokens, _),) = samples(mad(kind).at(keys=1), 1)
        assert len({token for token in tokens if token < 8}) == 1
    else:
        with pytest.raises(UserError, match=r"task\.keys.*found"):
            mad(kind).at(keys=2)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"length": 3}, "length"),
        ({"vocab_size": 3}, "vocab_size"),
        ({"kind": "noisy_in_context_recall", "vocab_size": 19}, "vocab_size"),
        ({"kind": "fuzzy_in_context_recall", "length": 11}, "length"),
        ({"kind": "fuzzy_in_context_recall", "vocab_size": 6}, "vocab_size"),
        ({"kind": "memorization", "length": 1}, "length"),
        ({"kind": "selective_copying", "length": 32}, "remembered"),
        ({"kind": "selective_copying", "remembered": 0}, "remembered"),
        ({"keys": 0}, "keys"),
        ({"keys": 9}, "keys"),
        ({"rewrite": 1.5}, "rewrite"),
        ({"noise": -0.1}, "noise"),
        ({"kind": "compression", "rewrite": 0.5}, "rewrite"),
        ({"samples": 0}, "samples"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_samples_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*found"):
        mad(**{"kind": "in_context_recall"} | settings)


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_has_the_suite_s_sizes_and_a_window_holds_a_sample(kind: str) -> None:
    cfg = compose(["task=mad", f"task.kind={kind}", "size=nano"])
    task = build.task(cfg)
    assert task == mad(kind)
    seq_len = cfg.data.seq_len
    assert seq_len - 16 < int(task.split("train").lengths[0]) <= seq_len
    batch = next(iter(DataModule(task, 4, seq_len, 16, seed=0).train_dataloader()))
    assert (batch.targets != IGNORE).any(1).all()
    assert batch.fresh.all()
