"""Options of an evaluation."""

import dataclasses
from collections.abc import Callable

from zoo.train.tasks.base import Split

Log = Callable[[str], None]
"""Takes a line for each result."""


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """The keys of `zoo evaluate`; None for the default of the task."""

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
