"""BABILong: every sample answered from its text alone, and its background compared with the books."""

import os
import re
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.tasks.babi import FEW_QUESTIONS, expected_questions, movements
from tests.train.tasks.samples import check_windows, read_sample, read_text, texts_of_batch
from zoo.errors import UserError
from zoo.train.corpora.catalog import open_corpus
from zoo.train.data.module import DataModule
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.babilong import Babilong
from zoo.train.tasks.background_text import CyclicText
from zoo.train.tasks.base import SPLITS, Split, Subset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """bAbI's files, and books of numbered sentences, some of them short."""
    (tmp_path / "babi").mkdir()
    for kind, stories in (("train", 40), ("test", 30)):
        text = movements(stories, seed=stories)
        (tmp_path / "babi" / f"qa1_single-supporting-fact_{kind}.txt").write_text(text)
        (tmp_path / "babi" / f"qa5_{kind}.txt").write_text(FEW_QUESTIONS * 3)
    for split in SPLITS:
        (tmp_path / "books" / split).mkdir(parents=True)
        for book, size in enumerate((40, 23)):
            lines = [f"In {split} {book} the keeper came by every cage, {n}. Twice!\n" for n in range(size)]
            (tmp_path / "books" / split / f"{book}.txt").write_text("".join(lines))
    return tmp_path


def babilong(root: Path, *tasks: str, **keys: Any) -> Babilong:
    return Babilong(tasks or ("qa1",), corpus=str(root / "books"), root=root, **keys)


def answer_to(text: str) -> str:
    """The last place of the person in the question; the text has to end in it."""
    context, question = text.rsplit("\n", 1)
    moves = re.findall(r"(\w+) (?:went|moved|journeyed|travelled)(?: back)? to the (\w+)\.", context)
    match = re.match(r"Where is (\w+)\? ", question)
    assert match
    answer = [location for person, location in moves if person == match[1]][-1]
    assert question[match.end() :] == answer
    return answer


@pytest.mark.parametrize("length", [300, 1000, 4000])
def test_the_answer_is_in_the_text(length: int, root: Path) -> None:
    task = babilong(root, length=length)
    counts: dict[Split, int] = {"train": 60, "val": 12, "test": 90}
    for split, count in counts.items():
        dataset = task.split(split)
        for document in range(count):
            text, answer = read_text(dataset, document)
            assert answer == answer_to(text)
            assert len(text) == dataset.lengths[document] <= length


@pytest.mark.parametrize("length", [1, 250, 1500])
def test_facts_in_their_order_among_complete_sentences_of_the_books(length: int, root: Path) -> None:
    questions = expected_questions((root / "babi" / "qa1_single-supporting-fact_test.txt").read_text())
    source = CyclicText(open_corpus(str(root / "books"), "").split("test"))
    lines = source.read(0, len(source)).tobytes().decode().splitlines()
    long = [line.removesuffix(" Twice!") for line in lines] * 3  # "Twice!" is under 40 bytes
    dataset = babilong(root, length=length).split("test")
    for document, (facts, question, answer, _) in enumerate(questions):
        context, last = read_text(dataset, document)[0].rsplit("\n", 1)
        assert last == f"{question} {answer}"
        searched = 0
        for fact in facts:
            start = context.index(fact + " ", searched)
            assert context[:start].endswith(" ") or not start
            context, searched = context[:start] + context[start + len(fact) + 1 :], start
        sentences = [line for line in re.split(r"(?<=\.) ", context) if line]
        if length == 1:
            assert not sentences
        elif sentences:
            first = next(i for i, line in enumerate(long) if line.startswith(sentences[0]))
            *complete, cut = sentences
            assert complete == long[first : first + len(complete)]
            assert long[first + len(complete)].startswith(cut.strip())


def test_facts_go_to_uniform_gaps(root: Path) -> None:
    (root / "babi" / "qa7_train.txt").write_text("1 Ada left.\n2 Who left?\tAda\t1\n" * 20)
    (root / "babi" / "qa7_test.txt").write_text("1 Ada left.\n2 Bo sat.\n3 Who left?\tAda\t1\n")
    dataset = babilong(root, "qa7", length=500, eval_samples=600).split("test")
    counts, same_gap, most_sentences = Counter[int](), 0, 0
    for document in range(600):
        context = read_text(dataset, document)[0].rsplit("\n", 1)[0]
        first, second = context.index("Ada left. "), context.index("Bo sat. ")
        assert first < second
        gaps = [context[:start].count("keeper") for start in (first, second)]
        counts.update(gaps)
        same_gap += gaps[0] == gaps[1]
        most_sentences = max(most_sentences, context.count("keeper"))
    num_gaps = most_sentences + 1  # in some samples the last sentence is cut before its keeper
    assert len(counts) <= num_gaps <= 12
    gap_counts = np.array([counts[gap] for gap in range(num_gaps - 2)])
    assert (abs(gap_counts - 1200 / num_gaps) < 5 * np.sqrt(1200 / num_gaps)).all()
    assert same_gap / 600 == pytest.approx(1 / num_gaps, abs=0.07)


def test_a_sample_is_never_shorter_than_its_facts(root: Path) -> None:
    dataset = babilong(root, "qa5", "qa1", length=1, eval_samples=20).split("val")
    for document in range(20):
        text, answer = read_text(dataset, document)
        assert len(text) == dataset.lengths[document]
        assert answer == text.rsplit(" ", 1)[1]
    fact = "Ada gave the milk to Bo. "
    assert read_text(dataset, 0)[0] == f"{fact}\nWho has the milk? Bo"
    assert read_text(dataset, 2)[0] == f"{fact}Bo gave the milk to Cy. \nWho has the milk? Cy"
    longer = babilong(root, "qa5", "qa1", length=120, eval_samples=20).split("val").lengths
    np.testing.assert_array_equal(longer, np.maximum(dataset.lengths, 120))


def test_training_lengths_are_uniform_or_fixed(root: Path) -> None:
    task = babilong(root, "qa5", length=400, samples=20_000)
    lengths = task.split("train").lengths.reshape(-1, 2)
    for shortest, column in zip((46, 70), lengths.T, strict=True):  # without background
        assert abs(column.mean() - (shortest + 400) / 2) < 5
        assert (column.min(), column.max()) == (shortest, 400)
    fixed = babilong(root, "qa5", length=400, lengths="fixed").split("train")
    assert set(fixed.lengths.tolist()) == {400}


def test_tasks_take_turns_and_a_tenth_of_the_stories_validates(root: Path) -> None:
    task = babilong(root, "qa5", "qa1", length=300)
    first_four = Subset(task.split("test"), 4)
    assert [task.groups(first_four, document)["task"] for document in range(4)] == ["qa5", "qa1"] * 2
    questions = {split: task.questions(split) for split in SPLITS}
    assert {split: [len(group) for group in questions[split].values()] for split in SPLITS} == {
        "train": [4, 108],
        "val": [2, 12],
        "test": [6, 90],
    }
    assert {question.story for question in questions["train"]["qa1"]} == set(range(36))
    assert {question.story for question in questions["val"]["qa1"]} == set(range(36, 40))
    dataset = task.split("test")
    answers = Counter(read_text(dataset, 2 * i + 1)[1] for i in range(90))
    assert answers == Counter(
        answer for _, _, answer, _ in expected_questions(task.files["qa1", "test"].read_text())
    )


def test_guesses_hit_as_much_as_the_baselines_predict(root: Path) -> None:
    task = babilong(root, "qa1", "qa5", eval_samples=180)
    dataset = task.split("test")
    answers_of: dict[str, list[str]] = {"qa1": [], "qa5": []}
    for document in range(180):
        answers_of[str(task.groups(dataset, document)["task"])].append(read_text(dataset, document)[1])
    size, constant, constant_words, chance = 0, 0, 0, 0.0
    for answers in answers_of.values():
        commonest = Counter(answers).most_common(1)[0][0]
        for answer in answers:
            constant_words += answer == commonest
            size += len(answer)
            for i in range(len(answer)):
                candidates = [word for word in answers if word.startswith(answer[:i])]
                constant += Counter(word[i] for word in candidates).most_common(1)[0][0] == answer[i]
                words = set(candidates)
                chance += sum(word[i] == answer[i] for word in words) / len(words)
    baselines = task.baselines(dataset)
    assert baselines["constant"] == pytest.approx(constant / size)
    assert baselines["chance"] == pytest.approx(chance / size)
    assert task.exact_baselines(dataset) == {
        "chance": pytest.approx((1 / 4 + 1 / 2) / 2),
        "constant": pytest.approx(constant_words / 180),
    }


@pytest.mark.skipif("ZOO_DATA" not in os.environ, reason="needs bAbI below $ZOO_DATA")
def test_babi_itself(root: Path) -> None:
    folder = Path(os.environ["ZOO_DATA"]) / "babi"
    task = Babilong(length=600, folder=folder, corpus=str(root / "books"))
    dataset = task.split("test")
    for document in range(1000):
        text, answer = read_text(dataset, document)
        assert answer == answer_to(text)
    assert task.exact_baselines(dataset) == {"chance": pytest.approx(1 / 6), "constant": pytest.approx(0.187)}
    for name in ("qa2", "qa3", "qa4", "qa5"):
        task = Babilong([name], length=600, folder=folder, corpus=str(root / "books"))
        (path,) = folder.glob(f"{name}_*test.txt")
        questions = expected_questions(path.read_text())
        assert len(questions) == 1000
        dataset = task.split("test")
        for document in range(0, 1000, 50):
            facts, question, expected, _ = questions[document]
            text, answer = read_text(dataset, document)
            assert text.endswith(f"\n{question} {expected}")
            assert answer == expected
            assert sum(len(fact) + 1 for fact in facts) < len(text)


def test_a_window_is_a_slice_and_samples_are_repeatable(root: Path) -> None:
    dataset = babilong(root, length=2000).split("test")
    spans = [*pairwise(range(0, 2001, 40)), (0, 1), (5, 5), (100, 1995), (1993, 2000)]
    check_windows(dataset, 7, spans)
    tokens, _ = read_sample(dataset, 7)
    longer = babilong(root, length=1000, eval_samples=8).at(length=2000).split("test")
    np.testing.assert_array_equal(read_sample(longer, 7)[0], tokens)
    for different in (
        babilong(root, length=2000, seed=1).split("test"),
        babilong(root, length=2000).split("val"),
    ):
        assert (read_sample(different, 7)[0] != tokens).mean() > 0.3
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


def test_a_background_without_long_sentences_is_refused(root: Path) -> None:
    for split in ("train", "val"):
        (root / "short" / split).mkdir(parents=True)
        (root / "short" / split / "a.txt").write_text("Twice. " * 9)
    with pytest.raises(UserError, match="sentences of 40 bytes"):
        read_text(Babilong(corpus=str(root / "short"), root=root).split("val"), 0)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("qa2",), "expected bAbI's files in .*babi, one of them qa2_…_train.txt .*found qa1, qa5"),
        (("qa",), "found qa1, qa5"),
        (("qa*",), "found qa1, qa5"),
        (("qa1", "qa1"), "expected different tasks"),
        (("",), "found qa1, qa5"),
    ],
)
def test_missing_tasks_are_refused(tasks: tuple[str, ...], message: str, root: Path) -> None:
    with pytest.raises(UserError, match=message) as refused:
        babilong(root, *tasks)
    assert "\n" not in str(refused.value)


def test_missing_files_are_an_error_of_one_line(root: Path) -> None:
    for keys in ({"root": root / "nowhere"}, {"folder": str(root / "books")}):
        message = r"expected bAbI's files in .*task\.folder=.*found none"
        with pytest.raises(UserError, match=message) as refused:
            Babilong(**keys)  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"task\.tasks: expected .*found \[\]"):
        Babilong([], root=root)
    with pytest.raises(UserError, match=r"task\.length: .*found 0"):
        babilong(root, length=0)
    (root / "babi" / "qa1_other_test.txt").write_text(FEW_QUESTIONS)
    with pytest.raises(UserError, match=r"one of them qa1_…_test.txt .*found qa1_other"):
        babilong(root)


def test_the_loader_reads_it_as_configured(root: Path) -> None:
    words = ["task=babilong", "size=nano", "task.length=250"]
    cfg = compose([*words, f"data.root={root}", f"data.corpus={root / 'books'}"])
    assert cfg.data.seq_len == 256
    batch = next(iter(DataModule(build.task(cfg), 4, 256, 16, seed=0).train_dataloader()))
    for text, answer in texts_of_batch(batch):
        assert answer_to(text) == answer
