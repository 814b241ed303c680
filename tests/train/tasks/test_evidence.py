"""Evidence: how far back each target's answer lies, found again in the tokens alone."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.tasks.babi import movements
from tests.train.tasks.mad_cases import mad
from tests.train.tasks.samples import read_sample, read_text
from zoo.module import IGNORE
from zoo.train.tasks.algorithmic import Algorithmic
from zoo.train.tasks.babilong import Babilong
from zoo.train.tasks.base import SPLITS, Dataset, Subset, Task
from zoo.train.tasks.induction import Induction
from zoo.train.tasks.lm import LanguageModelling
from zoo.train.tasks.mqar import Mqar
from zoo.train.tasks.needle import Needle
from zoo.train.tasks.pairs import Pairs
from zoo.train.tasks.passkey import Passkey
from zoo.train.tasks.selective_copy import SelectiveCopy

Tokens = list[int]
FindEvidence = Callable[[Tokens, int, int], int]
"""The position of the nearest evidence for a target, from the tokens read so far, the target's position and
its index among the sample's targets."""


def passkey_digit(tokens: Tokens, position: int, index: int) -> int:
    return tokens.index(10) + 1 + index


def value_beside_key(tokens: Tokens, position: int, index: int) -> int:
    """Of the last earlier time of the token at `position`, in an even position."""
    return max(earlier for earlier in range(0, position, 2) if tokens[earlier] == tokens[position]) + 1


def value_among_pairs(tokens: Tokens, position: int, index: int) -> int:
    """Of the first time that the token stands in an even position, as filler may be a key."""
    return min(earlier for earlier in range(0, position, 2) if tokens[earlier] == tokens[position]) + 1


def after_special(tokens: Tokens, position: int, index: int) -> int:
    return tokens.index(tokens[position]) + 1


def symbol_between_noise(noise: int) -> FindEvidence:
    def find(tokens: Tokens, position: int, index: int) -> int:
        return [i for i, token in enumerate(tokens) if token != noise][index]

    return find


def digit_of_pair(key_size: int, value_size: int) -> FindEvidence:
    def find(tokens: Tokens, position: int, index: int) -> int:
        question = position - index - key_size
        pair = [*tokens[question : question + key_size], 16]
        starts = range(0, question, key_size + value_size + 2)
        last = max(start for start in starts if tokens[start : start + key_size + 1] == pair)
        return last + key_size + 1 + index

    return find


def copied_symbol(tokens: Tokens, position: int, index: int) -> int:
    size = tokens.index(1)
    return index if index < size else index + 1


def reversed_symbol(tokens: Tokens, position: int, index: int) -> int:
    return tokens.index(1) - 1 - index


def retrieved_value(tokens: Tokens, position: int, index: int) -> int:
    return tokens.index(tokens[position - 1]) + 1


def motif_symbol(tokens: Tokens, position: int, index: int) -> int:
    """After the last earlier time that the key, all of it, stood before the value's symbols so far."""
    padding = max(i for i, token in enumerate(tokens) if token == 15) + 1 if 15 in tokens else 0
    value_start = position + 1
    while tokens[value_start - 1] >= 7:
        value_start -= 1
    key_start = value_start - 1
    while key_start > padding and tokens[key_start - 1] < 7:
        key_start -= 1
    key, offset = tokens[key_start:value_start], position + 1 - value_start
    for start in range(key_start - 1, padding - 1, -1):
        stop = start + len(key)
        begins = start == padding or tokens[start - 1] >= 7
        if begins and tokens[start:stop] == key and tokens[stop] >= 7:
            return stop + offset
    raise AssertionError("a target without its key")


def compressed_symbol(tokens: Tokens, position: int, index: int) -> int:
    return index


CASES: dict[str, tuple[Task, FindEvidence]] = {
    "passkey": (Passkey(form="compact", filler="random", length=60, vocab_size=28), passkey_digit),
    "mqar": (Mqar(length=64, pairs=6, vocab_size=256), value_among_pairs),
    "induction": (Induction(length=30), after_special),
    "selective_copy": (SelectiveCopy(length=40, remembered=5), symbol_between_noise(0)),
    "pairs": (Pairs(pairs=6, key_size=2, value_size=3), digit_of_pair(2, 3)),
    "pairs rewritten": (Pairs(pairs=30, rewrite=True), digit_of_pair(1, 1)),
    "copy": (Algorithmic("copy", 9), copied_symbol),
    "reverse": (Algorithmic("reverse", 9), reversed_symbol),
    "retrieval": (Algorithmic("retrieval", 12, vocab_size=37), retrieved_value),
    "mad recall": (mad("in_context_recall"), value_beside_key),
    "mad recall rewritten": (mad("in_context_recall", rewrite=0.3), value_beside_key),
    "mad noisy recall": (mad("noisy_in_context_recall"), value_beside_key),
    "mad fuzzy recall": (mad("fuzzy_in_context_recall"), motif_symbol),
    "mad compression": (mad("compression"), compressed_symbol),
    "mad copying": (mad("selective_copying"), symbol_between_noise(14)),
}


def distances(dataset: Dataset, document: int) -> np.ndarray:
    of_sample = dataset.evidence_distances(document, 0, int(dataset.lengths[document]))
    assert of_sample is not None
    return of_sample


@pytest.mark.parametrize("name", CASES)
def test_the_nearest_evidence_is_the_answer_in_the_text(name: str) -> None:
    task, find_evidence = CASES[name]
    for split in ("train", "test"):
        dataset = task.split(split)
        for document in range(30):
            tokens, targets = read_sample(dataset, document)
            actual = distances(dataset, document)
            positions = np.flatnonzero(targets != IGNORE)
            np.testing.assert_array_equal(actual[targets == IGNORE], -1)
            for index, position in enumerate(positions.tolist()):
                evidence = find_evidence(tokens.tolist(), position, index)
                assert position - actual[position] == evidence
                assert tokens[evidence] == targets[position]


@pytest.mark.parametrize("name", CASES)
def test_windows_are_slices_of_a_samples_distances(name: str) -> None:
    dataset = Subset(CASES[name][0].split("val"), 3)
    expected = distances(dataset, 2)
    for start, stop in (
        (0, 0),
        (1, 4),
        (len(expected) // 2, len(expected)),
        (len(expected) - 1, len(expected)),
    ):
        np.testing.assert_array_equal(dataset.evidence_distances(2, start, stop), expected[start:stop])


def test_most_of_a_passkey_of_256_positions_lies_beyond_80() -> None:
    """The key at 0..245 and the question at 251: beyond at 0 to 170."""
    task = Passkey(form="compact", filler="random", length=256, vocab_size=28)
    assert task.length - task.min_length == 245
    for offset in (0, 170, 171, 245):
        dataset = Passkey(
            form="compact", filler="random", length=256, vocab_size=28, depth=offset / 245
        ).split("test")
        of_sample = distances(dataset, 0)
        np.testing.assert_array_equal(of_sample[251:], 250 - offset)
        assert (of_sample.max() >= 80) == (offset <= 170)


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


def test_a_passkey_prompt_has_its_evidence_in_the_last_time_that_it_tells_the_key() -> None:
    dataset = Passkey(length=512).split("test")
    for document in range(20):
        text, key = read_text(dataset, document)
        of_sample = distances(dataset, document)
        (line,) = re.finditer(r"(\d{5}) is the pass key", text)
        for index in range(5):
            position = 512 - 5 + index
            assert text[position - of_sample[position] - 1] == key[index]  # END comes first
            assert position - of_sample[position] == 1 + line.start(1) + index


@pytest.mark.parametrize("kind", ["single", "multikey", "multivalue", "multiquery"])
def test_a_needle_is_the_evidence_for_its_value_and_nothing_for_a_comma(kind: Any, root: Path) -> None:
    dataset = Needle(kind, length=1400, distractors=2, corpus=str(root / "books")).split("test")
    for document in range(15):
        text, answer = read_text(dataset, document)
        of_sample = distances(dataset, document)
        first_target = 1400 - len(answer)
        assert (of_sample[:first_target] == -1).all()
        for index, symbol in enumerate(answer):
            distance = int(of_sample[first_target + index])
            if not symbol.isdigit():
                assert distance == -1
                continue
            value = next(
                value for value in re.finditer(r"\d{7}", answer) if value.start() <= index < value.end()
            )
            (line,) = re.finditer(rf"special magic numbers for \S+ is: ({value[0]})\.", text)
            assert first_target + index - distance == 1 + line.start(1) + index - value.start()


def test_the_evidence_of_babilong_is_the_end_of_the_last_supporting_fact(root: Path) -> None:
    task = Babilong(("qa1",), length=600, corpus=str(root / "books"), root=root)
    for split in ("val", "test"):
        dataset = task.split(split)
        for document in range(20):
            text, answer = read_text(dataset, document)
            (person,) = re.findall(r"\nWhere is (\w+)\? ", text)
            move = [*re.finditer(rf"{person} [a-z ]+ to the (\w+)\.", text)][-1]
            assert move[1] == answer
            of_sample = distances(dataset, document)
            positions = np.arange(len(of_sample) - len(answer), len(of_sample))
            np.testing.assert_array_equal(positions - of_sample[positions], move.end())
            assert (of_sample[: positions[0]] == -1).all()


def test_evidence_is_unknown_where_babis_file_names_no_supporting_facts(root: Path) -> None:
    for kind in ("train", "test"):
        text = re.sub(r"\t\d+$", "", movements(stories=12, seed=3), flags=re.MULTILINE)
        (root / "babi" / f"qa1_{kind}.txt").write_text(text)
    task = Babilong(("qa1",), length=600, corpus=str(root / "books"), root=root)
    assert task.split("test").evidence_distances(0, 0, 600) is None


def test_texts_and_tables_have_no_evidence(root: Path) -> None:
    texts = LanguageModelling(corpus=str(root / "books"), root=root).split("val")
    assert Subset(texts, 1).evidence_distances(0, 0, 9) is None
    assert mad("memorization").split("val").evidence_distances(0, 0, 9) is None
