"""Evaluation of text: bits per byte, with the memory kept and reset or over a sliding window."""

import math
from collections.abc import Iterator
from typing import Any

from zoo.train.evaluation.intervals import ratio_standard_error
from zoo.train.evaluation.options import EvalOptions, PrintLine
from zoo.train.evaluation.results import EvalResult, speed_and_memory
from zoo.train.evaluation.streaming import (
    PositionLosses,
    SlidingWindows,
    StreamReader,
    position_losses,
    progress_bar,
)
from zoo.train.runs.resources import PeakMemory
from zoo.train.tasks.base import EDGES, Dataset, Task
from zoo.train.tasks.lm import draw_held_out, too_short


def evaluate_text(
    reader: StreamReader, task: Task, options: EvalOptions, length: int | None, print_line: PrintLine
) -> Iterator[EvalResult]:
    """Yields a result per mode of reading, all over the same text, and each again with its baselines.

    `length` is unused: text has none.
    """
    dataset = task.split(options.split)
    limit_axis: dict[str, Any] = {}
    if options.tokens is not None and options.tokens < int((dataset.lengths - 1).sum()):
        dataset, limit_axis = draw_held_out(task, dataset, options.tokens), {"drawn": options.tokens}
    longest = int(dataset.lengths.max())
    edges = [edge for edge in options.positions or EDGES[1:] if edge < longest]
    words = task.word_count(dataset)
    if warning := too_short(sum(len(dataset.text(i) or b"") for i in range(len(dataset.lengths)))):
        print_line(f"{options.split} split: {warning}")
    rows = []
    for axes, windows in reading_modes(dataset, options):
        peak = PeakMemory(reader.model.device)
        with progress_bar(int(windows.lengths.sum())) as advance:
            losses = position_losses(
                reader._replace(on_progress=advance),
                windows,
                edges,
                task.byte_count,
                reset_memory=axes["memory"] == "reset",
            )
        row = {
            "axes": axes | limit_axis,
            **loss_fields(losses, edges, words),
            "reference": {},
            **speed_and_memory(int(losses.targets.sum()), losses.seconds, peak),
        }
        print_line(f"memory {axes['memory']}: {describe(row)}, {losses.seconds:.1f} s")
        rows.append(row)
        yield row
    # only now: a compressor's memory would count as the model's
    baselines = {name: float(value) for name, value in task.baselines(dataset).items()}
    for row in rows:
        yield row | {"reference": baselines}


def describe(row: EvalResult) -> str:
    """Bits per byte, and their standard error over documents."""
    line = f"{row['bits_per_byte']:.4f} bits per byte"
    if errors := row.get("standard_errors"):
        line += f" ± {errors['bits_per_byte']:.4f} over {len(row['documents']['nats']):,} documents"
    return line


def reading_modes(dataset: Dataset, options: EvalOptions) -> list[tuple[dict[str, Any], Dataset]]:
    """Axes of every mode and the dataset that it reads."""
    if options.stride is not None and options.context is not None:
        axes = {"memory": "sliding", "context": options.context, "stride": options.stride}
        return [(axes, SlidingWindows(dataset, options.stride, options.context))]
    return [({"memory": "kept"}, dataset), ({"memory": "reset"}, dataset)]


def loss_fields(losses: PositionLosses, edges: list[int], words: tuple[int, str] | None) -> EvalResult:
    """Sums over a text in the field's units; `words` is their count and the unit of counting."""
    nats, targets = float(losses.nats.sum()), int(losses.targets.sum())
    documents, num_bytes = losses.documents, int(losses.documents.bytes.sum())
    fields: EvalResult = {"nats": nats, "tokens": targets, "bytes": num_bytes, "loss": nats / targets}
    fields["bits_per_byte"] = nats / math.log(2) / num_bytes
    fields["accuracy"] = losses.hits / targets
    fields["documents"] = {name: sums.tolist() for name, sums in documents._asdict().items()}
    loss_error = ratio_standard_error(documents.nats, documents.targets)
    if loss_error is not None:
        byte_error = ratio_standard_error(documents.nats / math.log(2), documents.bytes)
        fields["standard_errors"] = {"loss": loss_error, "bits_per_byte": byte_error}
    if words is not None and words[0]:  # a text may be white space alone
        count, unit = words
        fields |= {"words": count, "word_unit": unit, "word_perplexity": math.exp(min(nats / count, 700.0))}
    fields["by_position"] = [
        {"from": low, "to": high, "tokens": int(count), "loss": float(total) / int(count)}
        for low, high, total, count in zip(
            [0, *edges], [*edges, None], losses.nats, losses.targets, strict=True
        )
        if count
    ]
    return fields
