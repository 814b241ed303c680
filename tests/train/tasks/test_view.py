"""Readers of a part of a sample: oracles that are given its tokens alone, against the chances of its task.

An oracle sees tokens, None for those out of view, and gives the symbols that it would say, each as likely.
"""

import importlib
import pkgutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo.train.tasks
from tests.train.tasks.babi import movements
from tests.train.tasks.mad_cases import mad
from tests.train.tasks.samples import read_sample
from zoo.module import IGNORE
from zoo.train.tasks.algorithmic import Algorithmic
from zoo.train.tasks.babilong import Babilong
from zoo.train.tasks.base import SPLITS, Dataset, SampleDataset, Subset, Task
from zoo.train.tasks.chain import Chain
from zoo.train.tasks.induction import Induction
from zoo.train.tasks.mqar import Mqar
from zoo.train.tasks.needle import Needle
from zoo.train.tasks.pairs import Pairs
from zoo.train.tasks.passkey import Passkey
from zoo.train.tasks.recall import Recall
from zoo.train.tasks.selective_copy import SelectiveCopy

Tokens = list[int | None]
Oracle = Callable[[Tokens, int, int], set[int]]
"""From the tokens up to and with the one at a position, and the index of its target among the sample's."""


def passkey_oracle(tokens: Tokens, position: int, index: int) -> set[int]:
    """The digits that stand before filler are the key's last ones; the answer stands at the end."""
    start = position - index  # of the query
    digits = [token for token in tokens[:start] if token is not None and token < 10]
    missing = 5 - len(digits)
    if index >= missing:
        return {digits[index - missing]}
    return set(range(0 if index else 1, 10))


def distinct_values(pairs: int, values: set[int]) -> Oracle:
    """k1 v1 k2 v2 … of different values; the key of the question is the last token that is a key."""

    def oracle(tokens: Tokens, position: int, index: int) -> set[int]:
        shown = tokens[: 2 * pairs]
        key = tokens[position] if tokens[position] in shown[::2] or len(values) > 10 else tokens[position - 1]
        value_of = {k: v for k, v in zip(shown[::2], shown[1::2], strict=True) if k is not None}
        if key in value_of:
            return {value_of[key]}
        single = [v for k, v in zip(shown[::2], shown[1::2], strict=True) if k is None and v is not None]
        return set(single) or values - set(value_of.values())

    return oracle


def independent_values(values: range) -> Oracle:
    """Keys before their values; the key is the token at the position."""

    def oracle(tokens: Tokens, position: int, index: int) -> set[int]:
        for earlier in range(position - 2, -1, -2):
            if tokens[earlier] == tokens[position]:
                return {tokens[earlier + 1]}  # type: ignore[arg-type]
        return set(values)

    return oracle


def retrieval_of_many(tokens: Tokens, position: int, index: int) -> set[int]:
    """More pairs than values: they are independent."""
    shown, key = tokens[: position - 1], tokens[position - 1]
    value_of = {k: v for k, v in zip(shown[::2], shown[1::2], strict=True) if k is not None}
    return {value_of[key]} if key in value_of else set(range(10))  # type: ignore[arg-type]


def induction_oracle(tokens: Tokens, position: int, index: int) -> set[int]:
    if 15 in tokens[:position]:
        return {tokens[tokens.index(15) + 1]}  # type: ignore[arg-type]
    return set(range(15))


def ordered(noise: int, first_symbol: int, symbols: int, count: int) -> Oracle:
    """`count` symbols among noise, in their order at the end: those in view are the last ones."""

    def oracle(tokens: Tokens, position: int, index: int) -> set[int]:
        alphabet = range(first_symbol, first_symbol + symbols)
        shown = [token for token in tokens if token is not None and token in alphabet and token != noise]
        missing = count - len(shown)
        return {shown[index - missing]} if index >= missing else set(alphabet)

    return oracle


def copy_oracle(tokens: Tokens, position: int, index: int) -> set[int]:
    size = (len(tokens) - index - 1) // 1
    source = tokens[index] if index < size else tokens[index + 1]
    return set(range(2, 12)) if source is None else {source}


def reverse_oracle(tokens: Tokens, position: int, index: int) -> set[int]:
    source = tokens[position - 2 * index - 1]
    return set(range(2, 12)) if source is None else {source}


def pairs_oracle(tokens: Tokens, position: int, index: int) -> set[int]:
    """Pairs of 2 and 3 digits."""
    question = position - index - 2
    for start in range(question - 7, -1, -7):
        digit = tokens[start + 3 + index]
        if tokens[start : start + 2] == tokens[question : question + 2] and digit is not None:
            return {digit}
    return set(range(16))


def chain_oracle(tokens: Tokens, position: int, index: int) -> set[int]:
    """The symbols that followed this one most often in view, within its alphabet."""
    symbol = tokens[position]
    assert symbol is not None
    alphabet = range(0, 8) if symbol < 8 else range(8, 16)
    followers = [b for a, b in pairwise(tokens) if a == symbol and b in alphabet]
    counts = {state: followers.count(state) for state in alphabet}
    return {state for state, count in counts.items() if count == max(counts.values())}


CASES: dict[str, tuple[Task, Oracle]] = {
    "passkey": (Passkey(form="compact", filler="random", length=60, vocab_size=28), passkey_oracle),
    "recall": (Recall(length=256), independent_values(range(16, 24))),
    "chain": (Chain(length=256), chain_oracle),
    "mqar": (Mqar(length=64, pairs=6, vocab_size=256), distinct_values(6, set(range(128, 256)))),
    "induction": (Induction(length=30), induction_oracle),
    "selective_copy": (SelectiveCopy(length=40, remembered=5), ordered(0, 1, 14, 5)),
    "pairs": (Pairs(pairs=6, key_size=2, value_size=3), pairs_oracle),
    "copy": (Algorithmic("copy", 9), copy_oracle),
    "reverse": (Algorithmic("reverse", 9), reverse_oracle),
    "retrieval": (Algorithmic("retrieval", 9, vocab_size=37), distinct_values(9, set(range(10)))),
    "retrieval of many": (Algorithmic("retrieval", 20, vocab_size=37), retrieval_of_many),
    "mad recall": (mad("in_context_recall", length=64), independent_values(range(8, 16))),
    "mad compression": (mad("compression"), ordered(15, 0, 15, 31)),
    "mad copying": (mad("selective_copying", length=128), ordered(14, 0, 14, 16)),
}
KEY_BEFORE: dict[str, Callable[[int], int]] = {
    **dict.fromkeys(("recall", "induction", "mad recall", "retrieval of many"), lambda index: 1),
    "pairs": lambda index: 3 + index,
}
"""How far before the evidence its key begins.  A value whose key isn't seen costs nothing to say where all
are independent, and is right where it is the answer: the oracles don't, so such targets are left out."""
BY_TEXT = {"NeedleDataset", "BabilongDataset"}
"""Tested below, by what stands in their texts."""


def oracle_chances(
    oracle: Oracle, tokens: list[int], targets: np.ndarray, positions: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    chances = []
    for index, (position, start) in enumerate(zip(positions.tolist(), starts.tolist(), strict=True)):
        visible: Tokens = [None] * start + tokens[start : position + 1]  # type: ignore[assignment]
        answers = oracle(visible, position, index)
        chances.append((targets[position] in answers) / max(1, len(answers)))
    return np.array(chances)


def samples(task: Task, count: int) -> list[tuple[Dataset, int, list[int], np.ndarray, np.ndarray]]:
    dataset = task.split("test")
    rows = []
    for document in range(count):
        tokens, targets = read_sample(dataset, document)
        rows.append((dataset, document, tokens.tolist(), targets, np.flatnonzero(targets != IGNORE)))
    return rows


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("segment_len", [7, 16])
def test_an_oracle_of_the_last_segment_has_the_chances_of_the_task(name: str, segment_len: int) -> None:
    task, oracle = CASES[name]
    for dataset, document, tokens, targets, positions in samples(task, 12):
        starts = positions // segment_len * segment_len
        chances = dataset.view_chances(document, positions, starts)
        is_single = without_its_key(name, dataset, document, positions, starts)
        np.testing.assert_array_equal(chances[is_single], 1.0)  # type: ignore[index]
        expected = oracle_chances(oracle, tokens, targets, positions, starts)
        np.testing.assert_allclose(chances[~is_single], expected[~is_single])  # type: ignore[index]


def without_its_key(
    name: str, dataset: Dataset, document: int, positions: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Targets whose evidence is in view without its key."""
    distances = dataset.evidence_distances(document, 0, int(dataset.lengths[document]))
    assert distances is not None
    evidence = positions - distances[positions]
    before = np.array([KEY_BEFORE.get(name, lambda index: 0)(index) for index in range(len(positions))])
    return (starts <= evidence) & (starts > evidence - before)


@pytest.mark.parametrize("name", CASES)
def test_an_oracle_that_sees_everything_hits_everything_that_has_evidence(name: str) -> None:
    for dataset, document, _, _, positions in samples(CASES[name][0], 12):
        chances = Subset(dataset, 20).view_chances(document, positions, 0 * positions)
        assert chances is not None
        if name == "chain":  # of which the best prediction isn't certain
            assert 0.3 < chances.mean() < 1
        else:
            np.testing.assert_array_equal(chances, 1.0)


@pytest.mark.parametrize("name", ["passkey", "recall", "chain"])
@pytest.mark.parametrize("reach", [9, 40])
def test_an_oracle_of_the_last_positions_has_chance_beyond_them(name: str, reach: int) -> None:
    """In the tasks of the comparison."""
    task, oracle = CASES[name]
    chance = {"passkey": [1 / 9, *[1 / 10] * 4], "recall": 1 / 8, "chain": 1 / 8}[name]
    targets_beyond = 0
    for dataset, document, tokens, targets, positions in samples(task, 12):
        distances = dataset.evidence_distances(document, 0, len(tokens))
        assert distances is not None
        is_beyond = distances[positions] >= reach
        targets_beyond += is_beyond.sum()
        starts = np.maximum(0, positions - reach + 1)
        blind = dataset.view_chances(document, positions, positions)
        expected = np.broadcast_to(chance, len(positions))[is_beyond]
        np.testing.assert_allclose(blind[is_beyond], expected)  # type: ignore[index]
        seen = oracle_chances(oracle, tokens, targets, positions, starts)[is_beyond]
        np.testing.assert_allclose(seen, expected)
    assert targets_beyond > 10


def test_a_passkey_of_256_positions_in_view_of_its_last_segment() -> None:
    """The key at any of 246 places: all digits in view at 7, and 10 of 5 digits at the 4 before."""
    hits = np.zeros(246)
    for offset in range(246):
        depth = offset / 245
        task = Passkey(form="compact", filler="random", length=256, vocab_size=28, depth=depth)
        positions = np.arange(251, 256)
        chances = task.split("test").view_chances(0, positions, positions // 16 * 16)
        hits[offset] = chances.mean()
    known = (7 + 2) / 246
    assert hits[:235] == pytest.approx((1 / 9 + 4 / 10) / 5)
    assert (hits == 1).sum() == 7
    assert hits.mean() == pytest.approx(0.135, abs=5e-4)
    assert hits.mean() > known


def datasets_with_evidence() -> dict[str, type[Dataset]]:
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(zoo.train.tasks.__path__, "zoo.train.tasks.")
    ]
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return {
        of.__name__: of
        for of in classes
        if issubclass(of, Dataset)
        and of not in (Dataset, SampleDataset, Subset)
        and of.evidence_distances is not Dataset.evidence_distances
    }


def test_every_task_with_evidence_is_held_to_an_oracle() -> None:
    tested = {type(task.split("test")).__name__ for task, _ in CASES.values()} | BY_TEXT
    with_evidence = datasets_with_evidence()
    assert {"PasskeyDataset", "RecallDataset", "ChainDataset"} <= with_evidence.keys()
    assert with_evidence.keys() == tested
    for dataset_class in with_evidence.values():
        assert dataset_class.view_chances is not Dataset.view_chances


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """bAbI's files, and a book of numbered sentences."""
    (tmp_path / "babi").mkdir()
    for kind in ("train", "test"):
        (tmp_path / "babi" / f"qa1_{kind}.txt").write_text(movements(stories=12, seed=3))
    for split in SPLITS:
        (tmp_path / "books" / split).mkdir(parents=True)
        lines = [f"In {split} the keeper came by every cage, number {n}. " for n in range(40)]
        (tmp_path / "books" / split / "book.txt").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize("kind", ["single", "multivalue"])
def test_digits_of_needles_in_view_are_known_and_commas_always(kind: Any, root: Path) -> None:
    dataset = Needle(kind, length=1000, corpus=str(root / "books")).split("test")
    for document in range(5):
        _, targets = read_sample(dataset, document)
        positions = np.flatnonzero(targets != IGNORE)
        distances = dataset.evidence_distances(document, 0, 1000)[positions]
        for view in (50, 300, 1000):
            chances = dataset.view_chances(document, positions, np.maximum(0, positions - view + 1))
            for chance, distance, index in zip(chances, distances, range(len(positions)), strict=True):
                guess = 1.0 if index % 9 > 6 else (0.1 if index % 9 else 1 / 9)
                assert chance == (1.0 if 0 <= distance < view else guess)


def test_facts_in_view_are_known_and_else_the_commonest_answer_is_said(root: Path) -> None:
    dataset = Babilong(("qa1",), length=500, corpus=str(root / "books"), root=root).split("test")
    answers = [dataset.question(document).answer for document in range(36)]
    commonest = max(set(answers), key=answers.count)
    for document in range(36):
        _, targets = read_sample(dataset, document)
        positions = np.flatnonzero(targets != IGNORE)
        np.testing.assert_array_equal(dataset.view_chances(document, positions, 0 * positions), 1.0)
        blind = dataset.view_chances(document, positions, positions)
        if answers[document] == commonest:
            np.testing.assert_array_equal(blind, 1.0)
        else:
            assert blind[0] == (answers[document][:1] == commonest[:1])
