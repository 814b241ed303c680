"""Batches: one window of a document in every row."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from zoo.errors import UserError
from zoo.module import IGNORE, Batch
from zoo.train.tasks.base import Dataset


class Span(NamedTuple):
    """The content of one row of a batch: positions start..stop-1 of a document."""

    document: int
    start: int
    stop: int
    length: int  # positions that the row has read of the document, or of the chunk of one, before these

    @property
    def fresh(self) -> bool:
        """True if a document or a chunk of one begins: the row's state is reset."""
        return not self.length


class TargetExtras(NamedTuple):
    """Optional per-target fields of a batch; they cost the loader time."""

    evidence_distances: bool = False
    bayes_nats: bool = False


NO_EXTRAS = TargetExtras()


def collate(
    dataset: Dataset, seq_len: int, spans: Sequence[Span | None], extras: TargetExtras = NO_EXTRAS
) -> Batch:
    """One row per span; a row without a span is padding, and fresh."""
    tokens = np.zeros((len(spans), seq_len), np.int64)
    targets = np.full((len(spans), seq_len), IGNORE, np.int64)
    fresh = np.ones(len(spans), np.bool_)
    for row, span in enumerate(spans):
        if span is not None:
            length = span.stop - span.start
            window = dataset.window(span.document, span.start, span.stop)
            tokens[row, :length], targets[row, :length] = window
            fresh[row] = span.fresh
    lengths = tuple(0 if span is None else span.length for span in spans)
    batch = Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(fresh), lengths)
    return _with_extras(batch, dataset, spans, extras) if any(extras) else batch


def _with_extras(batch: Batch, dataset: Dataset, spans: Sequence[Span | None], extras: TargetExtras) -> Batch:
    distances = np.full(batch.tokens.shape, -1, np.int64)
    bayes_nats = np.zeros(batch.tokens.shape, np.float32)
    for row, span in enumerate(spans):
        if span is not None:
            window, columns = (span.document, span.start, span.stop), slice(span.stop - span.start)
            if extras.evidence_distances:
                distances[row, columns] = _known(dataset.evidence_distances(*window), "evidence_distances")
            if extras.bayes_nats:
                bayes_nats[row, columns] = _known(dataset.bayes_nats(*window), "bayes_nats")
    if extras.evidence_distances:
        batch = batch._replace(evidence_distances=torch.from_numpy(distances))
    return batch._replace(bayes_nats=torch.from_numpy(bayes_nats)) if extras.bayes_nats else batch


def _known(values: np.ndarray | None, name: str) -> np.ndarray:
    if values is None:
        raise UserError(f"expected a task with {name}, found one that doesn't know them")
    return values
