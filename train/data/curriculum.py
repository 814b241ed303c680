"""A length curriculum: training in stages of longer and longer samples, with as many positions per step.

In a task of samples a stage has the task at another length, and windows of one sample; in text it has shorter
windows (GrowLength, Jin et al. 2023, arXiv:2310.00576).  A stage has rows x window of the last one, which is
the task as configured.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from zoo.errors import UserError
from zoo.module import Batch
from zoo.train.data.loaders import TrainLoader
from zoo.train.data.prefetch import Prefetcher
from zoo.train.tasks.base import SampleTask, Task


class Stage(NamedTuple):
    """What a stage trains on: `label` is its number of segments, or its length."""

    label: int
    task: Task
    batch_size: int
    seq_len: int


def make_stages(
    task: Task,
    batch_size: int,
    seq_len: int,
    segment_len: int,
    segments: Sequence[int] | None,
    lengths: Sequence[int] | None,
) -> list[Stage]:
    """The stages of a curriculum by `segments` of `segment_len` positions or by `lengths`; [] without both.

    Raises UserError for stages that aren't longer each time, whose last one isn't the task as configured, or
    that don't fill a step with whole rows.
    """
    if segments is None and lengths is None:
        return []
    if segments is not None and lengths is not None:
        raise UserError("data.curriculum: expected segments or lengths, found both")
    key = "segments" if lengths is None else "lengths"
    labels = list(segments or lengths or ())
    if not labels or min(labels) < 1 or labels != sorted(set(labels)):
        raise UserError(f"data.curriculum.{key}: expected numbers that grow, found {labels}")
    sizes = [label * segment_len for label in labels] if lengths is None else labels
    if not isinstance(task, SampleTask):
        _check_last(f"data.curriculum.{key}", labels[-1], sizes[-1], "data.seq_len", seq_len)
        tasks: list[Task] = [task] * len(labels)
        windows = sizes
    else:
        if "length" not in task.axes:
            raise UserError(f"data.curriculum: task {task.name} has no length that could grow")
        length = task.length  # type: ignore[attr-defined]
        _check_last(f"data.curriculum.{key}", labels[-1], sizes[-1], "task.length", length)
        tasks = [task.at(length=size) for size in sizes[:-1]] + [task]
        windows = [_window(stage_task, segment_len) for stage_task in tasks[:-1]] + [seq_len]
    positions = batch_size * seq_len
    for label, window in zip(labels, windows, strict=True):
        if positions % window:
            raise UserError(
                f"data.curriculum.{key}: expected windows that divide data.batch_size * data.seq_len = "
                f"{positions}, found {window} in the stage {label}"
            )
    parts = zip(labels, tasks, windows, strict=True)
    return [Stage(label, stage_task, positions // window, window) for label, stage_task, window in parts]


def _check_last(key: str, label: int, size: int, name: str, expected: int) -> None:
    if size != expected:
        raise UserError(f"{key}: expected a last stage of {name}={expected}, found {label}, which is {size}")


def _window(task: Task, segment_len: int) -> int:
    """Positions of the longest sample, in whole segments."""
    return -(-int(task.split("train").lengths.max()) // segment_len) * segment_len


Loader = TrainLoader | Prefetcher


class CurriculumLoader:
    """The loader of one stage after the other, each from its own beginning, with its own order.

    A stage ends when it is told to (`advance`), and no epoch does.  All rows of a stage's first batch are
    fresh.
    """

    def __init__(self, make_loader: Callable[[int], Loader], num_stages: int) -> None:
        self._make_loader, self.num_stages = make_loader, num_stages
        self.stage = 0
        self.loader = make_loader(0)

    def __len__(self) -> int:
        return sys.maxsize  # Lightning counts batches up to the end of an epoch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            stage = self.stage
            for batch in self.loader:
                yield batch
                if self.stage != stage:
                    break

    def advance(self) -> None:
        """The next batch is the first of the next stage."""
        self._begin(self.stage + 1)

    def _begin(self, stage: int) -> None:
        if isinstance(self.loader, Prefetcher):
            self.loader.close()
        self.stage, self.loader = stage, self._make_loader(stage)

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError for a stage that there isn't, and for what the stage's loader refuses."""
        stage = state.get("stage")
        if type(stage) is not int or not 0 <= stage < self.num_stages:
            raise UserError(
                f"can't resume from the saved position in the data: expected stage 0 to "
                f"{self.num_stages - 1}, found {stage!r:.50}"
            )
        if stage != self.stage:
            self._begin(stage)
        self.loader.load_state_dict(state["loader"])
