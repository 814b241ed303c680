"""Reading held-out texts with a trained model and adding up what it got right: by sample and by position.

A text is read window after window with carried state, so memory doesn't depend on its length.  Targets are
given, never fed back: a sample counts as exact when all its targets are hit, which is when greedy decoding
would have written its answer.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE, Batch, SequenceModule
from zoo.state import State
from zoo.train.data.loaders import EvalLoader, Span
from zoo.train.tasks.base import Dataset

Tell = Callable[[int], None]  # told how many positions were read


class StreamReader(NamedTuple):
    """How texts are read: any choice gives the same numbers."""

    model: SequenceModule
    rows: int = 16
    window: int = 4096
    tell: Tell = lambda positions: None

    def batches(
        self, texts: Dataset, reset: bool = False
    ) -> Iterator[tuple[list[Span | None], Batch, dict[str, Tensor]]]:
        """What each row reads, the batch, and what the model said of it (see SequenceModule.compute_loss).

        With `reset` every segment of the model's starts from an empty state.
        """
        segment_len = self.model.segment_len
        longest = -(-int(texts.lengths.max(initial=1)) // segment_len) * segment_len
        window = min(max(1, self.window // segment_len) * segment_len, longest)
        reading = EvalLoader(texts, self.rows, window)
        state: State | None = None
        with torch.inference_mode():
            for pieces, batch in zip(reading.spans(), reading, strict=True):
                batch = Batch(*(part.to(self.model.device) for part in batch))
                if reset:
                    said = _read_apart(self.model, batch)
                else:
                    said, state = self.model.compute_loss(batch, state)
                yield pieces, batch, said
                self.tell(sum(piece.stop - piece.start for piece in pieces if piece))


def _read_apart(model: SequenceModule, batch: Batch) -> dict[str, Tensor]:
    """The same window, every segment of it a row of its own that begins fresh."""
    segments = batch.tokens.shape[1] // model.segment_len
    tokens, targets = (
        rearrange(part, "rows (segments time) -> (rows segments) time", segments=segments)
        for part in (batch.tokens, batch.targets)
    )
    fresh = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    said, _ = model.compute_loss(Batch(tokens, targets, fresh), None)
    return {
        name: rearrange(said[name], "(rows segments) time -> rows (segments time)", segments=segments)
        for name in ("nats", "hits")
    }


class SampleHits(NamedTuple):
    """Of every sample: targets asked and hit, and which they are in their order."""

    asked: Int64[np.ndarray, " samples"]
    hits: Int64[np.ndarray, " samples"]
    which: list[Bool[np.ndarray, " targets"]]
    seconds: float


def sample_hits(reader: StreamReader, texts: Dataset) -> SampleHits:
    found = [[np.zeros(0, np.bool_)] for _ in texts.lengths]
    began = time.perf_counter()
    for pieces, batch, said in reader.batches(texts):
        here, hit = torch.stack([batch.targets != IGNORE, said["hits"]]).cpu().numpy()
        for row, piece in enumerate(pieces):
            if piece is not None and here[row].any():  # few windows of a long sample ask anything
                found[piece.document].append(hit[row][here[row]])
    which = [np.concatenate(parts) for parts in found]
    asked, hits = np.array([(len(own), own.sum()) for own in which], np.int64).T
    return SampleHits(asked, hits, which, time.perf_counter() - began)


class PositionLosses(NamedTuple):
    """Nats and targets of every bucket of positions in a document; `hits` over all."""

    nats: Float64[np.ndarray, " buckets"]
    asked: Int64[np.ndarray, " buckets"]
    hits: int
    bytes: int
    seconds: float


def position_losses(
    reader: StreamReader,
    texts: Dataset,
    edges: list[int],
    byte_count: Callable[[Tensor], Tensor],
    reset: bool = False,
) -> PositionLosses:
    """`edges` are the first positions of the second bucket, the third …"""
    offsets = texts.offsets if isinstance(texts, SlidingWindows) else np.zeros(len(texts.lengths), np.int64)
    nats, asked = np.zeros(len(edges) + 1), np.zeros(len(edges) + 1, np.int64)
    hits = bytes_ = 0
    began = time.perf_counter()
    for pieces, batch, said in reader.batches(texts, reset):
        starts = np.array([piece.start + offsets[piece.document] if piece else 0 for piece in pieces])
        place = starts[:, None] + np.arange(batch.tokens.shape[1])
        here = (batch.targets != IGNORE).cpu().numpy()
        bucket = np.searchsorted(edges, place[here], side="right")
        nats += np.bincount(bucket, said["nats"].cpu().numpy()[here].astype(np.float64), len(nats))
        asked += np.bincount(bucket, minlength=len(asked))
        hits += int((said["hits"] & (batch.targets != IGNORE)).sum())
        bytes_ += int(byte_count(batch.targets))
    return PositionLosses(nats, asked, hits, bytes_, time.perf_counter() - began)


class SlidingWindows(Dataset):
    """The same documents, cut into windows of `context` positions that move on by `stride`.

    Every position is asked once: all of a document's first window, and of each further one what no window
    before it held.  So a target has at least context - stride positions before it in its window (or all
    there are), and a window is a document of its own: what the model carries starts empty in each.
    """

    def __init__(self, texts: Dataset, stride: int, context: int) -> None:
        if not 1 <= stride <= context:
            raise UserError(f"stride: expected 1 to context={context}, found {stride}")
        further = -(-np.maximum(texts.lengths - context, 0) // stride)
        counts = further + 1
        self.texts = texts
        self.documents = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.offsets = number * stride
        """Where each window begins in its document."""
        stops = np.minimum(self.offsets + context, texts.lengths[self.documents])
        self.lengths = (stops - self.offsets).astype(np.int64)
        self.first = np.where(number > 0, context - stride, 0)  # the first position asked, in the window

    def window(
        self, document: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        at = int(self.offsets[document])
        tokens, targets = self.texts.window(int(self.documents[document]), at + start, at + stop)
        known = max(0, min(int(self.first[document]), stop) - start)
        return tokens, np.concatenate([np.full(known, IGNORE, np.int64), targets[known:]])
