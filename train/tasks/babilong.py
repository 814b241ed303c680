"""BABILong: facts of bAbI scattered through books, and a question about them.

Kuratov et al. 2024, arXiv:2406.10149; facts and questions of bAbI, Weston et al. 2015, arXiv:1502.05698:

    book  Mary moved to the bathroom.  book  John went to the hallway.  book
    Where is Mary? bathroom

A question of a story takes all facts before it and no other question.  Background is sentences of a corpus,
of the same split, from a random one on, those under 40 bytes (some 10 tokens of GPT-2) skipped, the last one
cut: all that the rest leaves of `length`.  Every fact goes to a gap between sentences, each as likely, two to
the same one if it so falls; facts keep their order.  A sample is bytes, behind the END that opens any
document of task lm; `length` counts its positions, and where facts and question need more it has those and no
background: with length=1 it is bAbI itself.

The answer's bytes are asked.  Its first ones give the others away: who knows the words and reads nothing gets
87 % of the bytes, but 19 % of the words, which are what counts (`baselines`).

The files are looked for in `folder`, by their names of old: qa1_single-supporting-fact_train.txt, …_test.txt.
Of the stories to train on the last tenth is for validation.  All tasks have as many samples.

Differs from the paper: `length` counts bytes and all of a sample, not GPT-2's tokens of facts and background.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from zoo.errors import UserError
from zoo.train.corpora.catalog import open_corpus
from zoo.train.tasks.base import Dataset, SampleTask, Split, Task, origin
from zoo.train.tasks.haystack import Book, HaystackDataset, Ring, Woven
from zoo.train.tasks.lm import END

SHORTEST = 40  # bytes of a sentence of background
VAL = 10  # one in so many stories to train on is for validation


class Question(NamedTuple):
    """A question of bAbI's with the facts before it."""

    facts: tuple[bytes, ...]
    question: bytes
    answer: bytes
    story: int  # counted from 0


class Babilong(SampleTask):
    """Samples to train on have any length from what their facts need up to `length` (`lengths: uniform`) or
    just that (`fixed`); held-out ones always have just that."""

    name = "babilong"
    VERSION = 1

    def __init__(
        self,
        tasks: Sequence[str] = ("qa1",),
        length: int = 1024,
        lengths: Literal["uniform", "fixed"] = "uniform",
        folder: str | Path | None = None,
        corpus: str = "stdlib",
        root: str | Path = "data",
        samples: int = 1_000_000,
        eval_samples: int = 1000,
        seed: int = 0,
        vocab_size: int = END + 1,
    ) -> None:
        """`tasks`: of qa1, qa2 …  `folder`: babi below `root` if None.  `corpus`
        and `root`: see `open_corpus`.  UserError: no such files there."""
        super().__init__(vocab_size, END + 1, samples, eval_samples, seed)
        if length < 1:
            raise UserError(f"task.length: expected at least 1, found {length}")
        self.length, self.lengths, self.corpus, self.root = length, lengths, corpus, root
        self.folder = Path(root) / "babi" if folder is None else Path(folder).expanduser()
        self.tasks = list(tasks)
        there = {path.name for path in self.folder.glob("qa*.txt")} if self.folder.is_dir() else set()
        self.files: dict[tuple[str, str], Path] = {}
        for task, kind in product(self.tasks, ("train", "test")):
            found = [
                name for name in sorted(there) if re.fullmatch(rf"{re.escape(task)}_(.*_)?{kind}\.txt", name)
            ]
            if len(found) != 1:
                names = sorted({name.partition("_")[0] for name in there}, key=lambda name: (len(name), name))
                raise UserError(
                    f"task babilong: expected bAbI's files in {self.folder}, one of them {task}_…_{kind}.txt "
                    f"(task.folder=… or below data.root), found {', '.join(found or names) or 'none'}"
                )
            self.files[task, kind] = self.folder / found[0]
        if not tasks or len(set(tasks)) < len(tasks):
            raise UserError(f"task.tasks: expected different tasks, at least one, found {self.tasks}")

    def at(self, **axes: int | float) -> Task:
        """The same questions at another `length`."""
        length = axes.pop("length", self.length)
        super().at(**axes)
        return Babilong(
            tasks=self.tasks,
            length=int(length),
            lengths=self.lengths,
            folder=self.folder,
            corpus=self.corpus,
            root=self.root,
            samples=self.counts["train"],
            eval_samples=self.counts["val"],
            seed=self.seed,
            vocab_size=self.vocab_size,
        )

    def split(self, name: Split) -> Dataset:
        return BabilongDataset(self, name)

    def questions(self, name: Split) -> dict[str, list[Question]]:
        """The questions of a split, by task."""
        if name == "test":
            return {task: read_babi(self.files[task, "test"]) for task in self.tasks}
        found = {}
        for task, questions in self._known.items():
            stories = questions[-1].story + 1
            first = stories - max(1, stories // VAL)
            found[task] = [one for one in questions if (one.story >= first) == (name == "val")]
            if not found[task]:
                raise UserError(f"{self.files[task, 'train']}: expected at least 2 stories, found {stories}")
        return found

    @cached_property
    def _known(self) -> dict[str, list[Question]]:
        return {task: read_babi(self.files[task, "train"]) for task in self.tasks}

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Predictors that read nothing of a sample but what there is of the answer so far.

        chance: one of the answers to the split's questions that go on so, each as likely; constant: the
        commonest of them.  Shares of bytes; and of whole words, where the guess is made at once.
        """
        priors = {
            task: Counter(one.answer for one in questions)
            for task, questions in _of(dataset).questions.items()
        }
        asked = Counter(map(_of(dataset).asks, range(len(dataset.lengths))))
        size = sum(count * len(answer) for (_, answer), count in asked.items())
        hits = np.sum([n * guessed(answer, priors[task]) for (task, answer), n in asked.items()], axis=0)
        chance, constant = (hits[:2] / size).tolist()
        chance_word, constant_word = (hits[2:] / asked.total()).tolist()
        return {
            "chance": chance,
            "constant": constant,
            "chance of whole words": chance_word,
            "constant of whole words": constant_word,
        }

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        return {"task": _of(dataset).asks(document)[0]}


class BabilongDataset(HaystackDataset):
    """Samples drawn when they are read, each from a generator of its own; tasks and questions take turns."""

    def __init__(self, task: Babilong, split: Split) -> None:
        super().__init__(task.seed, split, Ring(open_corpus(task.corpus, task.root).split(split)))
        self.questions = task.questions(split)
        document = np.arange(task.counts[split])
        turn, of = np.divmod(document, len(task.tasks))
        needed = np.zeros(len(document), np.int64)
        for number, questions in enumerate(self.questions.values()):
            own = np.array([sum(map(len, lines(question))) for question in questions])
            needed[of == number] = own[turn[of == number] % len(own)]
        self.lengths = np.maximum(needed, task.length)
        if split == "train" and task.lengths == "uniform":
            self.lengths = self.generator().integers(needed, self.lengths + 1)

    def question(self, document: int) -> Question:
        turn, of = divmod(document, len(self.questions))
        questions = self.questions[list(self.questions)[of]]
        return questions[turn % len(questions)]

    def asks(self, document: int) -> tuple[str, bytes]:
        """The task that a sample is of, and its answer."""
        return list(self.questions)[document % len(self.questions)], self.question(document).answer

    def asked_of(self, document: int) -> int:
        return len(self.question(document).answer)

    def weave(self, document: int) -> Woven:
        *facts, last = lines(self.question(document))
        draw = self.generator(document)
        start = int(draw.integers(len(self.ring)))
        size = int(self.lengths[document]) - sum(map(len, facts)) - len(last)
        book = Book(self.ring, start, size, SHORTEST)
        gaps = np.sort((draw.random(len(facts)) * (book.count + 1)).astype(np.int64)).tolist()
        pieces: list[bytes | range] = []
        begin = 0
        for place, fact in zip(book.begins(gaps), facts, strict=True):
            pieces += [range(begin, place), fact]
            begin = place
        return Woven(book, [*pieces, range(begin, size), last])


def lines(question: Question) -> list[bytes]:
    """Facts, and question and answer, as they stand in a sample."""
    return [fact + b" " for fact in question.facts] + [b"\n" + question.question + b" " + question.answer]


def guessed(answer: bytes, prior: Counter[bytes]) -> Float64[np.ndarray, " 4"]:
    """How many bytes of an answer chance and the constant hit, and whether they hit it whole."""
    hits = np.zeros(4)
    for place in range(len(answer)):
        known = [word for word in prior if word[:place] == answer[:place] and len(word) > place]
        following: Counter[int] = Counter()
        for word in known:
            following[word[place]] += prior[word]
            hits[0] += (word[place] == answer[place]) / len(known)
        hits[1] += bool(known) and following.most_common(1)[0][0] == answer[place]
    hits[2] = (answer in prior) / len(prior)
    hits[3] = prior.most_common(1)[0][0] == answer
    return hits


def read_babi(path: Path) -> list[Question]:
    """All questions of a file, each with the facts before it; UserError: it isn't one of bAbI."""
    try:
        rows = path.read_bytes().splitlines()
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}") from problem
    found: list[Question] = []
    facts: list[bytes] = []
    story = -1
    for place, row in enumerate(filter(None, rows), 1):
        number, _, text = row.partition(b" ")
        said, *answer = (part.strip() for part in text.split(b"\t"))
        if number == b"1":
            facts, story = [], story + 1
        if not number.isdigit() or story < 0 or not said or (answer and not answer[0]):
            raise UserError(
                f"{path}, row {place}: expected a number from 1 on and a fact, or a question, its answer and "
                f"its facts with tabs between, found {row[:40]!r}"
            )
        if answer:
            found.append(Question(tuple(facts), said, answer[0], story))
        else:
            facts.append(said)
    if not found:
        raise UserError(f"{path}: expected stories with questions, found none")
    return found


def _of(dataset: Dataset) -> BabilongDataset:
    found = origin(dataset)
    assert isinstance(found, BabilongDataset)
    return found
