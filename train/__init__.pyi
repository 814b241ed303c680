"""The public names of zoo.train, as static checkers and editors see them."""

from zoo.train.tasks.base import Dataset as Dataset
from zoo.train.tasks.base import SampleTask as SampleTask
from zoo.train.tasks.base import Task as Task
from zoo.train.tasks.base import sample_rng as sample_rng
