"""What an evaluation measures: a row at every point of a task's axes, or of a text's ways of being read."""

import contextlib
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.evaluation.intervals import share
from zoo.train.evaluation.streaming import (
    PositionLosses,
    SampleHits,
    SlidingWindows,
    StreamReader,
    position_losses,
    sample_hits,
)
from zoo.train.plotting.charts import Number, short
from zoo.train.runs.resources import Peak
from zoo.train.tasks.base import EDGES, Dataset, Split, Subset, Task
from zoo.train.tasks.lm import prefix

MULTIPLES = ["1x", "4x", "16x", "64x"]
DEPTHS = [0.0, 25.0, 50.0, 75.0, 100.0]  # per cent
PROMPTS, FEWEST = 50, 16  # samples per cell

EvalResult = dict[str, Any]
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """What to evaluate; see the keys above."""

    model: str | None = None
    task: str | None = None
    overrides: tuple[str, ...] = ()
    """model.KEY=value, task.KEY=value, data.corpus=…, data.root=…; GROUP._target_=… trusts a class."""
    checkpoint: str = "last"
    split: Split = "test"
    batch_size: int = 16
    seq_len: int = 4096
    tokens: int | None = None
    lengths: list[str] | None = None
    depths: list[float] | None = None
    prompts: int | None = None
    positions: list[int] | None = None
    stride: int | None = None
    context: int | None = None


def evaluate_samples(
    model: SequenceModule, task: Task, asked: EvalOptions, length: int | None, say: Log
) -> Iterator[EvalResult]:
    """A row per cell of the grid; `length` is the task's own, of which 4x is a multiple."""
    cells = list(grid(task, asked, length))
    for number, axes in enumerate(cells, 1):
        there = task.at(**_as_task_takes(axes))
        whole = there.split(asked.split)
        texts = Subset(whole, _count(whole, asked, bool(axes), there.name))
        peak = Peak(model.device)
        with _shown(int(texts.lengths.sum())) as tell:
            sums = sample_hits(StreamReader(model, asked.batch_size, asked.seq_len, tell), texts)
        cost = _cost(int(texts.lengths.sum()), sums.seconds, peak)
        row: EvalResult = {
            "axes": axes,
            "samples": len(texts.lengths),
            "exact": share(int((sums.hits == sums.asked).sum()), len(texts.lengths)),
            "targets": share(int(sums.hits.sum()), int(sums.asked.sum())),
            "groups": {
                name: members for name, members in _groups(there, whole, sums).items() if name not in axes
            },
            **_scores(there, whole, sums),
            "reference": {name: float(value) for name, value in there.baselines(texts).items()},
            "tokens": int(texts.lengths.sum()),
            **cost,
        }
        where = ", ".join(f"{name} {short(value)}" for name, value in axes.items()) or there.name
        exact = row["exact"]
        say(f"[{number}/{len(cells)}] {where}: {exact['hits']} of {exact['of']}, {sums.seconds:.1f} s")
        yield row


def _cost(tokens: int, seconds: float, peak: Peak) -> EvalResult:
    """Speed, and the most memory held meanwhile, or so far where the system can't tell that apart."""
    cost = {"tokens_per_s": tokens / seconds, "peak_memory_bytes": peak.bytes()}
    return cost | ({"peak_so_far": True} if peak.so_far else {})


def grid(task: Task, asked: EvalOptions, length: int | None) -> Iterator[dict[str, Number]]:
    """Every cell; where nothing is said of an axis, the usual points if the task has it."""
    lengths, depths = asked.lengths, asked.depths
    if lengths is None:
        usual = MULTIPLES if length is not None else []
        lengths = [word for word in usual if varies(task, "length", tokens(word, length, task))]
    if depths is None:
        depths = DEPTHS if varies(task, "depth", DEPTHS[0]) else []
    axes: dict[str, list[Number]] = {}
    if lengths:
        axes["length"] = list(dict.fromkeys(tokens(word, length, task) for word in lengths))
    if depths:
        axes["depth"] = list(dict.fromkeys(depths))
    for point in itertools.product(*axes.values()):
        yield dict(zip(axes, point, strict=True))


def tokens(word: str, length: int | None, task: Task) -> int:
    """A length as it is asked for: tokens, or a multiple of the task's own length."""
    if not word.endswith("x"):
        return int(word)
    if length is None:
        raise UserError(f"evaluate: lengths: task {task.name} has no length for {word} to be a multiple of")
    return round(float(word[:-1]) * length)


def varies(task: Task, axis: str, value: Number) -> bool:
    """Whether a task has an axis of this name."""
    try:
        task.at(**_as_task_takes({axis: value}))
    except UserError:
        return False
    return True


def _as_task_takes(axes: dict[str, Number]) -> dict[str, float]:
    """Depth is a share there."""
    return {name: value / 100 if name == "depth" else float(value) for name, value in axes.items()}


def _count(texts: Dataset, asked: EvalOptions, varied: bool, name: str) -> int:
    """Samples per cell."""
    there = len(texts.lengths)
    if asked.prompts is not None and asked.prompts > there:
        raise UserError(
            f"evaluate: prompts: expected at most the {there:,} samples of {name}'s {asked.split} split, "
            f"found {asked.prompts:,}"
        )
    wanted = min(asked.prompts or (PROMPTS if varied else there), there)
    if asked.tokens is None:
        return wanted
    fitting = int(np.searchsorted(np.cumsum(texts.lengths), asked.tokens, side="right"))
    return min(wanted, max(FEWEST, fitting))


def _groups(task: Task, texts: Dataset, sums: SampleHits) -> dict[str, list[dict[str, Any]]]:
    """Shares by every label that the task gives its samples."""
    totals: dict[str, dict[Any, list[int]]] = {}
    for document, (asked, hits) in enumerate(zip(sums.asked.tolist(), sums.hits.tolist(), strict=True)):
        for name, value in task.groups(texts, document).items():
            total = totals.setdefault(name, {}).setdefault(value, [0, 0, 0, 0])
            for place, more in enumerate((int(hits == asked), 1, hits, asked)):
                total[place] += more
    return {
        name: [
            {"value": value, "exact": share(*total[:2]), "targets": share(*total[2:])}
            for value, total in sorted(members.items(), key=lambda item: _natural(item[0]))
        ]
        for name, members in totals.items()
    }


def _scores(task: Task, texts: Dataset, sums: SampleHits) -> dict[str, dict[str, float]]:
    """Means of the scores that the task gives its samples, if it does."""
    every = [task.scores(texts, document, hits) for document, hits in enumerate(sums.which)]
    means = {name: float(np.mean([own[name] for own in every])) for name in every[0]}
    return {"scores": means} if means else {}


def _natural(value: Any) -> tuple[int, Any, str]:
    """Numbers by size, ranges by where they begin, words by their letters."""
    head = str(value).partition("-")[0]
    return (0, float(head), str(value)) if head.replace(".", "", 1).isdigit() else (1, 0.0, str(value))


# -- text ----------------------------------------------------------------------------------------------------


def evaluate_text(
    model: SequenceModule, task: Task, asked: EvalOptions, length: int | None, say: Log
) -> Iterator[EvalResult]:
    """Memory kept and memory reset, or a sliding window; over the same text."""
    texts = task.split(asked.split)
    cut: dict[str, Any] = {}
    if asked.tokens is not None and asked.tokens < int(texts.lengths.sum()):
        texts, cut = prefix(texts, asked.tokens), {"first": asked.tokens}
    edges = asked.positions or EDGES[1:]
    longest = int(texts.lengths.max())
    edges = [edge for edge in edges if edge < longest]
    words = task.words(texts)
    made = []
    ways: list[tuple[dict[str, Any], Dataset]] = [({"memory": "kept"}, texts), ({"memory": "reset"}, texts)]
    if asked.stride is not None and asked.context is not None:
        sliding = SlidingWindows(texts, asked.stride, asked.context)
        ways = [({"memory": "sliding", "context": asked.context, "stride": asked.stride}, sliding)]
    for axes, read in ways:
        peak = Peak(model.device)
        with _shown(int(read.lengths.sum())) as tell:
            losses = position_losses(
                StreamReader(model, asked.batch_size, asked.seq_len, tell),
                read,
                edges,
                task.byte_count,
                reset=axes["memory"] == "reset",
            )
        row = {
            "axes": axes | cut,
            **measured(losses, edges, words),
            "reference": {},
            **_cost(int(losses.asked.sum()), losses.seconds, peak),
        }
        say(f"memory {axes['memory']}: {row['bits_per_byte']:.4f} bits per byte, {losses.seconds:.1f} s")
        made.append(row)
        yield row
    # last, and again: what a compressor takes would be counted as the model's memory
    reference = {name: float(value) for name, value in task.baselines(texts).items()}
    for row in made:
        yield row | {"reference": reference}


def measured(losses: PositionLosses, edges: list[int], words: tuple[int, str] | None) -> EvalResult:
    """The sums of a text in the units of the field."""
    nats, asked = float(losses.nats.sum()), int(losses.asked.sum())
    row: EvalResult = {"nats": nats, "tokens": asked, "bytes": losses.bytes, "loss": nats / asked}
    row["bits_per_byte"] = nats / math.log(2) / losses.bytes
    row["accuracy"] = losses.hits / asked
    if words is not None:
        count, unit = words
        row |= {"words": count, "word_unit": unit, "word_perplexity": math.exp(min(nats / count, 700.0))}
    row["by_position"] = [
        {"from": low, "to": high, "tokens": int(count), "loss": float(total) / int(count)}
        for low, high, total, count in zip(
            [0, *edges], [*edges, None], losses.nats, losses.asked, strict=True
        )
        if count
    ]
    return row


@contextlib.contextmanager
def _shown(positions: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; gives what is to be told of every batch."""
    columns = (TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"), BarColumn(bar_width=None))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=positions)
        yield lambda more: bar.advance(task, more)
