"""Samples read back from a dataset or a batch."""

from collections.abc import Iterable

import numpy as np
import pytest

from zoo.module import IGNORE, Batch
from zoo.train.tasks.base import Dataset


def read_sample(dataset: Dataset, document: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets of a complete sample."""
    return dataset.window(document, 0, int(dataset.lengths[document]))


def read_text(dataset: Dataset, document: int) -> tuple[str, str]:
    """A sample of bytes as text, from after END to the end of the answer; and its targets."""
    tokens, targets = read_sample(dataset, document)
    assert tokens[0] == 256
    has_target = targets != IGNORE
    assert has_target[-has_target.sum() :].all()
    np.testing.assert_array_equal(tokens[1:][has_target[:-1]], targets[has_target][:-1])
    text = bytes([*tokens[1:].tolist(), int(targets[-1])])
    return text.decode(errors="replace"), bytes(targets[has_target].tolist()).decode()


def texts_of_batch(batch: Batch) -> Iterable[tuple[str, str]]:
    """The same of every row of a batch, whose rows are complete samples and padding."""
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        end = max(position for position, target in enumerate(targets) if target != IGNORE)
        text = bytes([*tokens[1 : end + 1], targets[end]])
        answer = bytes(target for target in targets if target != IGNORE)
        yield text.decode(errors="replace"), answer.decode()


def check_windows(dataset: Dataset, document: int, spans: Iterable[tuple[int, int]]) -> None:
    """Every window is a slice of the complete sample, and there is none past its end."""
    tokens, targets = read_sample(dataset, document)
    for start, stop in spans:
        window_tokens, window_targets = dataset.window(document, start, stop)
        np.testing.assert_array_equal(window_tokens, tokens[start:stop])
        np.testing.assert_array_equal(window_targets, targets[start:stop])
    for start, stop in ((-1, 3), (4, 3), (0, len(tokens) + 1)):
        with pytest.raises(IndexError):
            dataset.window(document, start, stop)
