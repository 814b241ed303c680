"""Gradients before the optimiser's step: averaged, clipped, and an error that names a layer where they aren't
finite."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from zoo.errors import UserError
from zoo.module import Batch, SequenceModule
from zoo.optim import AdamW
from zoo.train.loop.metrics import Metrics

REMEDY = "The last checkpoint is untouched: a smaller optim.lr, or resume= with another precision"
SKIPPING = (SingleDeviceStrategy, DDPStrategy)
"""Strategies under which the model's optimiser changes all weights of a rank itself."""


class _Arrival:
    """A copy of a flag of the device that is on its way to the host."""

    def __init__(self, flag: Tensor) -> None:
        on_gpu = flag.device.type == "cuda"
        host = torch.empty((), dtype=torch.bool, pin_memory=on_gpu)
        self._value, self._event = host.numpy(), torch.cuda.Event() if on_gpu else None
        self._is_sent = on_gpu or flag.device.type == "cpu"
        if self._is_sent:
            host.copy_(flag, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def value(self) -> bool | None:
        """The flag; None where it hasn't arrived."""
        if not self._is_sent or (self._event is not None and not self._event.query()):
            return None
        return bool(self._value)


class _Step:
    """A step since the last check, and what it read until its gradient is known to be finite."""

    def __init__(self, number: int, is_spoiled: Tensor, batch: Batch, state: Any) -> None:
        self.number, self.is_spoiled, self.arrival = number, is_spoiled, _Arrival(is_spoiled)
        self.window: tuple[Batch, Any] | None = (batch, state)


class GradientGuard(L.Callback):
    """Clips by the norm of all gradients together; a step whose gradient isn't finite stops the run.

    No step waits for the norm: the optimiser skips that step and all later ones on the device
    (`zoo.optim.AdamW`), and `check` raises the error before training is logged or saved.  Other optimisers,
    and strategies that divide the weights among the ranks, can't skip: there every step is checked.
    """

    def __init__(self, clip: float, metrics: Metrics) -> None:
        self.clip, self.metrics = clip, metrics
        self._batch: Batch | None = None
        self._initial_state: Any = None
        self._steps: list[_Step] = []  # since the last check

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch, self._initial_state = batch, pl_module.train_state

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, SequenceModule)
        assert self._batch is not None
        pl_module.average_gradients()
        weights = [weight for weight in pl_module.parameters() if weight.grad is not None]
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        is_spoiled = ~norm.isfinite()
        if self._steps:
            is_spoiled = is_spoiled | self._steps[-1].is_spoiled
        self._steps.append(_Step(trainer.global_step + 1, is_spoiled, self._batch, self._initial_state))
        self._drop_windows()
        if isinstance(optimizer, AdamW) and isinstance(trainer.strategy, SKIPPING):
            optimizer.skip = is_spoiled
        else:
            self.check(pl_module)
        clip_grads_with_norm_(weights, self.clip, norm)
        self.metrics.grad_norm, self.metrics.learning_rate = norm, optimizer.param_groups[0]["lr"]

    def _drop_windows(self) -> None:
        """Drop those of steps that are known to be finite, and those after the first that isn't."""
        for i, step in enumerate(self._steps):
            if step.window is not None:
                is_spoiled = step.arrival.value()
                if is_spoiled:
                    for later in self._steps[i + 1 :]:
                        later.window = None
                if is_spoiled is not False:
                    return
                step.window = None

    def check(self, model: SequenceModule) -> None:
        """Raises UserError if a gradient since the last check wasn't finite; it waits for the device."""
        flags = torch.stack([step.is_spoiled for step in self._steps]).tolist() if self._steps else []
        steps, self._steps = self._steps, []
        if True in flags:
            step = steps[flags.index(True)]
            assert step.window is not None
            raise UserError(
                f"step {step.number}: the loss or a gradient is not finite; first in "
                f"{first_non_finite(model, *step.window)}. {REMEDY}"
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SequenceModule)
        if self.metrics.log_is_due(trainer):
            self.check(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not math.isfinite(loss := self.metrics.latest["val/loss"]):
            raise UserError(
                f"step {trainer.global_step}: the held-out loss is not finite but {loss}. {REMEDY}"
            )


def first_non_finite(model: SequenceModule, batch: Batch, state: Any) -> str:
    """The innermost module with the first output that isn't finite when the batch is read again."""
    layers: list[str] = []

    def watch(name: str) -> Any:
        def check_outputs(module: nn.Module, inputs: Any, result: Any) -> None:
            outputs = result if isinstance(result, tuple) else (result,)
            if any(isinstance(output, Tensor) and not output.isfinite().all() for output in outputs):
                layers.append(name)

        return check_outputs

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model.compute_loss(batch, state)
    finally:
        for hook in hooks:
            hook.remove()
    return f"layer {layers[0]}" if layers else "the backward pass"
