"""BABILong: facts of bAbI scattered through books, and a question about them.

Kuratov et al. 2024, arXiv:2406.10149; facts and questions of bAbI, Weston et al. 2015, arXiv:1502.05698:

    book  Mary moved to the bathroom.  book  John went to the hallway.  book
    Where is Mary? bathroom

A question of a story takes all facts before it and no other question.  Background is sentences of a corpus,
of the same split, from a random one on, without those under 40 bytes (some 10 tokens of GPT-2) and with the
last one cut; it fills what facts and question leave of `length`.  Every fact goes to a random gap between
sentences, uniformly drawn, and several may share a gap; facts keep their order.  A sample is bytes after END,
the first input of every document (as in task lm); `length` counts its positions.  Where facts and question
need more, the sample has that length and no background: with length=1 it is plain bAbI.

The targets are the answer's bytes, of which the first determine most of the others: a predictor that knows
the answers' words and reads no sample gets 87 % of the bytes right, but 19 % of the words (`baselines`,
`exact_baselines`).  So a model is judged by its words, as exact match.

The files are found in `folder` under their published names: qa1_single-supporting-fact_train.txt,
…_test.txt.  The last tenth of the training stories is for validation.  All tasks have as many samples.

Differs from the paper: `length` counts bytes and all of a sample, not GPT-2's tokens of facts and background.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from zoo.errors import UserError
from zoo.train.corpora.documents import FIELD
from zoo.train.tasks.background_text import BackgroundText, CyclicText, SplicedDataset, SplicedText
from zoo.train.tasks.base import Chances, Dataset, SampleTask, Split, TargetPositions, unwrap
from zoo.train.tasks.evidence import window_distances
from zoo.train.tasks.lm import END
from zoo.train.tasks.reads_corpus import ReadsCorpus

MIN_SENTENCE = 40  # bytes of a sentence of background
VAL_SHARE = 10  # one in VAL_SHARE training stories is for validation


class Question(NamedTuple):
    """A question of bAbI with the facts before it."""

    facts: tuple[bytes, ...]
    question: bytes
    answer: bytes
    story: int  # counted from 0
    supporting: tuple[int, ...] = ()  # the facts that the answer follows from; empty where the file has none

    def lines(self) -> list[bytes]:
        """Facts, and question with answer, in the form that a sample has them."""
        question = b"\n" + self.question + b" " + self.answer
        return [*(fact + b" " for fact in self.facts), question]


@dataclass(frozen=True)
class Babilong(ReadsCorpus, SampleTask):
    """Training samples have any length from what their facts need up to `length` (`lengths: uniform`) or
    exactly that (`fixed`); held-out samples always have exactly that.

    `tasks`: of qa1, qa2 …  `folder`: babi below `root` if None.  `corpus`, `root`, `field`: as in
    `open_corpus`.
    Raises UserError for missing files.
    """

    name = "babilong"
    VERSION = 1
    target_noun = "byte"
    axes: ClassVar = {"length": int}

    tasks: Sequence[str] = ("qa1",)
    length: int = 1024
    lengths: Literal["uniform", "fixed"] = "uniform"
    folder: str | Path | None = None
    corpus: str = "stdlib"
    root: str | Path = "data"
    samples: int = 1_000_000
    eval_samples: int = 1000
    seed: int = 0
    vocab_size: int = END + 1
    field: str = FIELD

    def __post_init__(self) -> None:
        self.check_sizes(min_vocab_size=END + 1)
        if self.length < 1:
            raise UserError(f"task.length: expected at least 1, found {self.length}")
        if not self.files or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"task.tasks: expected different tasks, at least one, found {list(self.tasks)}")

    @cached_property
    def files(self) -> dict[tuple[str, str], Path]:
        """bAbI's file of every task, for "train" and for "test"."""
        folder = Path(self.root) / "babi" if self.folder is None else Path(self.folder).expanduser()
        return {(task, kind): find_babi(folder, task, kind) for task, kind in product(self.tasks, KINDS)}

    def split(self, name: Split) -> Dataset:
        return BabilongDataset(self, name)

    def questions(self, split: Split) -> dict[str, list[Question]]:
        """The questions of a split, by task."""
        if split == "test":
            return {task: read_babi(self.files[task, "test"]) for task in self.tasks}
        questions_of = {}
        for task, questions in self._training_questions.items():
            stories = questions[-1].story + 1
            first_val = stories - max(1, stories // VAL_SHARE)
            questions_of[task] = [
                question for question in questions if (question.story >= first_val) == (split == "val")
            ]
            if not questions_of[task]:
                raise UserError(f"{self.files[task, 'train']}: expected at least 2 stories, found {stories}")
        return questions_of

    @cached_property
    def _training_questions(self) -> dict[str, list[Question]]:
        return {task: read_babi(self.files[task, "train"]) for task in self.tasks}

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Predictors that read nothing of a sample but the bytes of the answer so far.

        chance: a uniform guess among the answers in the split's questions that start with these bytes;
        constant: the commonest of them.
        """
        hits, num_bytes, _ = self._guess_hits(dataset)
        return {"chance": hits[0] / num_bytes, "constant": hits[1] / num_bytes}

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        """The same of answers guessed at once."""
        hits, _, num_answers = self._guess_hits(dataset)
        return {"chance": hits[2] / num_answers, "constant": hits[3] / num_answers}

    def _guess_hits(self, dataset: Dataset) -> tuple[list[float], int, int]:
        """Sums of `guess_hits` over the samples, bytes of all answers, and their number."""
        samples = unwrap(dataset, BabilongDataset)
        priors = {
            task: Counter(question.answer for question in questions)
            for task, questions in samples.questions.items()
        }
        counts = Counter(map(samples.task_and_answer, range(len(dataset.lengths))))
        num_bytes = sum(count * len(answer) for (_, answer), count in counts.items())
        hits = np.sum([n * guess_hits(answer, priors[task]) for (task, answer), n in counts.items()], axis=0)
        return hits.tolist(), num_bytes, counts.total()

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        return {"task": unwrap(dataset, BabilongDataset).task_and_answer(document)[0]}


class BabilongDataset(SplicedDataset):
    """Samples drawn when they are read, each from a separate generator; tasks and questions take turns."""

    def __init__(self, task: Babilong, split: Split) -> None:
        super().__init__(task.seed, split, CyclicText(task.documents.split(split)))
        self.questions = task.questions(split)
        documents = np.arange(task.num_samples(split))
        question_index, task_index = np.divmod(documents, len(task.tasks))
        min_lengths = np.zeros(len(documents), np.int64)
        for i, questions in enumerate(self.questions.values()):
            sizes = np.array([sum(map(len, question.lines())) for question in questions])
            of_task = task_index == i
            min_lengths[of_task] = sizes[question_index[of_task] % len(sizes)]
        self.lengths = np.maximum(min_lengths, task.length)
        if split == "train" and task.lengths == "uniform":
            self.lengths = self.rng().integers(min_lengths, self.lengths + 1)

    def question(self, document: int) -> Question:
        question_index, task_index = divmod(document, len(self.questions))
        questions = list(self.questions.values())[task_index]
        return questions[question_index % len(questions)]

    def task_and_answer(self, document: int) -> tuple[str, bytes]:
        return list(self.questions)[document % len(self.questions)], self.question(document).answer

    def count_targets(self, document: int) -> int:
        return len(self.question(document).answer)

    def splice(self, document: int) -> SplicedText:
        *facts, question = self.question(document).lines()
        rng = self.rng(document)
        start = int(rng.integers(len(self.source)))
        size = int(self.lengths[document]) - sum(map(len, facts)) - len(question)
        background = BackgroundText(self.source, start, size, MIN_SENTENCE)
        gaps = np.sort((rng.random(len(facts)) * (background.num_sentences + 1)).astype(np.int64)).tolist()
        parts: list[bytes | range] = []
        begin = 0
        for end, fact in zip(background.offsets(gaps), facts, strict=True):
            parts += [range(begin, end), fact]
            begin = end
        return SplicedText(background, [*parts, range(begin, size), question])

    def view_chances(
        self, document: int, positions: TargetPositions, starts: TargetPositions
    ) -> Chances | None:
        """Of a reader that answers if it sees all supporting facts, and else says the commonest answer."""
        question = self.question(document)
        if not question.supporting:
            return None
        first = min(question.supporting)
        first_byte = 1 + self._cached_splice(document).part_starts()[2 * first + 1]
        prior = Counter(other.answer for other in self.questions[self.task_and_answer(document)[0]])
        return np.where(starts <= first_byte, 1.0, constant_hits(question.answer, prior))

    def evidence_distances(
        self, document: int, start: int, stop: int
    ) -> Int64[np.ndarray, " positions"] | None:
        """To the end of the last supporting fact; None where the file of a question names none."""
        question, targets = self.question(document), self.target_positions(document)
        if not question.supporting:
            return None
        last = max(question.supporting)
        # the parts are background, fact, background, fact …; END comes first, a fact ends in a space
        last_byte = self._cached_splice(document).part_starts()[2 * last + 1] + len(question.facts[last]) - 1
        return window_distances(targets, np.full(len(targets), 1 + last_byte), start, stop)


def constant_hits(answer: bytes, prior: Counter[bytes]) -> list[bool]:
    """For each byte of an answer, True if the commonest answer with the bytes before has it too."""
    hits = []
    for position, byte in enumerate(answer):
        next_byte: Counter[int] = Counter()
        for word, count in prior.items():
            if word.startswith(answer[:position]) and len(word) > position:
                next_byte[word[position]] += count
        hits.append(bool(next_byte) and next_byte.most_common(1)[0][0] == byte)
    return hits


def guess_hits(answer: bytes, prior: Counter[bytes]) -> Float64[np.ndarray, " 4"]:
    """Bytes of an answer that chance and the constant hit, and whether each hits the whole answer."""
    chance = 0.0
    for position, byte in enumerate(answer):
        start = answer[:position]
        candidates = [word[position] for word in prior if word.startswith(start) and len(word) > position]
        chance += candidates.count(byte) / max(1, len(candidates))
    in_prior, is_commonest = (answer in prior) / len(prior), prior.most_common(1)[0][0] == answer
    return np.array([chance, sum(constant_hits(answer, prior)), in_prior, is_commonest], np.float64)


# -- bAbI's files --------------------------------------------------------------------------------------------
KINDS = ("train", "test")


def find_babi(folder: Path, task: str, kind: str) -> Path:
    """The one file of a task in a folder."""
    names = sorted(path.name for path in folder.glob("qa*.txt")) if folder.is_dir() else []
    matches = [name for name in names if re.fullmatch(rf"{re.escape(task)}_(.*_)?{kind}\.txt", name)]
    if len(matches) == 1:
        return folder / matches[0]
    tasks = sorted({name.partition("_")[0] for name in names}, key=lambda name: (len(name), name))
    raise UserError(
        f"task babilong: expected bAbI's files in {folder}, one of them {task}_…_{kind}.txt "
        f"(task.folder=… or below data.root), found {', '.join(matches or tasks) or 'none'}"
    )


def read_babi(path: Path) -> list[Question]:
    """All questions of a file, each with the facts before it.  Raises UserError for another file."""
    try:
        rows = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    questions: list[Question] = []
    facts: list[bytes] = []
    fact_of_line: dict[bytes, int] = {}
    story = -1
    for row_number, row in enumerate(filter(None, rows), 1):
        line_number, _, line = row.partition(b" ")
        text, *answer = (part.strip() for part in line.split(b"\t"))
        if line_number == b"1":
            facts, fact_of_line, story = [], {}, story + 1
        if not line_number.isdigit() or story < 0 or not text or (answer and not answer[0]):
            raise UserError(
                f"{path}, row {row_number}: expected a number from 1 on and a fact, or a question, its "
                f"answer and its facts with tabs between, found {row[:40]!r}"
            )
        if answer:
            supporting = tuple(
                fact_of_line[line] for line in b" ".join(answer[1:]).split() if line in fact_of_line
            )
            questions.append(Question(tuple(facts), text, answer[0], story, supporting))
        else:
            fact_of_line[line_number] = len(facts)
            facts.append(text)
    if not questions:
        raise UserError(f"{path}: expected stories with questions, found none")
    return questions
