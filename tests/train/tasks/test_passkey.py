"""Passkey: the prompt, the key and what is asked, from the sample alone."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.base import BLOCK, Dataset, Subset
from zoo.train.tasks.passkey import Passkey

SENTENCES = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
COMPACT: dict[str, Any] = {"form": "compact", "vocab_size": 28}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three books a split, each of one letter and of another length."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    for split, letters in (("train", "ABC"), ("val", "DEF"), ("test", "GHI")):
        (tmp_path / "shelf" / split).mkdir(parents=True)
        for size, letter in zip((30, 50, 40), letters, strict=True):
            (tmp_path / "shelf" / split / f"{letter}.txt").write_text(letter * size)
    return tmp_path / "shelf"


def sample(dataset: Dataset, document: int) -> tuple[np.ndarray, np.ndarray]:
    return dataset.window(document, 0, int(dataset.lengths[document]))


def said(dataset: Dataset, document: int) -> tuple[str, str]:
    """A sample of bytes as text, from behind END to the key's last digit, and what is asked of it."""
    tokens, targets = sample(dataset, document)
    assert tokens[0] == 256
    asked = targets != IGNORE
    assert asked[-5:].all()
    assert asked.sum() == 5
    np.testing.assert_array_equal(tokens[1:][asked[:-1]], targets[asked][:-1])
    return bytes([*tokens[1:].tolist(), int(targets[-1])]).decode(), bytes(targets[asked].tolist()).decode()


def prompt(n: int, p: int, key: str) -> str:
    """As published: five pieces joined by single newlines."""
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


@pytest.mark.parametrize("length", [253, 254, 300, 1000])
@pytest.mark.parametrize("depth", [None, 0, 0.3, 1.0])
def test_bytes_are_the_original_prompt(length: int, depth: float | None) -> None:
    task = Passkey(length=length, depth=depth, eval_samples=30)
    n = length - 253
    for document in range(30):
        text, key = said(task.split("val"), document)
        assert re.fullmatch("[1-9][0-9]{4}", key)
        p = text.index("\nThe pass key is") - 149
        assert text == f"{prompt(n, p, key)} {key}"
        assert len(prompt(n, p, key)) == n + 247
        if depth is not None:
            assert abs(p - depth * n) <= 0.5


def test_compact_form() -> None:
    task = Passkey(length=40, eval_samples=200, **COMPACT)
    places = set()
    for document in range(200):
        tokens, targets = sample(task.split("test"), document)
        (marker,), (query,) = np.flatnonzero(tokens == 10), np.flatnonzero(tokens == 11)
        key = tokens[marker + 1 : marker + 6]
        assert key[0] != 0
        assert (key < 10).all()
        np.testing.assert_array_equal(targets, [IGNORE] * 35 + key.tolist())
        np.testing.assert_array_equal(tokens[query + 1 :], key[:4])
        filler = np.arange(12, 28)
        np.testing.assert_array_equal(tokens[:marker], np.resize(filler, marker))
        np.testing.assert_array_equal(tokens[marker + 6 : query], np.resize(filler, query - marker - 6))
        places.add(marker)
    assert places == set(range(40 - 11 + 1))  # from the very front to just before the question


def test_digits_are_uniform() -> None:
    dataset = Passkey(length=12, eval_samples=9000, **COMPACT).split("val")
    digits = np.array([sample(dataset, document)[1][-5:] for document in range(9000)])
    for place, least in enumerate((1, 0, 0, 0, 0)):
        counts = np.bincount(digits[:, place], minlength=10)[least:]
        assert ((counts - 9000 / len(counts)) ** 2 / (9000 / len(counts))).sum() < 34  # p = 0.0001


def test_lengths_to_train_on_are_uniform_or_fixed_and_held_out_ones_fixed() -> None:
    task = Passkey(length=30, samples=4000, **COMPACT)
    lengths = task.split("train").lengths
    counts = np.bincount(lengths, minlength=31)
    assert counts[:11].sum() == 0
    assert ((counts[11:] - 200) ** 2 / 200).sum() < 50  # 20 lengths
    for document in range(50):
        tokens, targets = sample(task.split("train"), document)
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
def test_a_window_is_a_slice_of_the_sample(form: Any, filler: Any, shelf: Path) -> None:
    length = 2 * BLOCK + 400
    dataset = Passkey(length=length, form=form, filler=filler, corpus=str(shelf)).split("test")
    for document in range(3):
        tokens, targets = sample(dataset, document)
        (place,) = dataset.sample(document)[2:3]  # type: ignore[attr-defined]
        cuts = [
            0,
            7,
            place - 1,
            place,
            place + 3,
            place + 160,
            BLOCK + 1,
            2 * BLOCK,
            length - 3,
            length - 1,
            length,
        ]
        cuts = sorted(cut for cut in cuts if 0 <= cut <= length)
        for start, stop in itertools.pairwise(cuts):
            piece = dataset.window(document, start, stop)
            np.testing.assert_array_equal(piece[0], tokens[start:stop])
            np.testing.assert_array_equal(piece[1], targets[start:stop])
    with pytest.raises(IndexError):
        dataset.window(0, 0, length + 1)


def test_random_fillers() -> None:
    text, key = said(Passkey(length=5000, depth=0.5, filler="random").split("val"), 0)
    before, _, behind = text.partition(f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n")
    filler = before[149:] + behind[: -len("\nWhat is the pass key? The pass key is 12345")]
    assert len(filler) == 5000 - 253
    assert re.fullmatch("[a-z ]+", filler)
    assert 500 < len(filler.split()) < 1000
    tokens, _ = sample(Passkey(length=5000, filler="random", **COMPACT).split("val"), 0)
    counts = np.bincount(tokens, minlength=28)[12:]
    assert counts.sum() == 5000 - 11
    assert ((counts - 4989 / 16) ** 2 / (4989 / 16)).sum() < 45


def test_books_fill_with_a_span_of_their_own_split(shelf: Path) -> None:
    spelled = {}
    for split, letters in (("train", "ABC"), ("val", "DEF"), ("test", "GHI")):
        task = Passkey(length=253 + 200, lengths="fixed", filler="books", corpus=str(shelf), samples=40)
        for document in range(40):
            text, key = said(task.split(split), document)  # type: ignore[arg-type]
            before, _, behind = text.partition(
                f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
            )
            filler = before[149:] + behind[: -len("\nWhat is the pass key? The pass key is 12345")]
            assert len(filler) == 200  # more than the three books have: they go round
            assert set(filler) == set(letters)
            assert filler[:80] == filler[120:]
            spelled[filler] = split
    assert len(spelled) > 60
    with pytest.raises(UserError, match="no corpus"):
        Passkey(filler="books", corpus="nowhere").split("val")


def test_axes() -> None:
    task = Passkey(length=100, eval_samples=64, seed=3, filler="random", **COMPACT)
    assert task.at().groups(task.split("val"), 0)["length"] == 100
    far = task.at(length=6400, depth=0.25)
    dataset = Subset(far.split("test"), 50)
    keys = []
    for document in range(50):
        tokens, targets = sample(dataset, document)
        assert len(tokens) == 6400
        assert np.flatnonzero(tokens == 10)[0] == round(0.25 * (6400 - 11))
        assert far.groups(dataset, document) == {"length": 6400, "depth": pytest.approx(0.2, abs=0.1)}
        keys.append(targets[-5:].tolist())
        near = sample(task.at(depth=1).split("test"), document)
        assert near[1][-5:].tolist() == keys[-1]  # the same key at every point
        np.testing.assert_array_equal(near[0][:50], tokens[:50])  # and the same filler
    assert len(set(map(tuple, keys))) == 50
    depths = {task.groups(task.split("val"), document)["depth"] for document in range(64)}
    assert {0.1, 0.5, 0.9} <= depths <= {tenth / 10 for tenth in range(11)}
    with pytest.raises(UserError, match="width"):
        task.at(length=100, width=3)
    with pytest.raises(UserError, match="length"):
        task.at(length=10)


def test_splits_seeds_and_samples_differ_and_are_repeatable() -> None:
    def one(split: Any, document: int = 0, **keys: Any) -> list[int]:
        task = Passkey(length=200, lengths="fixed", filler="random", **COMPACT, **keys)
        return sample(task.split(split), document)[0].tolist()

    assert one("train") == one("train", samples=5)
    others = [one("train"), one("train", 1), one("val"), one("test"), one("train", seed=1)]
    assert len(set(map(tuple, others))) == 5


@pytest.mark.parametrize("form", ["bytes", "compact"])
def test_the_config_builds_and_its_window_is_a_whole_sample(form: str) -> None:
    cfg = compose(["task=passkey", f"task.form={form}", "size=nano", "task.length=300", "task.depth=0.0"])
    assert cfg.data.seq_len == 304
    task = build.task(cfg)
    assert task.baselines(task.split("val")) == {"chance": pytest.approx((1 / 9 + 4 / 10) / 5)}
    assert int(sample(task.split("val"), 0)[0].max()) < task.vocab_size


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
