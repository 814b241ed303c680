"""Passkey: the prompt, the key and the targets, from the sample alone."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.tasks.samples import check_windows, read_sample, read_text
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.base import BLOCK, Split, Subset
from zoo.train.tasks.passkey import Passkey, PasskeyDataset

SENTENCES = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
COMPACT: dict[str, Any] = {"form": "compact", "vocab_size": 28}
LETTERS: dict[Split, str] = {"train": "ABC", "val": "DEF", "test": "GHI"}


@pytest.fixture
def books(tmp_path: Path) -> str:
    """Three books a split, each of one letter and of another length."""
    for split, letters in LETTERS.items():
        (tmp_path / "books" / split).mkdir(parents=True)
        for size, letter in zip((30, 50, 40), letters, strict=True):
            (tmp_path / "books" / split / f"{letter}.txt").write_text(letter * size)
    return str(tmp_path / "books")


def prompt(n: int, p: int, key: str) -> str:
    """As published: five parts joined by single newlines."""
    filler = " ".join([SENTENCES] * (n // 80 + 2))
    return "\n".join(
        [
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
            "I will quiz you about the important information there.",
            filler[:p],
            f"The pass key is {key}. Remember it. {key} is the pass key.",
            filler[: n - p],
            "What is the pass key? The pass key is",
        ]
    )


def filler_of(text: str, key: str) -> str:
    before, _, after = text.partition(f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n")
    return before[149:] + after[: -len("\nWhat is the pass key? The pass key is 12345")]


@pytest.mark.parametrize("length", [253, 254, 300, 1000])
@pytest.mark.parametrize("depth", [None, 0, 0.3, 1.0])
def test_bytes_are_the_original_prompt(length: int, depth: float | None) -> None:
    task = Passkey(length=length, depth=depth, eval_samples=30)
    n = length - 253
    for document in range(30):
        text, key = read_text(task.split("val"), document)
        assert re.fullmatch("[1-9][0-9]{4}", key)
        p = text.index("\nThe pass key is") - 149
        assert text == f"{prompt(n, p, key)} {key}"
        assert len(prompt(n, p, key)) == n + 247
        if depth is not None:
            assert abs(p - depth * n) <= 0.5


def test_compact_form() -> None:
    task = Passkey(length=40, eval_samples=200, **COMPACT)
    markers = set()
    for document in range(200):
        tokens, targets = read_sample(task.split("test"), document)
        (marker,), (query,) = np.flatnonzero(tokens == 10), np.flatnonzero(tokens == 11)
        key = tokens[marker + 1 : marker + 6]
        assert key[0] != 0
        assert (key < 10).all()
        np.testing.assert_array_equal(targets, [IGNORE] * 35 + key.tolist())
        np.testing.assert_array_equal(tokens[query + 1 :], key[:4])
        filler = np.arange(12, 28)
        np.testing.assert_array_equal(tokens[:marker], np.resize(filler, marker))
        np.testing.assert_array_equal(tokens[marker + 6 : query], np.resize(filler, query - marker - 6))
        markers.add(marker)
    assert markers == set(range(40 - 11 + 1))  # from the very front to just before the question


def test_digits_are_uniform() -> None:
    dataset = Passkey(length=12, eval_samples=9000, **COMPACT).split("val")
    digits = np.array([read_sample(dataset, document)[1][-5:] for document in range(9000)])
    for position, least in enumerate((1, 0, 0, 0, 0)):
        counts = np.bincount(digits[:, position], minlength=10)[least:]
        assert ((counts - 9000 / len(counts)) ** 2 / (9000 / len(counts))).sum() < 34  # p = 0.0001


def test_training_lengths_are_uniform_or_fixed_and_held_out_lengths_fixed() -> None:
    task = Passkey(length=30, samples=4000, **COMPACT)
    lengths = task.split("train").lengths
    counts = np.bincount(lengths, minlength=31)
    assert counts[:11].sum() == 0
    assert ((counts[11:] - 200) ** 2 / 200).sum() < 50  # 20 lengths
    for document in range(50):
        tokens, targets = read_sample(task.split("train"), document)
        assert len(tokens) == lengths[document]
        assert (targets[-5:] == tokens[np.flatnonzero(tokens == 10)[0] + 1 :][:5]).all()
    assert (task.split("val").lengths == 30).all()
    assert (Passkey(length=30, samples=50, lengths="fixed", **COMPACT).split("train").lengths == 30).all()


@pytest.mark.parametrize(
    ("form", "filler"),
    [
        *((form, filler) for form in ("bytes", "compact") for filler in ("original", "random")),
        ("bytes", "books"),
    ],
)
def test_a_window_is_a_slice_of_the_sample(form: Any, filler: Any, books: str) -> None:
    length = 2 * BLOCK + 400
    dataset = Passkey(length=length, form=form, filler=filler, corpus=books).split("test")
    assert isinstance(dataset, PasskeyDataset)
    for document in range(3):
        key = dataset.params(document).key_offset
        near_key = [key - 1, key, key + 3, key + 160]
        edges = {0, 7, *near_key, BLOCK + 1, 2 * BLOCK, length - 3, length - 1, length}
        check_windows(dataset, document, pairwise(sorted(edge for edge in edges if 0 <= edge <= length)))


def test_random_fillers() -> None:
    filler = filler_of(*read_text(Passkey(length=5000, depth=0.5, filler="random").split("val"), 0))
    assert len(filler) == 5000 - 253
    assert re.fullmatch("[a-z ]+", filler)
    assert 500 < len(filler.split()) < 1000
    tokens, _ = read_sample(Passkey(length=5000, filler="random", **COMPACT).split("val"), 0)
    counts = np.bincount(tokens, minlength=28)[12:]
    assert counts.sum() == 5000 - 11
    assert ((counts - 4989 / 16) ** 2 / (4989 / 16)).sum() < 45


def test_the_filler_of_books_is_a_span_of_the_same_split(books: str) -> None:
    fillers = set()
    for split, letters in LETTERS.items():
        task = Passkey(length=253 + 200, lengths="fixed", filler="books", corpus=books, samples=40)
        for document in range(40):
            filler = filler_of(*read_text(task.split(split), document))
            assert len(filler) == 200  # more than the three books have: they repeat
            assert set(filler) == set(letters)
            assert filler[:80] == filler[120:]
            fillers.add(filler)
    assert len(fillers) > 60
    with pytest.raises(UserError, match="no corpus"):
        Passkey(filler="books", corpus="nowhere").split("val")


def test_axes() -> None:
    task = Passkey(length=100, eval_samples=64, seed=3, filler="random", **COMPACT)
    assert task.at().groups(task.split("val"), 0)["length"] == 100
    longer, at_end = task.at(length=6400, depth=0.25), task.at(depth=1)
    dataset = Subset(longer.split("test"), 50)
    keys = set()
    for document in range(50):
        tokens, targets = read_sample(dataset, document)
        assert len(tokens) == 6400
        assert np.flatnonzero(tokens == 10)[0] == round(0.25 * (6400 - 11))
        assert longer.groups(dataset, document) == {"length": 6400, "depth": pytest.approx(0.2, abs=0.1)}
        keys.add(tuple(targets[-5:].tolist()))
        end_tokens, end_targets = read_sample(at_end.split("test"), document)
        np.testing.assert_array_equal(end_targets[-5:], targets[-5:])  # the same key at every point
        np.testing.assert_array_equal(end_tokens[:50], tokens[:50])  # and the same filler
    assert len(keys) == 50
    depths = {task.groups(task.split("val"), document)["depth"] for document in range(64)}
    assert {0.1, 0.5, 0.9} <= depths <= {tenth / 10 for tenth in range(11)}
    with pytest.raises(UserError, match="width"):
        task.at(length=100, width=3)
    with pytest.raises(UserError, match="length"):
        task.at(length=10)


def test_splits_seeds_and_samples_differ_and_are_repeatable() -> None:
    def tokens(split: Split, document: int = 0, **keys: Any) -> tuple[int, ...]:
        task = Passkey(length=200, lengths="fixed", filler="random", **COMPACT, **keys)
        return tuple(read_sample(task.split(split), document)[0].tolist())

    assert tokens("train") == tokens("train", samples=5)
    different = [tokens("train"), tokens("train", 1), tokens("val"), tokens("test"), tokens("train", seed=1)]
    assert len(set(different)) == 5


@pytest.mark.parametrize("form", ["bytes", "compact"])
def test_the_config_builds_and_its_window_is_a_complete_sample(form: str) -> None:
    cfg = compose(["task=passkey", f"task.form={form}", "size=nano", "task.length=300", "task.depth=0.0"])
    assert cfg.data.seq_len == 304
    task = build.task(cfg)
    assert task.baselines(task.split("val")) == {"chance": pytest.approx((1 / 9 + 4 / 10) / 5)}
    assert task.exact_baselines(task.split("val")) == {"chance": 1 / 90_000}
    assert int(read_sample(task.split("val"), 0)[0].max()) < task.vocab_size


@pytest.mark.parametrize(
    "keys",
    [
        {"length": 252},
        {"length": 10, **COMPACT},
        {"depth": 1.5},
        {"depth": -0.1},
        {"vocab_size": 256},
        {"filler": "books", **COMPACT},
        {"samples": 0},
        {"eval_samples": 0},
    ],
)
def test_impossible_samples_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(keys))}.*found"):
        Passkey(**keys)
