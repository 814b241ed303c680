"""Gradients before the optimiser's step: averaged, clipped, and an error that names a layer where they aren't
finite."""

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from zoo.errors import UserError
from zoo.module import Batch, SequenceModule
from zoo.train.loop.metrics import Metrics

REMEDY = "The last checkpoint is untouched: a smaller optim.lr, or resume= with another precision"


class GradientGuard(L.Callback):
    """Clips by the norm of all gradients together; stops the run before one that isn't finite is used."""

    def __init__(self, clip: float, metrics: Metrics) -> None:
        self.clip, self.metrics = clip, metrics
        self._batch: Batch | None = None
        self._initial_state: Any = None

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
        if not norm.isfinite():
            source = first_non_finite(pl_module, self._batch, self._initial_state)
            raise UserError(
                f"step {trainer.global_step + 1}: the loss or a gradient is not finite; first in {source}. "
                + REMEDY
            )
        clip_grads_with_norm_(weights, self.clip, norm)
        self.metrics.grad_norm, self.metrics.learning_rate = norm, optimizer.param_groups[0]["lr"]

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
