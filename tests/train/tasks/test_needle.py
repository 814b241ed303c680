"""Needles: every prompt read again from its bytes alone, and the book around them."""

import re
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.module import IGNORE, SequenceModule
from zoo.train.corpora.catalog import open_corpus
from zoo.train.data.module import DataModule
from zoo.train.evaluation.options import EvalOptions
from zoo.train.evaluation.samples import evaluate_samples
from zoo.train.evaluation.streaming import StreamReader, sample_hits
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.base import Dataset, Subset
from zoo.train.tasks.haystack import CyclicText
from zoo.train.tasks.needle import Needle, NeedleDataset, score, share_of_values

KINDS = ("single", "multikey", "multivalue", "multiquery")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two books a split, whose sentences are numbered and so never the same."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    for split in ("train", "val", "test"):
        (tmp_path / "shelf" / split).mkdir(parents=True)
        for book, size in enumerate((40, 23)):
            lines = [f"In {split} {book} the keeper came by “cage {n}.”" for n in range(size)]
            text = " ".join(lines[: size // 2]) + "\n\n" + " ".join(lines[size // 2 :]) + "\n"
            (tmp_path / "shelf" / split / f"{book}.txt").write_text(text)
    return str(tmp_path / "shelf")


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
    """The answer to a prompt, found as a person would."""
    opening, rest = text.split("\n", 1)
    context, question = rest.rsplit("\n", 1)
    book: dict[str, list[str]] = {}
    for key, value in re.findall(r"One of the special magic numbers for (\S+) is: (\d{7})\.", context):
        book.setdefault(key, []).append(value)
    one = opening.startswith("A special")
    asked = re.match(
        r"What is the special magic number for (.+?) mentioned in the provided text\? "
        r"The special magic number for \1 mentioned in the provided text is (?=\d)"
        if one
        else r"What are all the special magic numbers for (.+?) mentioned in the provided text\? "
        r"The special magic numbers for \1 mentioned in the provided text are (?=\d)",
        question,
    )
    assert asked
    noun = "A special magic number is" if one else "Some special magic numbers are"
    assert opening == (
        f"{noun} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {'number' if one else 'numbers'} afterwards."
    )
    keys = re.split(r", and |, ", asked[1])
    answer = ", ".join(value for key in keys for value in book[key])
    assert question[asked.end() :] == answer
    return answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distractors", [0, 3])
def test_the_answer_is_in_the_text(kind: Any, distractors: int, shelf: str) -> None:
    task = Needle(kind, length=1500, distractors=distractors, corpus=shelf)
    needles = {"single": 1}.get(kind, 4) + distractors
    for split in ("train", "test"):
        dataset = task.split(split)  # type: ignore[arg-type]
        for document in range(40):
            text, asked = said(dataset, document)
            assert len(text.encode(errors="replace")) >= dataset.lengths[document]
            assert asked == read_again(text)
            assert text.count("One of the special magic numbers for") == needles
            assert asked.count(", ") == (3 if kind in ("multivalue", "multiquery") else 0)
            assert dataset.answers(document) == asked.split(", ")


def test_several_needles_and_queries_come_in_any_order(shelf: str) -> None:
    dataset = Needle("multiquery", length=1500, corpus=shelf).split("val")
    depths = []
    for document in range(200):
        text, asked = said(dataset, document)
        values = asked.split(", ")
        assert len(set(values)) == 4
        assert all(value[0] != "0" for value in values)
        order = sorted(values, key=lambda value: text.index(f"is: {value}."))
        depths.append([values.index(value) for value in order])
    counts = np.array([[row.count(n) for n in range(4)] for row in zip(*depths, strict=True)])
    assert (abs(counts - 50) < 30).all()  # five standard errors


@pytest.mark.parametrize("length", [460, 900, 3000])
def test_without_needles_it_is_the_book_cut_between_sentences(length: int, shelf: str) -> None:
    needle = rb"One of the special magic numbers for \S+ is: \d{7}\."
    ring = CyclicText(open_corpus(shelf, "").split("test"))
    book = b"".join((ring.read(0, len(ring)).tobytes() * 4).split())
    dataset = Needle(length=length, distractors=1, corpus=shelf).split("test")
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
def test_depth_is_a_share_of_the_sentences(depth: float, shelf: str) -> None:
    task = Needle(length=2500, corpus=shelf).at(depth=depth)
    dataset = task.split("test")
    for document in range(20):
        text, _ = said(dataset, document)
        context = text.split("\n", 1)[1].rsplit("\n", 1)[0]
        before, after = re.split(r" ?One of the special magic numbers for \S+ is: \d{7}\. ?", context)
        ahead, behind = before.count(".”"), after.count(".”")
        cut = 0 if after.rstrip().endswith(".”") or depth == 1 else 1  # the last sentence is seldom whole
        sentences = ahead + behind + (cut if depth < 1 else not before.endswith(".”"))
        assert ahead == pytest.approx(depth * sentences, abs=1)
        assert (depth == 0) == (before == "")
        assert (depth == 1) == (after == "")
        assert task.groups(Subset(dataset, 20), document) == {"length": 2500, "depth": depth}


def test_forty_depths_are_as_likely(shelf: str) -> None:
    task = Needle(length=600, corpus=shelf)
    dataset = task.split("train")
    samples = [dataset.sample(document).depths for document in range(2000)]
    assert {len(sample) for sample in samples} == {1}
    depths, counts = np.unique(np.array(samples), return_counts=True)
    np.testing.assert_array_equal(depths, np.round(np.linspace(0, 100, num=40)).astype(int) / 100)
    assert ((counts - 50) ** 2 / 50).sum() < 82  # chi-square, 39 degrees of freedom, p = 0.0001
    many = Needle("multikey", needles=40, length=4000, corpus=shelf).split("train").sample(0).depths
    np.testing.assert_array_equal(many, depths)


def test_the_same_needles_at_every_length(shelf: str) -> None:
    task = Needle("multivalue", length=1000, corpus=shelf, eval_samples=6)
    for length in (700, 5000):
        there = task.at(length=length)
        dataset = there.split("val")
        assert isinstance(dataset, NeedleDataset)
        assert dataset.lengths.tolist() == [length] * 6
        assert there.groups(dataset, 2) == {"length": length}
        for document in range(6):
            near = said(task.split("val"), document)[1]
            assert said(dataset, document)[1] == near == read_again(said(dataset, document)[0])
    with pytest.raises(UserError, match="needle has no width to vary"):
        task.at(width=3)
    for several in (task, Needle(distractors=1)):
        with pytest.raises(UserError, match=r"task\.depth: .*of a single needle, found 0\.5"):
            several.at(depth=0.5)


def test_training_lengths_are_uniform_or_fixed(shelf: str) -> None:
    task = Needle(length=500, corpus=shelf, samples=20_000)
    lengths = task.split("train").lengths
    assert (lengths.min(), lengths.max()) == (task.min_length, 500)
    assert abs(lengths.mean() - (task.min_length + 500) / 2) < 1
    assert set(Needle(length=500, corpus=shelf, lengths="fixed").split("train").lengths.tolist()) == {500}
    text, asked = said(Needle(length=task.min_length, corpus=shelf).split("train"), 0)
    assert asked == read_again(text)


def test_a_window_is_a_slice_and_samples_are_repeatable(shelf: str) -> None:
    dataset = Needle("multikey", length=3000, corpus=shelf).split("test")
    tokens, targets = dataset.window(7, 0, 3000)
    edges = [0, 1, 2, 130, 131, 132, 700, 2800, 2990, 2999, 3000]
    for start, stop in [*pairwise(edges), (0, 1), (5, 5), (100, 2995)]:
        piece = dataset.window(7, start, stop)
        np.testing.assert_array_equal(piece[0], tokens[start:stop])
        np.testing.assert_array_equal(piece[1], targets[start:stop])
    with pytest.raises(IndexError):
        dataset.window(7, 0, 3001)
    again = Needle("multikey", length=3000, corpus=shelf, eval_samples=8).split("test")
    np.testing.assert_array_equal(again.window(7, 0, 3000)[0], tokens)
    for other in (
        Needle("multikey", length=3000, corpus=shelf, seed=1).split("test"),
        Needle("multikey", length=3000, corpus=shelf).split("val"),
    ):
        assert said(other, 7)[1] != said(dataset, 7)[1]


def test_memory_does_not_grow_with_the_length(shelf: str) -> None:
    peaks = []
    for length in (300_000, 1_200_000):
        dataset = Needle(length=length, corpus=shelf).split("test")
        tracemalloc.start()
        dataset.window(1, length // 2, length // 2 + 4096)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 2**20


def test_guesses_hit_what_is_said(shelf: str) -> None:
    task = Needle("multiquery", needles=3, distractors=1, length=1000, corpus=shelf)
    dataset = task.split("val")
    draw, guessed, copied, of = np.random.default_rng(0), 0, 0, 0
    for document in range(300):
        answer = said(dataset, document)[1]
        guess = ", ".join(str(draw.integers(10**6, 10**7)) for _ in range(3))
        hidden = re.findall(r"is: (\d+)\.", said(dataset, document)[0])
        copy = ", ".join(hidden[draw.integers(4)] for _ in range(3))
        guessed += sum(a == b for a, b in zip(answer, guess, strict=True))
        copied += sum(a == b for a, b in zip(answer, copy, strict=True))
        of += len(answer)
    expected = task.baselines(Subset(dataset, 9))
    assert expected["chance"] == pytest.approx(guessed / of, abs=0.02)
    assert expected["any needle"] == pytest.approx(copied / of, abs=0.05)
    alone = Needle(length=1000).baselines(dataset)
    assert alone == {"chance": pytest.approx((1 / 9 + 0.6) / 7)}


def test_scores_by_the_papers_rule(shelf: str) -> None:
    dataset = Needle("multivalue", needles=3, length=1000, corpus=shelf).split("val")
    values = dataset.answers(4)
    answer = said(dataset, 4)[1]
    assert score(answer, values) == score(f"they are {values[2]} and {values[0]}; {values[1]}", values) == 1
    assert score(answer[:16], values) == pytest.approx(2 / 3)
    assert score("none", values) == 0
    hits = np.ones(25, np.bool_)
    assert share_of_values(hits) == 1
    hits[[7, 8, 16]] = False  # commas are no values
    assert share_of_values(hits) == 1
    hits[12] = False
    assert share_of_values(hits) == pytest.approx(2 / 3)
    task = Needle("multivalue", needles=3, length=1000, corpus=shelf)
    assert task.scores(Subset(dataset, 5), 4, hits) == {"values found": share_of_values(hits)}
    assert Needle(length=1000).scores(dataset, 4, hits[:7]) == {}
    hits[[0, 1, 24]] = False
    assert share_of_values(hits) == 0


@pytest.mark.parametrize(
    ("keys", "said"),
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
def test_impossible_samples_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Needle(**keys)


def test_the_loader_reads_it_as_configured(shelf: str) -> None:
    words = ["task=needle", "size=nano", "task.length=500", f"data.corpus={shelf}"]
    cfg = compose(words)
    task = build.task(cfg)
    assert cfg.data.seq_len == 512
    batch = next(iter(DataModule(task, 4, 512, 16, seed=0).train_dataloader()))
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        end = max(place for place, target in enumerate(targets) if target != IGNORE)
        text = bytes([*tokens[1 : end + 1], targets[end]]).decode(errors="replace")
        assert read_again(text).encode() == bytes(target for target in targets if target != IGNORE)


class Always(SequenceModule):
    """Says the same byte whatever it reads."""

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


def test_an_evaluation_says_which_targets_and_how_many_values_are_hit(shelf: str) -> None:
    task = Needle("multivalue", length=1000, corpus=shelf, eval_samples=20)
    dataset = task.split("test")
    for window in (64, 4096):  # an answer may lie in two windows
        hits = sample_hits(StreamReader(Always(ord("7")), batch_size=3, seq_len=window), dataset)
        for document in range(20):
            assert hits.masks[document].tolist() == [digit == "7" for digit in said(dataset, document)[1]]
    (row,) = evaluate_samples(
        Always(ord("7")), task, EvalOptions(lengths=["1000"], prompts=20), 1000, lambda line: None
    )
    assert row["scores"] == {"values found": 0}
    assert row["targets"]["hits"] == sum(said(dataset, document)[1].count("7") for document in range(20))
