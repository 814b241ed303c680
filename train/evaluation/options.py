"""Options of an evaluation."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from zoo.errors import UserError
from zoo.train.tasks.base import Split
from zoo.train.tasks.corpus_notes import MissingSplitError

PrintLine = Callable[[str], None]
"""Called with a line for each result."""


@contextlib.contextmanager
def other_split_named() -> Iterator[None]:
    """A block that reads the split of split=: where the corpus lacks it, the error names one to use."""
    try:
        yield
    except MissingSplitError as error:
        usable = [split for split in ("val", "test", "train") if split in error.existing]
        raise UserError(f"{error}; use split={usable[0]}" if usable else str(error)) from error


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """The keys of `zoo evaluate`; None for the default of the task."""

    model: str | None = None
    task: str | None = None
    overrides: tuple[str, ...] = ()
    """model.KEY=value, task.KEY=value, data.corpus=…, data.root=…; GROUP._target_=… trusts a class."""
    checkpoint: str = "last"
    precision: str | None = None
    """As trainer.precision; None for the run's."""
    split: Split = "test"
    batch_size: int = 16
    seq_len: int = 4096
    tokens: int | None = None
    """A limit: documents of a text are drawn until they hold as many bytes; a cell of a grid gets as few
    samples, but at least 16."""
    lengths: list[str] | None = None
    """Of samples: tokens, or multiples of the task's configured length such as "4x"."""
    depths: list[float] | None = None
    """Per cent."""
    prompts: int | None = None
    """Samples per cell."""
    positions: list[int] | None = None
    """First positions of all buckets but the first."""
    contexts: list[str] | None = None
    """Tokens that the model attends over, or multiples of the run's own; one evaluation each
    (zoo.train.evaluation.contexts)."""
    methods: list[str] | None = None
    """Position methods, one evaluation each at every context."""
    stride: int | None = None
    """Tokens between the starts of two sliding windows of `context` tokens."""
    context: int | None = None
