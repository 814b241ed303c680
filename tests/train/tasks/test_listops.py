"""The ListOps task: samples, splits, released files, baselines and groups."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.tasks.listops import WORDS, value_and_depth
from tests.train.tasks.samples import check_windows, read_sample
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.data.module import DataModule
from zoo.train.tasks import listops_language
from zoo.train.tasks.base import SPLITS, Dataset, Split, Subset
from zoo.train.tasks.listops import Listops, ListopsDataset, read_lra
from zoo.train.tasks.listops_language import CLOSE, END, evaluate

TINY: dict[str, Any] = {"min_length": 5, "max_length": 40, "max_depth": 4, "samples": 60, "eval_samples": 20}
RELEASED = Path(__file__).with_name("listops_8.tsv")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops_language, "CHUNK", 512)


def list_and_answer(dataset: Dataset, document: int) -> tuple[list[int], int]:
    """The list of a sample, without END, and its answer."""
    tokens, targets = read_sample(dataset, document)
    assert tokens[-1] == END
    assert (targets[:-1] == IGNORE).all()
    return tokens[:-1].tolist(), int(targets[-1])


def lists_and_answers(task: Listops, split: Split, count: int) -> list[tuple[list[int], int]]:
    dataset = task.split(split)
    return [list_and_answer(dataset, document) for document in range(count)]


def released_files() -> list[Path]:
    if "ZOO_DATA" not in os.environ:
        return [RELEASED]
    return [RELEASED, Path(os.environ["ZOO_DATA"]) / "listops" / "listops_60.tsv"]


@pytest.mark.parametrize("path", released_files(), ids=lambda path: path.stem)
def test_files_of_the_original_are_read_with_their_values(path: Path) -> None:
    rows = list(read_lra(path))
    assert len(rows) == int(path.stem.split("_")[1])
    lines = path.read_text().splitlines()[1:]
    for (tokens, answer), line in zip(rows, lines, strict=True):
        source, target = line.split("\t")
        assert [WORDS[token] for token in tokens] == source.replace("( ", "").replace(" )", "").split()
        assert answer == int(target) == evaluate(tokens) == evaluate(source)
        assert value_and_depth(tokens)[0] == answer


@pytest.mark.parametrize(
    "text", ["", "a\tb\n1\t1\n", "Source\tTarget\n( [MAX 1\n", "Source\tTarget\n[MAX 1 2 ]\t10\n"]
)
def test_malformed_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(UserError, match=r"a\.tsv.*expected.*found"):
        list(read_lra(tmp_path / "a.tsv"))


def test_generated_lists_have_the_requested_lengths_depths_and_values() -> None:
    task = Listops(**TINY)
    lists = set()
    for split, size in zip(SPLITS, (60, 20, 20), strict=True):
        assert len(task.split(split).lengths) == size
        for tokens, answer in lists_and_answers(task, split, size):
            assert 5 < len(tokens) < 40
            value, depth = value_and_depth(tokens)
            assert depth < 4
            assert value == evaluate(tokens) == answer
            lists.add(tuple(tokens))
    assert len(lists) == 100


def test_lists_are_generated_once_and_held_out_ones_do_not_depend_on_how_many_train(
    cache_folder: Path,
) -> None:
    first = Listops(**TINY).split("val")
    assert isinstance(first, ListopsDataset)
    (data,) = cache_folder.glob("*.bin")
    written = data.stat().st_mtime_ns
    second = Listops(**TINY).split("val")
    assert isinstance(second, ListopsDataset)
    np.testing.assert_array_equal(second.answers, first.answers)
    assert data.stat().st_mtime_ns == written
    larger = Listops(**{**TINY, "samples": 90})
    for split, count in (("test", 20), ("train", 60)):
        assert lists_and_answers(larger, split, count) == lists_and_answers(Listops(**TINY), split, count)  # type: ignore[arg-type]
    assert len(list(cache_folder.glob("*.bin"))) == 2
    assert list_and_answer(Listops(**TINY, seed=1).split("val"), 0) != list_and_answer(first, 0)


def test_a_window_is_a_slice_of_the_sample() -> None:
    dataset = Listops(**TINY).split("train")
    for document, size in enumerate(dataset.lengths.tolist()):
        check_windows(dataset, document, [(0, 0), (0, 3), (2, size - 1), (size - 1, size)])


def test_released_files_can_be_read_instead(tmp_path: Path) -> None:
    header, *rows = RELEASED.read_text().splitlines()
    for split, split_rows in (("train", rows[:4]), ("val", rows[4:6]), ("test", rows[6:])):
        (tmp_path / f"basic_{split}.tsv").write_text("\n".join([header, *split_rows]) + "\n")
    task = Listops(folder=tmp_path, samples=3)
    assert [len(task.split(split).lengths) for split in SPLITS] == [3, 2, 2]
    expected = list(read_lra(RELEASED))
    assert lists_and_answers(task, "train", 3) == expected[:3]
    assert lists_and_answers(task, "val", 2) == expected[4:6]
    with pytest.raises(UserError, match=r"basic_test\.tsv"):
        Listops(folder=tmp_path / "nothing").split("train")


def test_baselines_follow_their_definitions() -> None:
    task = Listops(**{**TINY, "samples": 400})
    train = lists_and_answers(task, "train", 400)
    constant = Counter(answer for _, answer in train).most_common(1)[0][0]
    hits = Counter[str]()
    for tokens, answer in lists_and_answers(task, "val", 20):
        same_root = Counter(
            train_answer for train_tokens, train_answer in train if train_tokens[0] == tokens[0]
        )
        root_guess = same_root.most_common(1)[0][0]
        depth, direct = 0, []
        for token in tokens:
            depth += (10 <= token < CLOSE) - (token == CLOSE)
            direct += [token] if token < 10 and depth == 1 else []
        digits_guess = evaluate([tokens[0], *direct, CLOSE]) if direct else root_guess
        guesses = {"constant": constant, "root operator": root_guess, "root digits": digits_guess}
        hits.update(name for name, guess in guesses.items() if guess == answer)
    expected = {name: hits[name] / 20 for name in ("constant", "root operator", "root digits")}
    assert task.baselines(task.split("val")) == expected
    assert 0 < expected["root digits"] < 1


def test_groups_are_root_and_length() -> None:
    task = Listops(**TINY)
    dataset = Subset(task.split("val"), 20)
    for document in range(20):
        tokens, _ = list_and_answer(dataset, document)
        labels = task.groups(dataset, document)
        assert f"[{labels['root']}" == WORDS[tokens[0]]
        low, high = map(int, str(labels["length"]).split("-"))
        assert 6 <= low <= len(tokens) <= high <= 39
    assert task.at() is task
    with pytest.raises(UserError, match="no length"):
        task.at(length=100)


def test_a_batch_is_complete_samples() -> None:
    data = DataModule(Listops(**TINY), batch_size=4, seq_len=48, segment_len=16, seed=0)
    for batch in data.val_dataloader():
        assert batch.fresh.all()
        assert ((batch.targets != IGNORE).sum(1) == 1).all()


@pytest.mark.parametrize(
    "keys",
    [
        {"max_depth": 1},
        {"min_length": 10, "max_length": 11},
        {"max_length": 4},
        {"samples": 0},
        {"eval_samples": 0},
        {"seed": -1},
        {"vocab_size": 15},
    ],
)
def test_impossible_settings_are_refused(keys: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(keys))}.*found"):
        Listops(**{**TINY, **keys})
