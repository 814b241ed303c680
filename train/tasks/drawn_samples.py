"""Samples of one length that are drawn when they are read: nothing is stored."""

from typing import Generic, TypeVar

import numpy as np

from zoo.train.tasks.base import Dataset, SampleTask, Split


class FixedLengthTask(SampleTask):
    """All samples have `length` positions."""

    length: int


FixedLengthTaskT = TypeVar("FixedLengthTaskT", bound=FixedLengthTask)


class DrawnSamples(Dataset, Generic[FixedLengthTaskT]):
    """Samples of `task.length` positions, drawn when they are read, each from a separate generator."""

    def __init__(self, task: FixedLengthTaskT, split: Split) -> None:
        self.task, self.split = task, split
        self.lengths = np.full(task.num_samples(split), task.length, np.int64)
