"""The one data module: any task, cut into windows for any model."""

import logging
from collections.abc import Iterable

import lightning as L

from zoo.errors import UserError
from zoo.module import Batch
from zoo.train.data.loaders import Lanes, Reading
from zoo.train.data.prefetch import Ahead
from zoo.train.tasks.base import Split, Task, Texts
from zoo.train.tasks.lm import prefix

log = logging.getLogger(__name__)


class DataModule(L.LightningDataModule):
    """Training lanes that never end, and evaluation that reads every document once."""

    def __init__(
        self, task: Task, rows: int, window: int, segment_len: int, seed: int, val_bytes: int | None = None
    ) -> None:
        """`rows` per rank; `window` positions per row and step, a multiple of the model's segment_len.

        Validation inside a run reads the first `val_bytes` bytes held out; all if None, or if there are none.
        """
        super().__init__()
        if rows < 1 or window < 1:
            raise UserError(
                f"expected data.batch_size and data.seq_len of at least 1, found {rows} and {window}"
            )
        if window % segment_len:
            below = window // segment_len * segment_len
            near = " or ".join(str(width) for width in (below, below + segment_len) if width)
            raise UserError(
                f"data.seq_len: expected a multiple of segment_len={segment_len}, found {window}; take {near}"
            )
        self.task, self.rows, self.window, self.seed, self.val_bytes = task, rows, window, seed, val_bytes

    def train_dataloader(self) -> Iterable[Batch]:
        texts = self.task.split("train")
        positions, step = int(texts.lengths.sum()), self.rows * self.window * self._place()[1]
        if positions < step:
            log.warning("training has %s positions, less than the %s a step reads", positions, f"{step:,}")
        lanes = Lanes(texts, self.rows, self.window, self.seed, *self._place())
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Ahead(lanes) if on_gpu else lanes

    def val_dataloader(self) -> Iterable[Batch]:
        return Reading(self.val_texts(), self.rows, self.window, *self._place())

    def test_dataloader(self) -> Iterable[Batch]:
        return self.reading("test")

    def reading(self, split: Split) -> Reading:
        """A whole split, for evaluation."""
        return Reading(self.task.split(split), self.rows, self.window, *self._place())

    def val_texts(self) -> Texts:
        """What validation inside a run reads."""
        texts = self.task.split("val")
        if self.val_bytes is None or self.task.metric != "bits_per_byte":
            return texts
        return prefix(texts, self.val_bytes)

    @property
    def val_text(self) -> bytes:
        """What validation inside a run asks, as bytes; empty in a task without bytes."""
        texts = self.val_texts()
        return b"".join(texts.text(document) or b"" for document in range(len(texts.lengths)))

    def _place(self) -> tuple[int, int]:
        """Rank and number of ranks."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
