"""Needles: every prompt answered from its text alone, and the book around them."""

import re
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.train.tasks.samples import check_windows, read_sample, read_text, texts_of_batch
from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.corpora.catalog import open_corpus
from zoo.train.data.module import DataModule
from zoo.train.evaluation.options import EvalOptions
from zoo.train.evaluation.samples import evaluate_samples
from zoo.train.evaluation.streaming import StreamReader, predict_samples
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.background_text import CyclicText
from zoo.train.tasks.base import SPLITS, Subset
from zoo.train.tasks.needle import Needle, NeedleDataset, score, share_of_values

KINDS = ("single", "multikey", "multivalue", "multiquery")


@pytest.fixture
def books(tmp_path: Path) -> str:
    """Two books a split, whose sentences are numbered and so all different."""
    for split in SPLITS:
        (tmp_path / "books" / split).mkdir(parents=True)
        for book, size in enumerate((40, 23)):
            lines = [f"In {split} {book} the keeper came by “cage {n}.”" for n in range(size)]
            text = " ".join(lines[: size // 2]) + "\n\n" + " ".join(lines[size // 2 :]) + "\n"
            (tmp_path / "books" / split / f"{book}.txt").write_text(text)
    return str(tmp_path / "books")


def answer_to(text: str) -> str:
    """The answer to a prompt, from its needles and its question; the text has to end in it."""
    opening, rest = text.split("\n", 1)
    context, question = rest.rsplit("\n", 1)
    values_of: dict[str, list[str]] = {}
    for key, value in re.findall(r"One of the special magic numbers for (\S+) is: (\d{7})\.", context):
        values_of.setdefault(key, []).append(value)
    single = opening.startswith("A special")
    match = re.match(
        r"What is the special magic number for (.+?) mentioned in the provided text\? "
        r"The special magic number for \1 mentioned in the provided text is (?=\d)"
        if single
        else r"What are all the special magic numbers for (.+?) mentioned in the provided text\? "
        r"The special magic numbers for \1 mentioned in the provided text are (?=\d)",
        question,
    )
    assert match
    subject = "A special magic number is" if single else "Some special magic numbers are"
    assert opening == (
        f"{subject} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {'number' if single else 'numbers'} afterwards."
    )
    keys = re.split(r", and |, ", match[1])
    answer = ", ".join(value for key in keys for value in values_of[key])
    assert question[match.end() :] == answer
    return answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distractors", [0, 3])
def test_the_answer_is_in_the_text(kind: Any, distractors: int, books: str) -> None:
    task = Needle(kind, length=1500, distractors=distractors, corpus=books)
    needles = distractors + (1 if kind == "single" else 4)
    for split in SPLITS:
        dataset = task.split(split)
        for document in range(40):
            text, answer = read_text(dataset, document)
            assert len(text.encode(errors="replace")) >= dataset.lengths[document]
            assert answer == answer_to(text)
            assert text.count("One of the special magic numbers for") == needles
            assert answer.count(", ") == (3 if kind in ("multivalue", "multiquery") else 0)
            assert dataset.answers(document) == answer.split(", ")


def test_several_needles_and_queries_come_in_any_order(books: str) -> None:
    dataset = Needle("multiquery", length=1500, corpus=books).split("val")
    orders = []
    for document in range(200):
        text, answer = read_text(dataset, document)
        values = answer.split(", ")
        assert len(set(values)) == 4
        assert all(value[0] != "0" for value in values)
        in_text = sorted(values, key=lambda value: text.index(f"is: {value}."))
        orders.append([values.index(value) for value in in_text])
    counts = np.array([np.bincount(column, minlength=4) for column in zip(*orders, strict=True)])
    assert (abs(counts - 50) < 30).all()  # five standard errors


@pytest.mark.parametrize("length", [460, 900, 3000])
def test_without_needles_it_is_the_book_cut_between_sentences(length: int, books: str) -> None:
    needle = rb"One of the special magic numbers for \S+ is: \d{7}\."
    source = CyclicText(open_corpus(books, "").split("test"))
    book = b"".join((source.read(0, len(source)).tobytes() * 4).split())
    dataset = Needle(length=length, distractors=1, corpus=books).split("test")
    for document in range(40):
        tokens, targets = dataset.window(document, 0, length)
        text = bytes([*tokens[1:].tolist(), int(targets[-1])])
        assert len(text) == length
        context = text.split(b"\n", 1)[1].rsplit(b"\n", 1)[0]
        assert b"".join(re.sub(needle, b"", context).split()) in book
        for match in re.finditer(needle, context):
            before, after = context[: match.start()].strip(), context[match.end() :].strip()
            assert not before or not after or before.endswith((b".", "”".encode()))


@pytest.mark.parametrize("depth", [0, 0.3, 0.5, 1])
def test_depth_is_a_share_of_the_sentences(depth: float, books: str) -> None:
    task = Needle(length=2500, corpus=books).at(depth=depth)
    dataset = task.split("test")
    for document in range(20):
        text, _ = read_text(dataset, document)
        context = text.split("\n", 1)[1].rsplit("\n", 1)[0]
        before, after = re.split(r" ?One of the special magic numbers for \S+ is: \d{7}\. ?", context)
        sentences_before, sentences_after = before.count(".”"), after.count(".”")
        cut = 0 if after.rstrip().endswith(".”") or depth == 1 else 1  # the last sentence is seldom complete
        sentences = sentences_before + sentences_after + (cut if depth < 1 else not before.endswith(".”"))
        assert sentences_before == pytest.approx(depth * sentences, abs=1)
        assert (depth == 0) == (before == "")
        assert (depth == 1) == (after == "")
        assert task.groups(Subset(dataset, 20), document) == {"length": 2500, "depth": depth}


def test_forty_depths_are_uniform(books: str) -> None:
    dataset = Needle(length=600, corpus=books).split("train")
    depths_of = [dataset.params(document).depths for document in range(2000)]
    assert {len(depths) for depths in depths_of} == {1}
    depths, counts = np.unique(np.array(depths_of), return_counts=True)
    np.testing.assert_array_equal(depths, np.round(np.linspace(0, 100, num=40)).astype(int) / 100)
    assert ((counts - 50) ** 2 / 50).sum() < 82  # chi-square, 39 degrees of freedom, p = 0.0001
    forty = Needle("multikey", needles=40, length=4000, corpus=books).split("train").params(0).depths
    np.testing.assert_array_equal(forty, depths)


def test_the_same_needles_at_every_length(books: str) -> None:
    task = Needle("multivalue", length=1000, corpus=books, eval_samples=6)
    for length in (700, 5000):
        varied = task.at(length=length)
        dataset = varied.split("val")
        assert isinstance(dataset, NeedleDataset)
        assert dataset.lengths.tolist() == [length] * 6
        assert varied.groups(dataset, 2) == {"length": length}
        for document in range(6):
            text, answer = read_text(dataset, document)
            assert answer == answer_to(text) == read_text(task.split("val"), document)[1]
    with pytest.raises(UserError, match="needle has no width to vary"):
        task.at(width=3)
    for several in (task, Needle(distractors=1)):
        with pytest.raises(UserError, match=r"task\.depth: .*of a single needle, found 0\.5"):
            several.at(depth=0.5)


def test_training_lengths_are_uniform_or_fixed(books: str) -> None:
    task = Needle(length=500, corpus=books, samples=20_000)
    lengths = task.split("train").lengths
    assert (lengths.min(), lengths.max()) == (task.min_length, 500)
    assert abs(lengths.mean() - (task.min_length + 500) / 2) < 1
    assert set(Needle(length=500, corpus=books, lengths="fixed").split("train").lengths.tolist()) == {500}
    text, answer = read_text(Needle(length=task.min_length, corpus=books).split("train"), 0)
    assert answer == answer_to(text)


def test_a_window_is_a_slice_and_samples_are_repeatable(books: str) -> None:
    dataset = Needle("multikey", length=3000, corpus=books).split("test")
    edges = [0, 1, 2, 130, 131, 132, 700, 2800, 2990, 2999, 3000]
    check_windows(dataset, 7, [*pairwise(edges), (0, 1), (5, 5), (100, 2995)])
    fewer = Needle("multikey", length=3000, corpus=books, eval_samples=8).split("test")
    np.testing.assert_array_equal(read_sample(fewer, 7), read_sample(dataset, 7))
    for different in (
        Needle("multikey", length=3000, corpus=books, seed=1).split("test"),
        Needle("multikey", length=3000, corpus=books).split("val"),
    ):
        assert read_text(different, 7)[1] != read_text(dataset, 7)[1]


def test_memory_does_not_grow_with_the_length(books: str) -> None:
    peaks = []
    for length in (300_000, 1_200_000):
        dataset = Needle(length=length, corpus=books).split("test")
        tracemalloc.start()
        dataset.window(1, length // 2, length // 2 + 4096)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 2**20


def test_guesses_hit_as_much_as_the_baselines_predict(books: str) -> None:
    task = Needle("multiquery", needles=3, distractors=1, length=1000, corpus=books)
    dataset = task.split("val")
    rng, guess_hits, copy_hits, exact_copies, total = np.random.default_rng(0), 0, 0, 0, 0
    for document in range(300):
        text, answer = read_text(dataset, document)
        guess = ", ".join(str(rng.integers(10**6, 10**7)) for _ in range(3))
        values = re.findall(r"is: (\d+)\.", text)
        copy = ", ".join(values[rng.integers(4)] for _ in range(3))
        guess_hits += sum(a == b for a, b in zip(answer, guess, strict=True))
        copy_hits += sum(a == b for a, b in zip(answer, copy, strict=True))
        exact_copies += answer == copy
        total += len(answer)
    baselines = task.baselines(Subset(dataset, 9))
    assert baselines["chance"] == pytest.approx(guess_hits / total, abs=0.02)
    assert baselines["any needle"] == pytest.approx(copy_hits / total, abs=0.05)
    assert Needle(length=1000).baselines(dataset) == {"chance": pytest.approx((1 / 9 + 0.6) / 7)}
    exact = task.exact_baselines(Subset(dataset, 9))
    assert exact == {"chance": pytest.approx(1 / 9_000_000**3), "any needle": 1 / 4**3}
    assert abs(exact_copies - 300 / 64) < 4 * (300 / 64) ** 0.5
    assert Needle(length=1000).exact_baselines(dataset) == {"chance": pytest.approx(1 / 9_000_000)}


def test_scores_by_the_papers_rule(books: str) -> None:
    task = Needle("multivalue", needles=3, length=1000, corpus=books)
    dataset = task.split("val")
    values = dataset.answers(4)
    answer = read_text(dataset, 4)[1]
    assert score(answer, values) == score(f"they are {values[2]} and {values[0]}; {values[1]}", values) == 1
    assert score(answer[:16], values) == pytest.approx(2 / 3)
    assert score("none", values) == 0
    hits = np.ones(25, np.bool_)
    assert share_of_values(hits) == 1
    hits[[7, 8, 16]] = False  # separators are no values
    assert share_of_values(hits) == 1
    hits[12] = False
    assert share_of_values(hits) == pytest.approx(2 / 3)
    assert task.scores(Subset(dataset, 5), 4, hits) == {"values found": share_of_values(hits)}
    assert Needle(length=1000).scores(dataset, 4, hits[:7]) == {}
    hits[[0, 1, 24]] = False
    assert share_of_values(hits) == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"length": 200}, r"task\.length: expected at least \d+ .*found 200"),
        ({"kind": "multiquery", "needles": 40}, r"task\.length: expected at least \d+"),
        ({"kind": "multikey", "needles": 0}, "found needles=0"),
        ({"kind": "multikey", "needles": 41}, "40 in all, found needles=41"),
        ({"distractors": -1}, "distractors=-1"),
        ({"distractors": 40}, "distractors=40"),
        ({"depth": 1.5}, "from 0 to 1.*found 1.5"),
        ({"kind": "multivalue", "depth": 0.5}, "kind='multivalue'"),
        ({"vocab_size": 256}, "expected at least 257"),
        ({"eval_samples": 0}, "at least 1"),
    ],
)
def test_impossible_samples_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Needle(**keys)


def test_the_loader_reads_it_as_configured(books: str) -> None:
    cfg = compose(["task=needle", "size=nano", "task.length=500", f"data.corpus={books}"])
    assert cfg.data.seq_len == 512
    batch = next(iter(DataModule(build.task(cfg), 4, 512, 16, seed=0).train_dataloader()))
    for text, answer in texts_of_batch(batch):
        assert answer_to(text) == answer


class Constant(SequenceModule):
    """Predicts the same byte after any text."""

    learns_through_memory = True
    cuts_anywhere = True

    def __init__(self, byte: int) -> None:
        super().__init__()
        self.vocab_size, self.segment_len, self.byte = 257, 64, byte
        self.unused = nn.Parameter(torch.zeros(1))

    def init_state(self, rows: int) -> Tensor:
        return torch.zeros(rows)

    def segment(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.one_hot(torch.full_like(tokens, self.byte), 257).float(), state


def test_an_evaluation_reports_which_targets_and_how_many_values_are_hit(books: str) -> None:
    task = Needle("multivalue", length=1000, corpus=books, eval_samples=20)
    dataset = task.split("test")
    model = Constant(ord("7")).eval()
    answers = [read_text(dataset, document)[1] for document in range(20)]
    for seq_len in (64, 4096):  # an answer may lie in two windows
        predictions = predict_samples(StreamReader(model, batch_size=3, seq_len=seq_len), dataset)
        for hits, answer in zip(predictions.hits, answers, strict=True):
            assert hits.tolist() == [digit == "7" for digit in answer]
    options = EvalOptions(lengths=["1000"], prompts=20)
    (row,) = evaluate_samples(StreamReader(model), task, options, 1000, lambda line: None)
    assert row["scores"] == {"values found": 0}
    assert row["targets"]["hits"] == sum(answer.count("7") for answer in answers)
