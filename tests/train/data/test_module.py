"""What a run on samples says of their lengths."""

import logging

import pytest

from zoo.train.data.module import DataModule
from zoo.train.tasks.chomsky import Chomsky


@pytest.mark.parametrize(
    ("segment_len", "expected"), [(16, "least 1, mean 1.8, most 3"), (64, "least 1, mean 1.0, most 1")]
)
def test_segments_per_training_sample(
    caplog: pytest.LogCaptureFixture, segment_len: int, expected: str
) -> None:
    """Of samples of 2 to 40 positions: 15 have one segment of 16, 16 have two and 8 have three."""
    assert round((15 * 1 + 16 * 2 + 8 * 3) / 39, 1) == 1.8
    task = Chomsky(length=39, samples=5000, eval_samples=2)
    with caplog.at_level(logging.INFO):
        DataModule(task, batch_size=2, seq_len=64, segment_len=segment_len, seed=0).train_dataloader()
    assert [record.getMessage() for record in caplog.records] == [f"segments per training sample: {expected}"]
