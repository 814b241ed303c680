"""The Chomsky hierarchy suite: fifteen problems of which each needs a certain kind of memory.

Delétang et al. 2022, arXiv:2207.02098.

    x1 … xn E E … E        targets: the answer y1 … ym at the symbols E

`answers: hidden`, the suite's default: the answer never enters the input, the empty symbol E stands in all of
its positions.  `given`: it is read while it is written, E y1 … y(m-1).  `running`: the answers to each prefix
of the input are targets, at x1 … xn; only for the problems in which each of them is one symbol.

E is the symbol after the larger alphabet.  Answers that END are scored up to it.

Differs from the paper: only scored positions are trained, where the suite also trains the zeros after END;
lengths vary within a batch; held-out samples have one length.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.tasks.base import Dataset, SampleTask, Split, Symbols, sample_rng, unwrap
from zoo.train.tasks.chomsky_inputs import draw_inputs
from zoo.train.tasks.chomsky_language import KINDS, RUNNING, scored_length

KindName = Literal[
    "even_pairs",
    "parity_check",
    "cycle_navigation",
    "modular_arithmetic",
    "modular_arithmetic_brackets",
    "solve_equation",
    "stack_manipulation",
    "reverse_string",
    "duplicate_string",
    "missing_duplicate_string",
    "odds_first",
    "binary_addition",
    "binary_multiplication",
    "compute_sqrt",
    "bucket_sort",
]
Answers = Literal["hidden", "given", "running"]

MIN_LENGTH = 4  # of held-out inputs: shorter ones of some kinds have all the same answer
BASELINE_SAMPLES = 512  # drawn to find the most frequent symbols


@dataclass(frozen=True)
class Chomsky(SampleTask):
    """`length` in input symbols, of held-out samples exactly; training samples have any up to it (`lengths:
    uniform`) or exactly that (`fixed`)."""

    name = "chomsky"
    VERSION = 1
    target_noun = "symbol"
    axes: ClassVar = {"length": int}

    kind: KindName = "parity_check"
    answers: Answers = "hidden"
    length: int = 40
    lengths: Literal["uniform", "fixed"] = "uniform"
    samples: int = 1_000_000
    eval_samples: int = 512
    seed: int = 0
    vocab_size: int = 3

    def __post_init__(self) -> None:
        self.check_sizes(self.empty_symbol + 1)
        if self.length < MIN_LENGTH:
            raise UserError(f"task.length: expected at least {MIN_LENGTH} symbols, found {self.length}")
        if self.answers == "running" and self.kind not in RUNNING:
            raise UserError(
                f"task.answers: expected hidden or given for kind={self.kind}, found running, which only "
                f"{', '.join(RUNNING)} can have"
            )

    @property
    def empty_symbol(self) -> int:
        """The symbol E."""
        return max(KINDS[self.kind].input_symbols, KINDS[self.kind].output_symbols)

    def split(self, name: Split) -> Dataset:
        return ChomskyDataset(self, name)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Accuracy of the most frequent symbol of answers, and of the most frequent one in each position of
        answers to inputs of the same length."""
        hits = self._baseline_hits(dataset)
        return {name: float(np.concatenate(of_documents).mean()) for name, of_documents in hits.items()}

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        """Exact match of the same predictors."""
        hits = self._baseline_hits(dataset)
        return {
            name: float(np.mean([of.all() for of in of_documents])) for name, of_documents in hits.items()
        }

    def _baseline_hits(self, dataset: Dataset) -> dict[str, list[Bool[np.ndarray, " targets"]]]:
        """Hits of the baselines in every document; frequencies are those of samples to train on."""
        samples = unwrap(dataset, ChomskyDataset)
        lengths = samples.input_lengths[: len(dataset.lengths)].tolist()
        counts = {length: answer_counts(self, length) for length in dict.fromkeys(lengths)}
        constant = sum(of.sum(0) for of in counts.values()).argmax()
        hits: dict[str, list[Bool[np.ndarray, " targets"]]] = {"constant": [], "position": []}
        for document, length in enumerate(lengths):
            answer = np.array(samples.sample(document).targets)
            hits["constant"].append(answer == constant)
            hits["position"].append(answer == counts[length].argmax(1)[: len(answer)])
        return hits

    def groups(self, dataset: Dataset, document: int) -> dict[str, str | int | float]:
        return {"length": int(unwrap(dataset, ChomskyDataset).input_lengths[document])}

    def scores(self, dataset: Dataset, document: int, hits: Bool[np.ndarray, " targets"]) -> dict[str, float]:
        """Of running answers the last, which alone is the answer in the other forms."""
        return {"last answer": float(hits[-1])} if self.answers == "running" else {}

    def answer(self, inputs: list[int]) -> list[int]:
        """The targets of an input."""
        if self.answers == "running":
            return RUNNING[self.kind](inputs)
        symbols = KINDS[self.kind].answer(inputs)
        return symbols[: scored_length(self.kind, symbols)]


class Sample(NamedTuple):
    """An input and its targets."""

    inputs: list[int]
    targets: list[int]


@lru_cache(maxsize=128)
def answer_counts(task: Chomsky, length: int) -> Int64[np.ndarray, "positions symbols"]:
    """How often each symbol is the target in each position, in training samples of a length."""
    positions = length if task.answers == "running" else KINDS[task.kind].answer_length(length)
    counts = np.zeros((positions, task.vocab_size), np.int64)
    for document in range(BASELINE_SAMPLES):
        targets = task.answer(draw_inputs(task.kind, length, sample_rng(task.seed, "train", document)))
        counts[np.arange(len(targets)), targets] += 1
    return counts


class ChomskyDataset(Dataset):
    """Samples drawn when they are read, each from a separate generator."""

    def __init__(self, task: Chomsky, split: Split) -> None:
        self.task, self.split = task, split
        self.input_lengths = np.full(task.num_samples(split), task.length, np.int64)
        if split == "train" and task.lengths == "uniform":
            rng = sample_rng(task.seed, split)
            self.input_lengths = rng.integers(1, task.length + 1, size=len(self.input_lengths))
        self.lengths = self.input_lengths
        if task.kind == "modular_arithmetic":  # its inputs are never even
            self.lengths = self.lengths - (self.lengths + 1) % 2
        if task.answers != "running":
            answer_length = KINDS[task.kind].answer_length
            answer_lengths = np.array([0, *map(answer_length, range(1, task.length + 1))])
            self.lengths = self.lengths + answer_lengths[self.input_lengths]

    def sample(self, document: int) -> Sample:
        rng = sample_rng(self.task.seed, self.split, document)
        inputs = draw_inputs(self.task.kind, int(self.input_lengths[document]), rng)
        return Sample(inputs, self.task.answer(inputs))

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        self.check_window(document, start, stop)
        tokens, targets = self._document(document)
        return tokens[start:stop], targets[start:stop]

    def _document(self, document: int) -> tuple[Symbols, Symbols]:
        """Tokens and targets."""
        inputs, answer = self.sample(document)
        length, first_target = int(self.lengths[document]), len(inputs)
        tokens = np.full(length, self.task.empty_symbol, np.int64)
        targets = np.full(length, IGNORE, np.int64)
        tokens[: len(inputs)] = inputs
        if self.task.answers == "running":
            first_target = 0
        if self.task.answers == "given":
            tokens[first_target + 1 : first_target + len(answer)] = answer[:-1]
        targets[first_target : first_target + len(answer)] = answer
        return tokens, targets
