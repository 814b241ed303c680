"""SIGINT and SIGTERM during training: save, then leave."""

import signal
import types
from typing import Any

import lightning as L

from zoo.train.loop.checkpointing import Checkpoints


class InterruptedRunError(Exception):
    """A signal asked the run to end; everything is saved."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class SignalHandler(L.Callback):
    """SIGINT and SIGTERM: finish the step, write last.ckpt, leave.  A second one leaves at once."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received = 0
        self._step = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if self.received:
            raise InterruptedRunError(number)
        self.received = number

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients that accumulate are in no checkpoint
            return
        if trainer.strategy.reduce_boolean_decision(bool(self.received), all=False):
            self.checkpoints.save_last(trainer)
            raise InterruptedRunError(self.received or signal.SIGTERM)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # what training reached was saved right before the validation
        if trainer.strategy.reduce_boolean_decision(bool(self.received), all=False):
            raise InterruptedRunError(self.received or signal.SIGTERM)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
