"""ListOps: lists, their values, the generator and what is asked, each against something written apart."""

import os
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.data.module import DataModule
from zoo.train.tasks import listops_language
from zoo.train.tasks.base import Dataset, Subset
from zoo.train.tasks.listops import Listops, ListopsDataset, read_lra
from zoo.train.tasks.listops_language import CLOSE, END, distinct_trees, evaluate

WORDS = [*map(str, range(10)), "[MAX", "[MIN", "[MED", "[SM", "]"]
TINY: dict[str, Any] = {"min_length": 5, "max_length": 40, "max_depth": 4, "samples": 60, "eval_samples": 20}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listops_language, "CHUNK", 512)
    return tmp_path / "cache"


def worth_by_recursion(words: list[str]) -> tuple[int, int]:
    """Value, and how deeply operators are nested; eats the words of one tree."""
    word = words.pop(0)
    if word.isdigit():
        return int(word), 0
    values, depths = [], []
    while words[0] != "]":
        inner, depth = worth_by_recursion(words)
        values.append(inner)
        depths.append(depth)
    words.pop(0)
    assert 2 <= len(values) <= 10
    worth = {
        "[MAX": lambda: max(values),
        "[MIN": lambda: min(values),
        "[MED": lambda: int(np.median(values)),
        "[SM": lambda: int(np.sum(values)) % 10,
    }[word]()
    return worth, 1 + max(depths)


def sample(dataset: Dataset, document: int) -> tuple[list[int], int]:
    """The list of a sample, without END, and its answer."""
    tokens, targets = dataset.window(document, 0, int(dataset.lengths[document]))
    assert tokens[-1] == END
    assert (targets[:-1] == IGNORE).all()
    return tokens[:-1].tolist(), int(targets[-1])


@pytest.mark.parametrize(
    ("line", "worth"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("( ( ( ( ( [MAX 2 ) 9 ) ( ( ( [MIN 4 ) 7 ) ] ) ) 0 ) ] )", 9),
        ("[MED 1 2 ]", 1),
        ("[MED 8 9 1 2 ]", 5),
        ("[MED 9 0 3 ]", 3),
        ("[SM 9 9 9 ]", 7),
        ("[MIN 3 [SM 5 5 ] X", 0),
        ("7", 7),
    ],
)
def test_values_by_hand(line: str, worth: int) -> None:
    words = line.replace("(", "").replace(")", "").split()
    ids = [WORDS.index("]" if word == "X" else word) for word in words]
    for tokens in (line, words, ids, np.array([*ids, END], np.uint8)):
        assert evaluate(tokens) == worth


@pytest.mark.parametrize(
    "line", ["", "[MAX", "[MAX ]", "]", "1 2", "[MAX 1 ] ]", "[MAX 1 2", "[AVG 1 2 ]", "10"]
)
def test_what_is_no_list_has_no_value(line: str) -> None:
    with pytest.raises(UserError, match="expected"):
        evaluate(line)


def lists() -> list[Path]:
    own = Path(__file__).with_name("listops_8.tsv")
    given = Path(os.environ.get("ZOO_DATA", "")) / "listops" / "listops_60.tsv"
    return [own, given] if "ZOO_DATA" in os.environ else [own]


@pytest.mark.parametrize("path", lists(), ids=lambda path: path.stem)
def test_files_of_the_original_are_read_and_worth_what_they_say(path: Path) -> None:
    rows = list(read_lra(path))
    assert len(rows) == int(path.stem.split("_")[1])
    lines = path.read_text().splitlines()[1:]
    for (tokens, answer), line in zip(rows, lines, strict=True):
        source, target = line.split("\t")
        assert [WORDS[token] for token in tokens] == source.replace("( ", "").replace(" )", "").split()
        assert answer == int(target) == evaluate(tokens) == evaluate(source)
        assert worth_by_recursion([WORDS[token] for token in tokens])[0] == answer


@pytest.mark.parametrize(
    "text", ["", "a\tb\n1\t1\n", "Source\tTarget\n( [MAX 1\n", "Source\tTarget\n[MAX 1 2 ]\t10\n"]
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(UserError, match=r"a\.tsv.*expected.*found"):
        list(read_lra(tmp_path / "a.tsv"))


def test_generated_lists_are_what_was_asked_for() -> None:
    task = Listops(**TINY)
    seen = set()
    for split, size in (("train", 60), ("val", 20), ("test", 20)):
        dataset = task.split(split)  # type: ignore[arg-type]
        assert len(dataset.lengths) == size
        for document in range(size):
            tokens, answer = sample(dataset, document)
            assert 5 < len(tokens) < 40
            worth, nested = worth_by_recursion(left := [WORDS[token] for token in tokens])
            assert not left
            assert nested < 4
            assert worth == evaluate(tokens) == answer
            seen.add(tuple(tokens))
    assert len(seen) == 100


def test_generation_is_repeatable_whatever_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops_language, "CHUNK", 128)
    alone = list(distinct_trees(3, 5, 40, 4, 400, workers=1))
    assert len(set(alone)) == 400
    assert list(distinct_trees(3, 5, 40, 4, 400, workers=3)) == alone
    assert list(distinct_trees(3, 5, 40, 4, 100, workers=1)) == alone[:100]
    assert len(set(distinct_trees(4, 5, 40, 4, 400, workers=1)) & set(alone)) < 100


def test_generated_once_and_held_out_samples_do_not_depend_on_how_many_train(cache: Path) -> None:
    first = Listops(**TINY).split("val")
    assert isinstance(first, ListopsDataset)
    (data,) = cache.glob("*.bin")
    written = data.stat().st_mtime_ns
    again = Listops(**TINY).split("val")
    assert isinstance(again, ListopsDataset)
    np.testing.assert_array_equal(again.answers, first.answers)
    assert data.stat().st_mtime_ns == written
    more = Listops(**{**TINY, "samples": 90})
    assert [sample(more.split("test"), d) for d in range(20)] == [
        sample(Listops(**TINY).split("test"), d) for d in range(20)
    ]
    assert [sample(more.split("train"), d) for d in range(60)] == [
        sample(Listops(**TINY).split("train"), d) for d in range(60)
    ]
    assert len(list(cache.glob("*.bin"))) == 2
    assert sample(Listops(**TINY, seed=1).split("val"), 0) != sample(first, 0)


def test_a_window_is_a_slice_of_the_sample() -> None:
    dataset = Listops(**TINY).split("train")
    for document in range(60):
        size = int(dataset.lengths[document])
        tokens, targets = dataset.window(document, 0, size)
        for start, stop in ((0, 0), (0, 3), (2, size - 1), (size - 1, size)):
            piece = dataset.window(document, start, stop)
            np.testing.assert_array_equal(piece[0], tokens[start:stop])
            np.testing.assert_array_equal(piece[1], targets[start:stop])
    with pytest.raises(IndexError):
        dataset.window(0, 0, int(dataset.lengths[0]) + 1)


def test_released_files_can_be_read_instead(tmp_path: Path) -> None:
    rows = (Path(__file__).with_name("listops_8.tsv")).read_text().splitlines()
    for split, own in (("train", rows[1:5]), ("val", rows[5:7]), ("test", rows[7:])):
        (tmp_path / f"basic_{split}.tsv").write_text("\n".join([rows[0], *own]) + "\n")
    task = Listops(folder=tmp_path, samples=3)
    assert [len(task.split(split).lengths) for split in ("train", "val", "test")] == [3, 2, 2]
    found = [sample(task.split("train"), d) for d in range(3)] + [
        sample(task.split("val"), d) for d in range(2)
    ]
    expected = list(read_lra(Path(__file__).with_name("listops_8.tsv")))
    assert found == expected[:3] + expected[4:6]
    with pytest.raises(UserError, match=r"basic_test\.tsv"):
        Listops(folder=tmp_path / "nothing").split("train")


def test_predictors_that_learn_nothing_by_their_definitions() -> None:
    task = Listops(**{**TINY, "samples": 400})
    train = [sample(task.split("train"), d) for d in range(400)]
    eval_samples = [sample(task.split("val"), d) for d in range(20)]
    constant = Counter(answer for _, answer in train).most_common(1)[0][0]
    hits = Counter[str]()
    for tokens, answer in eval_samples:
        given = Counter(said for other, said in train if other[0] == tokens[0]).most_common(1)[0][0]
        depth, direct = 0, []
        for token in tokens:
            depth += (10 <= token < CLOSE) - (token == CLOSE)
            direct += [token] if token < 10 and depth == 1 else []
        alone = evaluate([tokens[0], *direct, CLOSE]) if direct else given
        for name, guess in (("constant", constant), ("root operator", given), ("root digits", alone)):
            hits[name] += guess == answer
    expected = {name: hits[name] / 20 for name in ("constant", "root operator", "root digits")}
    assert task.baselines(task.split("val")) == expected
    assert 0 < expected["root digits"] < 1


def test_groups_are_root_and_length() -> None:
    task = Listops(**TINY)
    dataset = Subset(task.split("val"), 20)
    for document in range(20):
        tokens, _ = sample(dataset, document)
        said = task.groups(dataset, document)
        assert f"[{said['root']}" == WORDS[tokens[0]]
        low, high = map(int, str(said["length"]).split("-"))
        assert 6 <= low <= len(tokens) <= high <= 39
    assert task.at() is task
    with pytest.raises(UserError, match="no length"):
        task.at(length=100)


def test_a_batch_is_whole_samples() -> None:
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


def test_more_lists_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops_language, "CHUNK", 16)  # at depth 2 the longest has ten digits
    with pytest.raises(UserError, match=r"expected 5 different lists of 13 to 29 .* depth up to 2, found 0"):
        list(distinct_trees(0, 12, 30, 2, 5, workers=1))


@pytest.mark.slow
def test_ten_thousand_lists_are_distributed_as_the_originals() -> None:
    """Against 10,360 samples of Long Range Arena's generator: lengths, answers, arguments of the root."""
    lengths, answers, arity, roots = [], Counter[int](), Counter[int](), Counter[int]()
    for line in distinct_trees(0, 500, 2000, 10, 10_000):
        *tokens, end, answer = line
        assert end == END
        assert evaluate(tokens) == answer
        worth, nested = worth_by_recursion([WORDS[token] for token in tokens])
        assert (worth, nested) == (answer, 9)
        lengths.append(len(tokens))
        answers[answer] += 1
        roots[tokens[0]] += 1
        arity[_arguments(tokens)] += 1
    assert abs(statistics.mean(lengths) - 1028) < 15
    assert abs(statistics.median(lengths) - 945) < 25
    assert abs(statistics.stdev(lengths) - 392.8) < 10
    assert (min(lengths), max(lengths)) >= (501, 0)
    assert max(lengths) <= 1999
    original = [16.9, 8.8, 7.9, 8.7, 9.1, 8.5, 8.0, 6.7, 8.4, 17.1]
    assert _chi_square([answers[digit] for digit in range(10)], original) < 27.88  # p = 0.001, 9 degrees
    original = [4.4, 6.6, 9.1, 9.6, 11.8, 13.0, 14.2, 15.3, 16.1]
    assert _chi_square([arity[count] for count in range(2, 11)], original) < 26.12  # 8 degrees
    assert (
        _chi_square([roots[token] for token in range(10, 14)], [25.2, 25.3, 25.5, 24.0]) < 16.27
    )  # 3 degrees


def _arguments(tokens: list[int]) -> int:
    depth = count = 0
    for token in tokens[1:-1]:
        count += depth == 0 and token != CLOSE
        depth += (10 <= token < CLOSE) - (token == CLOSE)
    return count


def _chi_square(counts: list[int], shares: list[float], size: int = 10_360) -> float:
    """Of two samples: the original's shares, in per cent, are of so many samples too."""
    ours, theirs = np.array(counts, float), np.array(shares) / sum(shares) * size
    ratio = np.sqrt(theirs.sum() / ours.sum())
    return float(((ours * ratio - theirs / ratio) ** 2 / (ours + theirs)).sum())
