"""BABILong: every sample read again from its bytes alone, and its background found in the books."""

import os
import re
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.corpora.catalog import open_corpus
from zoo.train.data.module import DataModule
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.babilong import Babilong, read_babi
from zoo.train.tasks.base import Dataset, Subset
from zoo.train.tasks.haystack import CyclicText

PLACES = ("garden", "bathroom", "office", "hallway")
PEOPLE = ("Ada", "Bo", "Cy")
MOVES = ("went", "moved", "went back")


def movements(stories: int, seed: int) -> str:
    """A file as bAbI's first task has it: two facts, a question, two facts, a question …"""
    draw, rows = np.random.default_rng(seed), []
    for _ in range(stories):
        where: dict[str, tuple[str, int]] = {}
        for line in range(1, 10):
            if line % 3:
                who, place = str(draw.choice(PEOPLE)), str(draw.choice(PLACES, p=[0.4, 0.2, 0.2, 0.2]))
                where[who] = place, line
                rows.append(f"{line} {who} {draw.choice(MOVES)} to the {place}.")
            else:
                who = str(draw.choice(sorted(where)))
                rows.append(f"{line} Where is {who}? \t{where[who][0]}\t{where[who][1]}")
    return "\n".join(rows) + "\n"


GIVEN = (
    "1 Ada gave the milk to Bo.\n2 Who has the milk?\tBo\t1\n"
    "3 Bo gave the milk to Cy.\n4 Who has the milk?\tCy\t3\n"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """bAbI's files, and books of numbered sentences, some of them short."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "babi").mkdir()
    for kind, stories in (("train", 40), ("test", 30)):
        text = movements(stories, seed=stories)
        (tmp_path / "babi" / f"qa1_single-supporting-fact_{kind}.txt").write_text(text)
        (tmp_path / "babi" / f"qa5_{kind}.txt").write_text(GIVEN * 3)
    for split in ("train", "val", "test"):
        (tmp_path / "books" / split).mkdir(parents=True)
        for book, size in enumerate((40, 23)):
            lines = [f"In {split} {book} the keeper came by every cage, {n}. Twice!\n" for n in range(size)]
            (tmp_path / "books" / split / f"{book}.txt").write_text("".join(lines))
    return tmp_path


def babilong(root: Path, *tasks: str, **keys: Any) -> Babilong:
    return Babilong(tasks or ("qa1",), corpus=str(root / "books"), root=root, **keys)


def said(dataset: Dataset, document: int) -> tuple[str, str]:
    """A sample as text, from behind END to the end of the answer, and what is asked of it."""
    tokens, targets = dataset.window(document, 0, int(dataset.lengths[document]))
    assert tokens[0] == 256
    asked = targets != IGNORE
    assert asked[-asked.sum() :].all()
    np.testing.assert_array_equal(tokens[1:][asked[:-1]], targets[asked][:-1])
    whole = bytes([*tokens[1:].tolist(), int(targets[-1])])
    return whole.decode(errors="replace"), bytes(targets[asked].tolist()).decode()


def read_again(text: str) -> str:
    """Where somebody is, found as a person would."""
    context, question = text.rsplit("\n", 1)
    moves = re.findall(r"(\w+) (?:went|moved|journeyed|travelled)(?: back)? to the (\w+)\.", context)
    asked = re.match(r"Where is (\w+)\? ", question)
    assert asked
    answer = [place for who, place in moves if who == asked[1]][-1]
    assert question[asked.end() :] == answer
    return answer


def stories_again(text: str) -> list[tuple[list[str], str, str, int]]:
    """Facts, question, answer and story of every question of a file."""
    found, facts, story = [], [], -1
    for row in text.splitlines():
        number, line = row.split(" ", 1)
        if int(number) == 1:
            facts, story = [], story + 1
        if "\t" in line:
            found.append((list(facts), line.split("\t")[0].strip(), line.split("\t")[1], story))
        else:
            facts.append(line)
    return found


def test_a_question_takes_the_facts_of_its_story_so_far(root: Path) -> None:
    for path in (root / "babi").iterdir():
        found = [
            ([fact.decode() for fact in one.facts], one.question.decode(), one.answer.decode(), one.story)
            for one in read_babi(path)
        ]
        assert found == stories_again(path.read_text())


@pytest.mark.parametrize("length", [300, 1000, 4000])
def test_the_answer_is_in_the_text(length: int, root: Path) -> None:
    task = babilong(root, length=length)
    for split, count in (("train", 60), ("val", 12), ("test", 90)):
        dataset = task.split(split)  # type: ignore[arg-type]
        for document in range(count):
            text, asked = said(dataset, document)
            assert asked == read_again(text)
            assert len(text) == dataset.lengths[document] <= length


@pytest.mark.parametrize("length", [1, 250, 1500])
def test_facts_in_their_order_among_whole_sentences_of_the_books(length: int, root: Path) -> None:
    questions = stories_again((root / "babi" / "qa1_single-supporting-fact_test.txt").read_text())
    ring = CyclicText(open_corpus(str(root / "books"), "").split("test"))
    lines = ring.read(0, len(ring)).tobytes().decode().splitlines()
    long = [line.removesuffix(" Twice!") for line in lines] * 3  # the others are under 40 bytes
    dataset = babilong(root, length=length).split("test")
    for document in range(len(questions)):
        facts, question, answer, _ = questions[document]
        context, last = said(dataset, document)[0].rsplit("\n", 1)
        assert last == f"{question} {answer}"
        at = 0
        for fact in facts:
            place = context.index(fact + " ", at)
            assert context[:place].endswith(" ") or not place
            context, at = context[:place] + context[place + len(fact) + 1 :], place
        sentences = [line for line in re.split(r"(?<=\.) ", context) if line]
        if length == 1:
            assert not sentences
        elif sentences:
            first = next(n for n, line in enumerate(long) if line.startswith(sentences[0]))
            *whole, cut = sentences
            assert whole == long[first : first + len(whole)]
            assert long[first + len(whole)].startswith(cut.strip())


def test_facts_go_to_any_gap_as_likely(root: Path) -> None:
    (root / "babi" / "qa7_train.txt").write_text("1 Ada left.\n2 Who left?\tAda\t1\n" * 20)
    (root / "babi" / "qa7_test.txt").write_text("1 Ada left.\n2 Bo sat.\n3 Who left?\tAda\t1\n")
    dataset = babilong(root, "qa7", length=500, eval_samples=600).split("test")
    counts, both, gaps = Counter[int](), 0, set()
    for document in range(600):
        context = said(dataset, document)[0].rsplit("\n", 1)[0]
        ada, bo = context.index("Ada left. "), context.index("Bo sat. ")
        assert ada < bo
        ahead = [context[:place].count("keeper") for place in (ada, bo)]
        counts.update(ahead)
        both += ahead[0] == ahead[1]
        gaps.add(context.count("keeper") + 1)
    number = max(gaps)  # a sentence may be cut before its keeper comes
    assert len(counts) <= number <= 12
    most = [counts[gap] for gap in range(number - 2)]
    assert (abs(np.array(most) - 1200 / number) < 5 * np.sqrt(1200 / number)).all()
    assert both / 600 == pytest.approx(1 / number, abs=0.07)


def test_a_sample_is_never_shorter_than_its_facts(root: Path) -> None:
    dataset = babilong(root, "qa5", "qa1", length=1, eval_samples=20).split("val")
    for document in range(20):
        text, asked = said(dataset, document)
        assert len(text) == dataset.lengths[document]
        assert asked == text.rsplit(" ", 1)[1]
    assert said(dataset, 0)[0] == "Ada gave the milk to Bo. \nWho has the milk? Bo"
    assert said(dataset, 2)[0] == "Ada gave the milk to Bo. Bo gave the milk to Cy. \nWho has the milk? Cy"
    longer = babilong(root, "qa5", "qa1", length=120, eval_samples=20).split("val").lengths
    np.testing.assert_array_equal(longer, np.maximum(dataset.lengths, 120))


def test_training_lengths_are_uniform_or_fixed(root: Path) -> None:
    task = babilong(root, "qa5", length=400, samples=20_000)
    lengths = task.split("train").lengths.reshape(-1, 2)
    for own, column in zip((46, 70), lengths.T, strict=True):  # without background
        assert abs(column.mean() - (own + 400) / 2) < 5
        assert (column.min(), column.max()) == (own, 400)
    fixed = babilong(root, "qa5", length=400, lengths="fixed").split("train")
    assert set(fixed.lengths.tolist()) == {400}


def test_tasks_take_turns_and_a_tenth_of_the_stories_validates(root: Path) -> None:
    task = babilong(root, "qa5", "qa1", length=300)
    assert [task.groups(Subset(task.split("test"), 4), n)["task"] for n in range(4)] == ["qa5", "qa1"] * 2
    stories = {name: task.questions(name) for name in ("train", "val", "test")}  # type: ignore[arg-type]
    assert {name: [len(own) for own in found.values()] for name, found in stories.items()} == {
        "train": [4, 108],
        "val": [2, 12],
        "test": [6, 90],
    }
    assert {one.story for one in stories["train"]["qa1"]} == set(range(36))
    assert {one.story for one in stories["val"]["qa1"]} == set(range(36, 40))
    dataset = task.split("test")
    assert Counter(said(dataset, 2 * n + 1)[1] for n in range(90)) == Counter(
        answer
        for _, _, answer, _ in stories_again((root / "babi" / task.files["qa1", "test"].name).read_text())
    )


def test_guesses_hit_what_is_said(root: Path) -> None:
    task = babilong(root, "qa1", "qa5", eval_samples=180)
    dataset = task.split("test")
    answers: dict[str, list[str]] = {"qa1": [], "qa5": []}
    for document in range(180):
        answers[str(task.groups(dataset, document)["task"])].append(said(dataset, document)[1])
    size, constant, word, chance = 0, 0, 0, 0.0
    for own in answers.values():
        best = Counter(own).most_common(1)[0][0]
        for answer in own:
            word += answer == best
            size += len(answer)
            for place in range(len(answer)):
                going_on = [other[place] for other in own if other.startswith(answer[:place])]
                constant += Counter(going_on).most_common(1)[0][0] == answer[place]
                known = {other for other in own if other.startswith(answer[:place])}
                chance += sum(other[place] == answer[place] for other in known) / len(known)
    found = task.baselines(dataset)
    assert found["constant"] == pytest.approx(constant / size)
    assert found["chance"] == pytest.approx(chance / size)
    assert found["constant of whole words"] == pytest.approx(word / 180)
    assert found["chance of whole words"] == pytest.approx((1 / 4 + 1 / 2) / 2)


@pytest.mark.skipif("ZOO_DATA" not in os.environ, reason="needs bAbI below $ZOO_DATA")
def test_babi_itself(root: Path) -> None:
    there = Path(os.environ["ZOO_DATA"]) / "babi"
    task = Babilong(length=600, folder=there, corpus=str(root / "books"))
    dataset = task.split("test")
    for document in range(1000):
        text, asked = said(dataset, document)
        assert asked == read_again(text)
    found = task.baselines(dataset)
    assert found["chance of whole words"] == pytest.approx(1 / 6)
    assert found["constant of whole words"] == pytest.approx(0.187)
    for name in ("qa2", "qa3", "qa4", "qa5"):
        task = Babilong([name], length=600, folder=there, corpus=str(root / "books"))
        (path,) = there.glob(f"{name}_*test.txt")
        questions = stories_again(path.read_text())
        assert len(questions) == 1000
        dataset = task.split("test")
        for document in range(0, 1000, 50):
            facts, question, answer, _ = questions[document]
            text, asked = said(dataset, document)
            assert text.endswith(f"\n{question} {answer}")
            assert asked == answer
            assert sum(len(fact) + 1 for fact in facts) < len(text)


def test_a_window_is_a_slice_and_samples_are_repeatable(root: Path) -> None:
    dataset = babilong(root, length=2000).split("test")
    tokens, targets = dataset.window(7, 0, 2000)
    for start, stop in [*pairwise(range(0, 2001, 40)), (0, 1), (5, 5), (100, 1995), (1993, 2000)]:
        piece = dataset.window(7, start, stop)
        np.testing.assert_array_equal(piece[0], tokens[start:stop])
        np.testing.assert_array_equal(piece[1], targets[start:stop])
    with pytest.raises(IndexError):
        dataset.window(7, 0, 2001)
    again = babilong(root, length=1000, eval_samples=8).at(length=2000).split("test")
    np.testing.assert_array_equal(again.window(7, 0, 2000)[0], tokens)
    for other in (
        babilong(root, length=2000, seed=1).split("test"),
        babilong(root, length=2000).split("val"),
    ):
        assert (other.window(7, 0, 2000)[0] != tokens).mean() > 0.3
    with pytest.raises(UserError, match="babilong has no depth to vary"):
        babilong(root).at(depth=0.5)


def test_memory_does_not_grow_with_the_length(root: Path) -> None:
    peaks = []
    for length in (300_000, 1_200_000):
        dataset = babilong(root, length=length).split("test")
        tracemalloc.start()
        dataset.window(1, length // 2, length // 2 + 4096)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 2**20


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (("qa2",), "expected bAbI's files in .*babi, one of them qa2_…_train.txt .*found qa1, qa5"),
        (("qa",), "found qa1, qa5"),
        (("qa*",), "found qa1, qa5"),
        (("qa1", "qa1"), "expected different tasks"),
        (("",), "found qa1, qa5"),
    ],
)
def test_tasks_that_are_not_there_are_refused(tasks: tuple[str, ...], said: str, root: Path) -> None:
    with pytest.raises(UserError, match=said) as refused:
        babilong(root, *tasks)
    assert "\n" not in str(refused.value)


def test_without_the_files_one_line_says_so(root: Path) -> None:
    for keys in ({"root": root / "nowhere"}, {"folder": str(root / "books")}):
        with pytest.raises(
            UserError, match=r"expected bAbI's files in .*task\.folder=.*found none"
        ) as refused:
            Babilong(**keys)  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"task\.tasks: expected .*found \[\]"):
        Babilong([], root=root)
    with pytest.raises(UserError, match=r"task\.length: .*found 0"):
        babilong(root, length=0)
    twice = root / "babi" / "qa1_other_test.txt"
    twice.write_text(GIVEN)
    with pytest.raises(UserError, match=r"one of them qa1_…_test.txt .*found qa1_other"):
        babilong(root)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "stories with questions, found none"),
        ("1 Ada left.\n", "stories with questions, found none"),
        ("2 Ada left.\n", "row 1: expected a number from 1"),
        ("1 Ada left.\nBo sat.\n", "row 2: expected a number"),
        ("1 Ada left.\n2 Who left?\t\t1\n", "row 2: .*its answer"),
        ("1 \n", "row 1"),
    ],
)
def test_other_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "qa1_test.txt").write_text(text)
    with pytest.raises(UserError, match=rf"qa1_test\.txt.*{said}"):
        read_babi(tmp_path / "qa1_test.txt")


def test_a_single_story_is_too_few_and_short_sentences_are_none(root: Path) -> None:
    (root / "babi" / "qa7_train.txt").write_text(GIVEN)
    (root / "babi" / "qa7_test.txt").write_text(GIVEN)
    with pytest.raises(UserError, match=r"qa7_train\.txt: expected at least 2 stories, found 1"):
        babilong(root, "qa7").split("train")
    for split in ("train", "val"):
        (root / "short" / split).mkdir(parents=True)
        (root / "short" / split / "a.txt").write_text("Twice. " * 9)
    with pytest.raises(UserError, match="sentences of 40 bytes"):
        said(Babilong(corpus=str(root / "short"), root=root).split("val"), 0)


def test_the_loader_reads_it_as_configured(root: Path) -> None:
    words = [
        "task=babilong",
        "size=nano",
        "task.length=250",
        f"data.root={root}",
        f"data.corpus={root / 'books'}",
    ]
    cfg = compose(words)
    assert cfg.data.seq_len == 256
    batch = next(iter(DataModule(build.task(cfg), 4, 256, 16, seed=0).train_dataloader()))
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        end = max(place for place, target in enumerate(targets) if target != IGNORE)
        text = bytes([*tokens[1 : end + 1], targets[end]]).decode()
        assert read_again(text).encode() == bytes(target for target in targets if target != IGNORE)
