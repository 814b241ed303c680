"""MAD: six small tasks, each of one ability that a sequence mixer may have or lack.

Poli et al. 2024, arXiv:2403.17844 (Mechanistic Architecture Design); athms/mad-lab at 0f49a45.

    in_context_recall        k1 v1 k2 v2 … k        the value of every key that was there before
    noisy_in_context_recall  the same, among pairs of noise
    fuzzy_in_context_recall  the same, with keys and values of up to three symbols
    memorization             k INS k INS …          at INS the key's value, from a table that never changes
    compression              x1 … xn C C … C        all symbols in their order, after the first C
    selective_copying        symbols among blanks, COPY, blanks: the symbols in their order

In the recall kinds the answer follows in the text; in the others it never enters the input.

Differs from the paper: recall is trained on what is scored, too (`train_on: asked`), not on all next symbols;
the last fuzzy key always has an answer; positions of the symbols to copy are uniform.  Compression has no
decoder of one position, but the symbol C in each of the positions of the answer: attention can look back, so
compare it between models with a state of fixed size only.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.tasks import mad_texts
from zoo.train.tasks.base import (
    Chances,
    Dataset,
    SampleTask,
    Split,
    Symbols,
    TargetPositions,
    Task,
    sample_rng,
    unwrap,
)
from zoo.train.tasks.evidence import chances_by_evidence, window_distances
from zoo.train.tasks.mad_texts import KEY_SIZE, NOISE_SYMBOLS
from zoo.train.tasks.selective_copy import SelectiveCopy, SelectiveCopyDataset

Kind = Literal[
    "in_context_recall",
    "noisy_in_context_recall",
    "fuzzy_in_context_recall",
    "memorization",
    "compression",
    "selective_copying",
]
PAIR_KINDS = ("in_context_recall", "noisy_in_context_recall")
RECALL_KINDS = (*PAIR_KINDS, "fuzzy_in_context_recall")
MIN_SIZES = {  # of length and vocab_size
    "in_context_recall": (4, 4),
    "noisy_in_context_recall": (4, 4 + NOISE_SYMBOLS),
    "fuzzy_in_context_recall": (4 * KEY_SIZE, 2 * KEY_SIZE + 1),
    "memorization": (2, 3),
    "compression": (2, 3),
    "selective_copying": (3, 3),
}
BASELINE_SYMBOLS = 2**18  # of the training samples that the baselines are fitted to


@dataclass(frozen=True)
class Mad(SampleTask):
    """`length` as in the suite: symbols of a text, or of what is compressed.

    `keys`: different keys that a text of one of the first two kinds may have, None for all.  `rewrite`: the
    chance that a key gets a new value, different from its last, each time it comes.
    """

    name = "mad"
    VERSION = 1
    target_noun = "symbol"
    axes: ClassVar = {"length": int, "keys": int}

    kind: Kind = "in_context_recall"
    length: int = 128
    vocab_size: int = 16
    keys: int | None = None
    rewrite: float = 0.0
    noise: float = 0.2
    remembered: int = 16
    train_on: Literal["asked", "all"] = "asked"
    samples: int = 12_800
    eval_samples: int = 1_280
    seed: int = 0

    def __post_init__(self) -> None:
        min_length, min_vocab_size = MIN_SIZES[self.kind]
        self.check_sizes(min_vocab_size)
        if self.length < min_length:
            raise UserError(f"task.length: expected at least {min_length}, found {self.length}")
        for name in ("rewrite", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"task.{name}: expected a share, 0 to 1, found {getattr(self, name)}")
        if (self.keys is not None or self.rewrite) and self.kind not in PAIR_KINDS:
            raise UserError(
                f"task.keys and task.rewrite: expected kind={' or '.join(PAIR_KINDS)}, found {self.kind}"
            )
        if self.keys is not None and not 1 <= self.keys <= self.num_keys:
            bounds = f"1 to {self.num_keys}, half of the symbols without noise"
            raise UserError(f"task.keys: expected {bounds}, found {self.keys}")
        if self.train_on == "all" and self.kind not in RECALL_KINDS:
            reason = f"texts of {self.kind} don't have the answers"
            raise UserError(f"task.train_on: expected asked, as {reason}, found all")
        if self.kind == "selective_copying":
            _ = self.copying

    @property
    def num_keys(self) -> int:
        """Symbols of keys, which come first; those of values follow."""
        return self.num_contents // 2

    @property
    def num_contents(self) -> int:
        """Symbols that stand for something; noise, padding and marks come after them."""
        reserved = {"in_context_recall": 0, "noisy_in_context_recall": NOISE_SYMBOLS, "selective_copying": 2}
        return self.vocab_size - reserved.get(self.kind, 1)

    @property
    def num_answers(self) -> int:
        """Symbols that a target may be."""
        has_keys = self.kind in RECALL_KINDS or self.kind == "memorization"
        return self.num_contents - self.num_keys if has_keys else self.num_contents

    @property
    def positions(self) -> int:
        """Positions of a sample."""
        pairs = self.length // 2
        by_kind = {
            "memorization": 2 * pairs,
            "compression": 2 * self.length - 1,
            **dict.fromkeys(PAIR_KINDS, 2 * pairs - 1),
        }
        return by_kind.get(self.kind, self.length)

    @cached_property
    def table(self) -> Symbols:
        """The value of each key of memorization, different for different keys, the same in all splits."""
        return self.num_keys + sample_rng(self.seed, "train").permutation(self.num_answers)[: self.num_keys]

    @cached_property
    def copying(self) -> SelectiveCopy:
        """The task that the symbols to copy and their positions are drawn by."""
        if self.length - 1 < 2 * self.remembered:
            raise UserError(
                "task.remembered: expected at least 1 and less than half of task.length, "
                f"found {self.remembered} of {self.length}"
            )
        sizes = (self.length - 1, self.remembered, self.vocab_size, self.samples, self.eval_samples)
        return SelectiveCopy(*sizes, seed=self.seed)

    def at(self, **axes: int | float) -> Task:
        """As for every task; a text of memorization is a list of separate questions, at any length."""
        if self.kind == "memorization" and "length" in axes:
            raise UserError("task mad has no length to vary with kind=memorization")
        return super().at(**axes)

    def split(self, name: Split) -> Dataset:
        return MadDataset(self, name)

    def targets(self, tokens: Symbols) -> Symbols:
        """What a text asks, from its tokens alone."""
        match self.kind:
            case "fuzzy_in_context_recall":
                return mad_texts.fuzzy_targets(tokens, self.vocab_size)
            case "memorization":
                return mad_texts.memorization_targets(tokens, self.table)
            case "compression":
                return mad_texts.compression_targets(tokens)
            case "selective_copying":
                return mad_texts.copying_targets(tokens, self.num_contents, self.remembered)
        return mad_texts.recall_targets(tokens, self.num_contents)

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        """Accuracy of a guess; of the symbol that is most often a target, and of the one that is in the same
        position; in the recall kinds also of the text's commonest value so far, and of the last one."""
        hits = self._baseline_hits(dataset)
        accuracies = {name: float(np.concatenate(of).mean()) for name, of in hits.items()}
        return {"chance": 1 / self.num_answers} | accuracies

    def exact_baselines(self, dataset: Dataset) -> dict[str, float]:
        """Exact match of the same predictors."""
        hits = self._baseline_hits(dataset)
        chance = float(np.mean([self.num_answers ** -float(len(of)) for of in hits["constant"]]))
        return {"chance": chance} | {name: float(np.mean([h.all() for h in of])) for name, of in hits.items()}

    def _baseline_hits(self, dataset: Dataset) -> dict[str, list[Bool[np.ndarray, " targets"]]]:
        counts = self._count_targets()
        overall = counts.sum(0)
        predictions: dict[str, Symbols] = {
            "constant": np.full(self.positions, overall.argmax()),
            "position": (counts + overall / (1 + overall.sum())).argmax(1),  # where none was, the constant
        }
        texts = unwrap(dataset, MadDataset)
        names = [*predictions, *(["commonest value", "last value"] if self.kind in RECALL_KINDS else [])]
        hits: dict[str, list[Bool[np.ndarray, " targets"]]] = {name: [] for name in names}
        for document in range(len(dataset.lengths)):
            tokens = texts.tokens(document)
            targets = self.targets(tokens)
            if self.kind in RECALL_KINDS:
                value_symbols = np.arange(self.num_keys, self.num_contents)
                commonest, last = mad_texts.values_so_far(tokens, value_symbols)
                predictions |= {"commonest value": commonest, "last value": last}
            for name, symbols in predictions.items():
                hits[name].append((symbols == targets)[targets != IGNORE])
        return hits

    def _count_targets(self) -> Float[np.ndarray, "positions symbols"]:
        """How often each symbol is the target in each position of training samples."""
        counts = np.zeros((self.positions, self.vocab_size))
        texts = MadDataset(self, "train")
        for document in range(min(512, self.samples, max(16, BASELINE_SYMBOLS // self.positions))):
            targets = self.targets(texts.tokens(document))
            positions = np.flatnonzero(targets != IGNORE)
            counts[positions, targets[positions]] += 1
        return counts


class MadDataset(Dataset):
    """Samples drawn when they are read, each from a separate generator."""

    def __init__(self, task: Mad, split: Split) -> None:
        self.task, self.split = task, split
        self.lengths = np.full(task.num_samples(split), task.positions, np.int64)

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        self.check_window(document, start, stop)
        tokens = self.tokens(document)
        targets = self.task.targets(tokens)
        if self.split == "train" and self.task.train_on == "all":
            targets[:-1] = tokens[1:]
        return tokens[start:stop], targets[start:stop]

    def evidence_distances(
        self, document: int, start: int, stop: int
    ) -> Int64[np.ndarray, " positions"] | None:
        """To the last time that the key had its value, or to the symbol to copy, -1 at what `train_on: all`
        asks besides; None of memorization, whose table isn't in the text."""
        if self.task.kind == "memorization":
            return None
        tokens = self.tokens(document)
        targets = np.flatnonzero(self.task.targets(tokens) != IGNORE)
        if self.task.kind == "fuzzy_in_context_recall":
            evidence = mad_texts.fuzzy_evidence(tokens, self.task.vocab_size)
        elif self.task.kind in PAIR_KINDS:
            before, _ = mad_texts.last_of_key(tokens[::2])
            evidence = 2 * before[targets // 2] + 1
        else:
            evidence = np.flatnonzero(tokens < self.task.num_contents)
        return window_distances(targets, evidence, start, stop)

    def view_chances(
        self, document: int, positions: TargetPositions, starts: TargetPositions
    ) -> Chances | None:
        """Symbols are independent, but those of a fuzzy value are different ones."""
        if self.task.kind == "memorization":
            return None
        choices = np.full(len(positions), float(self.task.num_answers))
        if self.task.kind == "fuzzy_in_context_recall":
            choices -= mad_texts.index_in_value(positions)
        return chances_by_evidence(self, document, positions, starts, 1 / choices)

    def tokens(self, document: int) -> Symbols:
        """The tokens of a sample."""
        task, rng = self.task, sample_rng(self.task.seed, self.split, document)
        match task.kind:
            case "fuzzy_in_context_recall":
                exact_keys = self.split != "train"
                return mad_texts.draw_fuzzy(rng, task.length, task.num_keys, task.num_contents, exact_keys)
            case "memorization":
                keys = rng.integers(task.num_keys, size=task.length // 2)
                return np.stack([keys, np.full_like(keys, task.vocab_size - 1)], axis=1).ravel()
            case "compression":
                tokens = np.full(task.positions, task.vocab_size - 1, np.int64)
                tokens[: task.length - 1] = rng.integers(task.num_contents, size=task.length - 1)
                return tokens
            case "selective_copying":
                return self._draw_copying(document)
        noise = task.noise if task.kind == "noisy_in_context_recall" else 0.0
        return mad_texts.draw_pairs(
            rng,
            task.length // 2,
            task.num_keys,
            task.num_answers,
            task.keys or task.num_keys,
            noise,
            task.rewrite,
        )

    def _draw_copying(self, document: int) -> Symbols:
        task = self.task
        symbols, positions = unwrap(task.copying.split(self.split), SelectiveCopyDataset).sample(document)
        tokens = np.full(task.length, task.num_contents, np.int64)
        tokens[positions] = symbols - 1  # of 1 .. V-2 there, of 0 .. V-3 here
        tokens[task.length - 1 - task.remembered] = task.vocab_size - 1
        return tokens
