"""Tasks and datasets: language modelling with a mask, read by the same loaders and trained by the same loop.

In a task made of samples only the end of every sample has targets.  Two shares of them are measured, and have
different names everywhere: *exact match*, of samples of which every target is hit, and *accuracy* per target.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.corpora.catalog import Corpus
from zoo.train.tasks.score_name import SCORE_NAMES

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Symbols = Int64[np.ndarray, " _"]
TargetPositions = Int64[np.ndarray, " targets"]
Chances = Float64[np.ndarray, " targets"]

BLOCK = 4096  # symbols drawn together: a symbol late in a long sample costs no more than the first

EDGES = [0, 512, 2048, 8192, 32768, 131072]  # of the buckets of positions in a document
RANGES = list(zip(EDGES, [*EDGES[1:], None], strict=True))
BUCKETS = [f"{low}-{high or 'end'}" for low, high in RANGES]


def sample_rng(seed: int, split: Split, *index: int) -> np.random.Generator:
    """The generator of one sample, or of a block of it; without an index, that of its split."""
    return np.random.Generator(np.random.Philox([seed, SPLITS.index(split), *index]))


def read_blocks(start: int, stop: int, draw_block: Callable[[int], Symbols]) -> Symbols:
    """Symbols start..stop-1 of an endless sequence that is drawn in blocks of BLOCK symbols."""
    blocks = range(start // BLOCK, -(-stop // BLOCK))
    symbols = np.concatenate([draw_block(block) for block in blocks])
    return symbols[start % BLOCK :][: stop - start]


class Dataset(ABC):
    """Documents as tokens and targets."""

    lengths: Int64[np.ndarray, " documents"]
    """Positions per document, at least 1; an end symbol is one of them."""

    @abstractmethod
    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        """Tokens, and targets (IGNORE where there is none), of positions start..stop-1."""

    def text(self, document: int) -> bytes | None:
        """The bytes that the document's targets stand for; None where targets aren't bytes."""
        return None

    def text_until(self, document: int, position: int) -> bytes | None:
        """The bytes that its targets before a position stand for; None where targets aren't bytes."""
        text = self.text(document)
        return None if text is None else text[:position]

    def byte_length(self, document: int, position: int) -> int | None:
        """How many bytes those are, where `Task.byte_count` of the targets isn't exact; None where it is."""
        return None

    def evidence_distances(
        self, document: int, start: int, stop: int
    ) -> Int64[np.ndarray, " positions"] | None:
        """At each position of the window, how far back its target's evidence lies: t - e, from the position t
        that predicts the target to the nearest position e whose token bears on it.

        A reader of the last R positions, t-R+1 to t, sees no evidence where t - e >= R.  -1 where there is no
        target, or nothing in the document that it follows from; None where evidence isn't known.
        """
        return None

    def bayes_nats(self, document: int, start: int, stop: int) -> Float64[np.ndarray, " positions"] | None:
        """The nats of the window's targets under the best prediction that the generator allows, 0 where there
        is no target; None where that isn't known."""
        return None

    def view_chances(
        self, document: int, positions: TargetPositions, starts: TargetPositions
    ) -> Chances | None:
        """How likely a perfect reader hits each target of a document that at positions[i] sees the tokens
        starts[i] to positions[i] alone, and knows how samples are drawn; None where that isn't known.

        `positions` are those of all of the document's targets, ascending.
        """
        return None

    def check_window(self, document: int, start: int, stop: int) -> None:
        """Raises IndexError unless the document has positions start..stop-1."""
        length = int(self.lengths[document])
        if not 0 <= start <= stop <= length:
            raise IndexError(f"positions {start}..{stop} of document {document}, which has {length}")


DatasetT = TypeVar("DatasetT", bound=Dataset)


class Subset(Dataset):
    """The first `count` documents of another dataset."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.dataset, self.lengths = dataset, dataset.lengths[:count]

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        return self.dataset.window(document, start, stop)

    def text(self, document: int) -> bytes | None:
        return self.dataset.text(document)

    def text_until(self, document: int, position: int) -> bytes | None:
        return self.dataset.text_until(document, position)

    def byte_length(self, document: int, position: int) -> int | None:
        return self.dataset.byte_length(document, position)

    def evidence_distances(
        self, document: int, start: int, stop: int
    ) -> Int64[np.ndarray, " positions"] | None:
        return self.dataset.evidence_distances(document, start, stop)

    def bayes_nats(self, document: int, start: int, stop: int) -> Float64[np.ndarray, " positions"] | None:
        return self.dataset.bayes_nats(document, start, stop)

    def view_chances(
        self, document: int, positions: TargetPositions, starts: TargetPositions
    ) -> Chances | None:
        return self.dataset.view_chances(document, positions, starts)


def unwrap(dataset: Dataset, dataset_class: type[DatasetT]) -> DatasetT:
    """The dataset, of this class, that a subset is taken from."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    assert isinstance(dataset, dataset_class)
    return dataset


Metric = Literal["bits_per_byte", "exact", "accuracy"]


class Task(ABC):
    """Datasets in three splits, and the unit in which predictions are scored."""

    name: ClassVar[str]
    VERSION: ClassVar[int]
    """Raised whenever the same configuration would give other tokens or targets."""
    axes: ClassVar[Mapping[str, type]] = {}
    """Fields that an evaluation may vary, with their types; a task that has any is a dataclass."""
    vocab_size: int
    metric: ClassVar[Metric]
    """What the task is judged by, `val/<metric>` in a run: exact match, where a sample has several targets;
    accuracy, where it has one and both are the same."""
    uninformed_nats: ClassVar[float | None] = None
    """Nats of a target without any evidence, in tasks whose least possible loss is known."""
    target_noun: ClassVar[str] = "target"
    """What a target is: a digit, a byte."""

    @abstractmethod
    def split(self, name: Split) -> Dataset:
        """Documents to train on, to validate with or to test with.  Raises UserError if there are none."""

    @abstractmethod
    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        """Number of bytes that the targets stand for: 0 in a task without bytes."""

    def content_digest(self) -> str:
        """A hash of the corpus that the documents are taken from, "" in a task without one."""
        corpus = self.opened_corpus()
        return "" if corpus is None else corpus.digest

    def opened_corpus(self) -> Corpus | None:
        """The corpus that the documents are taken from; None in a task without one."""
        return None

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Scores of predictors that learn nothing, on the same dataset, by name: accuracy per target, or bits
        per byte."""
        return {}

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        """Exact match of predictors that learn nothing; only for tasks that are judged by it."""
        return {}

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        """A document's labels by name, as {"length": 2500}; an evaluation also reports the accuracy of the
        documents with each label."""
        return {}

    def scores(self, dataset: Dataset, document: int, hits: Bool[np.ndarray, " targets"]) -> dict[str, float]:
        """Further scores of a document by name, 0 to 1, from which targets were hit: means are reported."""
        return {}

    def at(self, **axes: int | float) -> "Task":
        """The same task at another point of its axes (a length, a depth).

        Raises UserError for an axis that the task doesn't have and for a value that it can't take.
        """
        if unknown := axes.keys() - self.axes.keys():
            raise UserError(f"task {self.name} has no {' or '.join(sorted(unknown))} to vary")
        if not axes:
            return self
        values = {name: self.axes[name](value) for name, value in axes.items()}
        return replace(self, **values)  # type: ignore[type-var]

    def check_unseen(self, trained: "Task", split: Split) -> None:  # noqa: B027
        """Raises UserError if documents of a held-out split are among those that a run of `trained`, the same
        task with other settings, trains on; most tasks draw each split separately."""

    def word_count(self, dataset: Dataset) -> tuple[int, str] | None:
        """Number of words in the dataset, and the unit of counting; None in a task without words."""
        return None


def score_names(task: Task | type[Task]) -> dict[str, str]:
    """Names of a task's held-out scores by their tags in a run; what it is judged by comes first."""
    per_target = f"accuracy per {task.target_noun}"
    headline = {f"val/{task.metric}": SCORE_NAMES[task.metric]}
    return headline if task.metric == "accuracy" else headline | {"val/accuracy": per_target}


def references(task: Task, dataset: Dataset) -> dict[str, dict[str, float]]:
    """The task's baselines under the keys that a run's files have for them."""
    baselines = {"reference": task.baselines(dataset)}
    if task.metric == "exact":
        baselines["reference_exact"] = task.exact_baselines(dataset)
    return {key: {name: float(score) for name, score in of.items()} for key, of in baselines.items()}


class SampleDataset(Dataset):
    """A sample is a line of n + 1 symbols (entries of the vocabulary): as inputs they are the tokens
    s0 … s(n-1), as labels the targets s1 … sn.

    The last `num_targets` symbols are targets.
    """

    num_targets: int

    def count_targets(self, document: int) -> int:
        """Targets of a sample, where samples differ in it."""
        return self.num_targets

    @abstractmethod
    def symbols(self, document: int, start: int, stop: int) -> Symbols:
        """Symbols start..stop-1 of a line, as a new array."""

    def target_positions(self, document: int) -> Int64[np.ndarray, " targets"]:
        """The positions that predict a sample's targets: its last ones."""
        length = int(self.lengths[document])
        return np.arange(length - self.count_targets(document), length)

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        self.check_window(document, start, stop)
        symbols = self.symbols(document, start, stop + 1)
        targets = symbols[1:].copy()
        first_target = int(self.lengths[document]) - self.count_targets(document)
        targets[: max(0, first_target - start)] = IGNORE
        return symbols[:-1], targets


class SampleTask(Task):
    """`samples` to train on, `eval_samples` each for val and test."""

    metric: ClassVar[Metric] = "exact"
    samples: int
    eval_samples: int
    seed: int

    def check_sizes(self, min_vocab_size: int) -> None:
        """Raises UserError for fewer symbols than needed and for a split without samples."""
        if self.vocab_size < min_vocab_size:
            raise UserError(f"task.vocab_size: expected at least {min_vocab_size}, found {self.vocab_size}")
        if min(self.samples, self.eval_samples) < 1:
            raise UserError(
                "task.samples and task.eval_samples: expected at least 1, "
                f"found {self.samples} and {self.eval_samples}"
            )
        if self.seed < 0:
            raise UserError(f"task.seed: expected at least 0, found {self.seed}")

    def num_samples(self, split: Split) -> int:
        return self.samples if split == "train" else self.eval_samples

    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        return torch.zeros((), dtype=torch.long, device=targets.device)
