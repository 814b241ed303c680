"""AdamW with linear warm-up and cosine decay: the optimiser of every architecture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Optim:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) under warm-up and cosine decay, in optimiser steps.

    A parameter group may have `decays=False` (no weight decay) and `lr_scale` (factor of its learning rate).
    """

    steps: int
    lr: float = 1e-3
    warmup: int = 100  # steps
    floor: float = 0.1  # the last step's learning rate, as a share of `lr`
    weight_decay: float = 0.1
    betas: Sequence[float] = (0.9, 0.95)

    def factor(self, step: int) -> float:
        """Factor of `lr` at a step: rises over `warmup` steps, then falls along half a cosine to `floor`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step + 1 - self.warmup) / max(1, self.steps - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def build(self, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """Optimiser and schedule, in the form that `LightningModule.configure_optimizers` returns."""
        for group in groups:
            group["weight_decay"] = self.weight_decay if group.setdefault("decays", True) else 0.0
            group["lr"] = self.lr * group.setdefault("lr_scale", 1.0)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]))
        # a plain function leaves nothing in a checkpoint; a bound method would
        schedule = LambdaLR(optimizer, lambda step: self.factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
