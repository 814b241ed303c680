"""Streams documents through a trained model and adds up hits by sample, or losses by position.

A document is read window after window with carried state, so memory doesn't depend on its length.  Targets
are teacher-forced: a sample counts as exact when all its targets are hit, as greedy decoding would then
generate its answer.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float64, Int64
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE, Batch, SequenceModule
from zoo.state import State
from zoo.train.data.batches import Span
from zoo.train.data.loaders import EvalLoader
from zoo.train.runs.precision import ForwardContext
from zoo.train.tasks.base import Dataset

OnProgress = Callable[[int], None]
"""Called after every batch with the number of positions that were read."""


class StreamReader(NamedTuple):
    """Reads a dataset with carried state; batch size and window length change the speed, but no result."""

    model: SequenceModule
    batch_size: int = 16
    seq_len: int = 4096
    on_progress: OnProgress = lambda positions: None
    forward_context: ForwardContext = contextlib.nullcontext

    def batches(
        self, dataset: Dataset, reset_memory: bool = False
    ) -> Iterator[tuple[list[Span | None], Batch, dict[str, Tensor]]]:
        """Yields the span of each row, the batch, and the outputs of SequenceModule.compute_loss.

        With `reset_memory` every segment of the model starts from an empty state.
        """
        segment_len = self.model.segment_len
        longest = -(-int(dataset.lengths.max(initial=1)) // segment_len) * segment_len
        seq_len = min(max(1, self.seq_len // segment_len) * segment_len, longest)
        loader = EvalLoader(dataset, self.batch_size, seq_len)
        state: State | None = None
        with torch.inference_mode():
            for spans, batch in zip(loader.spans(), loader, strict=True):
                batch = batch.to(self.model.device)
                with self.forward_context():
                    if reset_memory:
                        outputs = _read_segments_apart(self.model, batch)
                    else:
                        outputs, state = self.model.compute_loss(batch, state)
                yield spans, batch, outputs
                self.on_progress(sum(span.stop - span.start for span in spans if span))


def _read_segments_apart(model: SequenceModule, batch: Batch) -> dict[str, Tensor]:
    """Outputs of the same window, each segment a fresh row of the batch."""
    segments = batch.tokens.shape[1] // model.segment_len
    tokens, targets = (
        rearrange(tensor, "rows (segments time) -> (rows segments) time", segments=segments)
        for tensor in (batch.tokens, batch.targets)
    )
    fresh = torch.ones(len(tokens), dtype=torch.bool)
    outputs, _ = model.compute_loss(Batch(tokens, targets, fresh), None)
    return {
        name: rearrange(outputs[name], "(rows segments) time -> rows (segments time)", segments=segments)
        for name in ("nats", "hits")
    }


class SamplePredictions(NamedTuple):
    """The targets of every sample that the model hit, the argmax being the target, and the time it took."""

    num_targets: Int64[np.ndarray, " samples"]
    num_hits: Int64[np.ndarray, " samples"]
    hits: list[Bool[np.ndarray, " targets"]]  # of each sample, in the order of its targets
    nats: list[Float64[np.ndarray, " targets"]]
    positions: list[Int64[np.ndarray, " targets"]]  # that predict them
    seconds: float


def predict_samples(reader: StreamReader, dataset: Dataset, reset_memory: bool = False) -> SamplePredictions:
    """Hits and nats of every target, all samples read once; with `reset_memory` each segment from an empty
    state."""
    parts = [[(np.zeros(0, np.bool_), np.zeros(0), np.zeros(0, np.int64))] for _ in dataset.lengths]
    start = time.perf_counter()
    for spans, batch, outputs in reader.batches(dataset, reset_memory):
        is_target, hit = torch.stack([batch.targets != IGNORE, outputs["hits"]]).cpu().numpy()
        nats = outputs["nats"].double().cpu().numpy()
        for row, span in enumerate(spans):
            if span is not None and is_target[row].any():  # few windows of a long sample have targets
                indices = np.flatnonzero(is_target[row])
                parts[span.document].append((hit[row][indices], nats[row][indices], span.start + indices))
    columns = [[np.concatenate(part) for part in zip(*of_sample, strict=True)] for of_sample in parts]
    hits, nats_of, positions = map(list, zip(*columns, strict=True))
    num_targets, num_hits = np.array([(len(mask), mask.sum()) for mask in hits], np.int64).T
    return SamplePredictions(num_targets, num_hits, hits, nats_of, positions, time.perf_counter() - start)


class DocumentLosses(NamedTuple):
    """Sums over every document."""

    nats: Float64[np.ndarray, " documents"]
    targets: Int64[np.ndarray, " documents"]
    bytes: Int64[np.ndarray, " documents"]


class PositionLosses(NamedTuple):
    """Nats and targets of every bucket of positions in a document; hits of all; and the same sums over
    every document."""

    nats: Float64[np.ndarray, " buckets"]
    targets: Int64[np.ndarray, " buckets"]
    hits: int
    documents: DocumentLosses
    seconds: float


def position_losses(
    reader: StreamReader,
    dataset: Dataset,
    edges: list[int],
    byte_count: Callable[[Tensor], Tensor],
    reset_memory: bool = False,
) -> PositionLosses:
    """`edges` are the first positions of all buckets but the first."""
    offsets, document_of = np.zeros(len(dataset.lengths), np.int64), np.arange(len(dataset.lengths))
    if isinstance(dataset, SlidingWindows):
        offsets, document_of = dataset.offsets, dataset.documents
    nats, targets = np.zeros(len(edges) + 1), np.zeros(len(edges) + 1, np.int64)
    count = int(document_of.max(initial=-1)) + 1
    documents = DocumentLosses(np.zeros(count), np.zeros(count, np.int64), np.zeros(count, np.int64))
    hits = 0
    start = time.perf_counter()
    for spans, batch, outputs in reader.batches(dataset, reset_memory):
        starts = np.array([span.start + offsets[span.document] if span else 0 for span in spans])
        positions = starts[:, None] + np.arange(batch.tokens.shape[1])
        is_target = (batch.targets != IGNORE).cpu().numpy()
        bucket = np.searchsorted(edges, positions[is_target], side="right")
        batch_nats = np.where(is_target, outputs["nats"].double().cpu().numpy(), 0.0)
        nats += np.bincount(bucket, batch_nats[is_target], len(nats))
        targets += np.bincount(bucket, minlength=len(targets))
        hits += int((outputs["hits"] & (batch.targets != IGNORE)).sum())
        for row, span in enumerate(spans):
            if span is not None:
                document = document_of[span.document]
                documents.nats[document] += batch_nats[row].sum()
                documents.targets[document] += is_target[row].sum()
                documents.bytes[document] += int(byte_count(batch.targets[row]))
    source = dataset.dataset if isinstance(dataset, SlidingWindows) else dataset
    for document, length in enumerate(source.lengths.tolist()):
        if (size := source.byte_length(document, length)) is not None:
            documents.bytes[document] = size
    return PositionLosses(nats, targets, hits, documents, time.perf_counter() - start)


class SlidingWindows(Dataset):
    """The same documents cut into windows of `context` positions, each `stride` after the previous one.

    Every position is a target once: all positions of a document's first window, and those of each later
    window that no earlier one contained.  So a target has at least context - stride positions before it in
    its window (or its entire past).  A window is a separate document: the state starts empty in each.
    """

    def __init__(self, dataset: Dataset, stride: int, context: int) -> None:
        if not 1 <= stride <= context:
            raise UserError(f"stride: expected 1 to context={context}, found {stride}")
        counts = 1 - (-np.maximum(dataset.lengths - context, 0) // stride)
        self.dataset = dataset
        self.documents = np.repeat(np.arange(len(counts)), counts)
        index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.offsets = index * stride
        """Start of each window in its document."""
        stops = np.minimum(self.offsets + context, dataset.lengths[self.documents])
        self.lengths = (stops - self.offsets).astype(np.int64)
        self.first_target = np.where(index > 0, context - stride, 0)
        """Of each window, as a position in the window."""

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        offset = int(self.offsets[document])
        tokens, targets = self.dataset.window(int(self.documents[document]), offset + start, offset + stop)
        ignored = max(0, min(int(self.first_target[document]), stop) - start)
        return tokens, np.concatenate([np.full(ignored, IGNORE, np.int64), targets[ignored:]])


@contextlib.contextmanager
def progress_bar(positions: int) -> Iterator[OnProgress]:
    """A bar on a terminal, none elsewhere."""
    columns = (TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"), BarColumn(bar_width=None))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=positions)
        yield lambda advance: bar.advance(task, advance)
