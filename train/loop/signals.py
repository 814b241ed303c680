"""Signals during training: save, then stop."""

import signal
import threading
import types
from typing import Any

import lightning as L

from zoo.train.loop.checkpointing import Checkpoints
from zoo.train.loop.signal_watch import WATCH
from zoo.train.runs.stop_signals import InterruptedRunError, stop_signals


class SignalHandler(L.Callback):
    """At a signal finishes the step, saves last.ckpt and stops; at a second one stops at once, unless it is
    that of a closed output: what Ctrl-C ends may be the reader too.

    Several ranks stop together, at the next step that is logged.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received = 0
        self._step = 0
        self._previous_handlers: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Notes the handlers of before, to which `teardown` returns; Lightning adds its own in between."""
        if threading.current_thread() is threading.main_thread():  # others can't set handlers
            self._previous_handlers = {signum: signal.getsignal(signum) for signum in stop_signals()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        WATCH.met()
        for signum in self._previous_handlers:
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: types.FrameType | None) -> None:
        WATCH.handled()
        is_closed_output = signal.Signals(signum).name == "SIGPIPE"
        if self.received and not is_closed_output:
            raise InterruptedRunError(signum)
        self.received = self.received or signum

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients that accumulate are in no checkpoint
            return
        if trainer.world_size > 1 and trainer.global_step % self.checkpoints.metrics.log_every:
            return  # to ask the other ranks is to wait for the device
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
        # last.ckpt was saved right before the validation
        if trainer.strategy.reduce_boolean_decision(bool(self.received), all=False):
            raise InterruptedRunError(self.received or signal.SIGTERM)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)
        self._previous_handlers = {}
