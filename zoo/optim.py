"""AdamW with linear warm-up and a decay, at once or at the end: the optimiser of every architecture, unless
`optim=` names another (zoo.muon)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR


class AdamW(torch.optim.AdamW):
    """torch's AdamW, whose step a flag on the device of the weights can skip; nothing is read back.

        t <- t + 1        w <- (1 - lr weight_decay) w
        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
        w <- w - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)

    Where `skip` is True, t, w, m and v stay as they are in every bit, whatever the gradient.  The host counts
    t as well, and takes no step for skipped: after one that was, call `recount`, which reads t.  On CUDA a
    step is torch's fused kernel; elsewhere its results are those of torch's loop over the weights.
    """

    skip: Tensor | None = None
    """A boolean without dimensions; None: a step of torch's AdamW."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self._fused = bool(weights) and all(weight.device.type == "cuda" for weight in weights)
        for group in (*self.param_groups, self.defaults):
            group["fused"] = self._fused or None
        self._step_counts: dict[Tensor, int] = {}  # t of each weight

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """`skip` is looked at after the closure, which may set it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.skip is None or self._fused:
            self.found_inf = None if self.skip is None else self.skip.float()
            super().step()
        else:
            for group in self.param_groups:
                weights = [weight for weight in group["params"] if weight.grad is not None]
                self._step_or_skip(weights, group, self.skip)
        return loss

    def _step_or_skip(self, weights: list[Tensor], group: dict[str, Any], skip: Tensor) -> None:
        b1, b2 = group["betas"]
        # some devices have no float64
        precise = torch.float64 if skip.device.type == "cpu" else torch.float32
        one, zero = torch.ones((), dtype=precise, device=skip.device), torch.zeros((), device=skip.device)
        decay = torch.where(skip, one, 1 - group["lr"] * group["weight_decay"])
        decay_v, taken = torch.where(skip, one, b2), (~skip).float()
        for weight in weights:  # one by one: the copies of one weight are small
            count, state = self._count(weight), self.state[weight]
            state["step"].add_(taken)
            parts = (weight, state["exp_avg"], state["exp_avg_sq"], weight.grad)
            # a number would take the type of a factor
            w, m, v, g = (part if part.ndim else part[None] for part in parts if part is not None)
            if group["weight_decay"]:
                w.mul_(decay)
            m.lerp_(torch.where(skip, m, g), 1 - b1)
            g = torch.where(skip, zero, g)
            v.mul_(decay_v).addcmul_(g, g, value=1 - b2)
            root = (v.sqrt() / (1 - b2**count) ** 0.5).add_(group["eps"])
            w.addcdiv_(torch.where(skip, zero, m), root, value=-group["lr"] / (1 - b1**count))

    def _count(self, weight: Tensor) -> int:
        """t of a weight in this step; its first step makes its state."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
            self._step_counts[weight] = 0
        elif weight not in self._step_counts:
            self._step_counts[weight] = int(state["step"])
            state["step"] = state["step"].to(weight.device)
        self._step_counts[weight] += 1
        return self._step_counts[weight]

    def recount(self) -> None:
        """Read t anew in the next step."""
        self._step_counts.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Where this optimiser is fused or not is decided by its weights' device, not by a checkpoint's."""
        groups = [{**group, "fused": self._fused or None} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})
        self.recount()


@dataclass
class Optim:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) under a schedule, in optimiser steps.

    After a linear warm-up a `cosine` falls until `steps`.  `wsd` (warm-up, stable, decay; Hu et al. 2024,
    arXiv:2404.06395) stays at `lr` until `decay_start`, then falls along half a cosine in `decay` times as
    many steps.  A parameter group may have `decays=False` (no weight decay) and `lr_scale` (factor of its
    learning rate).
    """

    steps: int
    lr: float = 1e-3
    warmup: int = 100  # steps
    floor: float = 0.1  # the last step's learning rate, as a share of `lr`
    weight_decay: float = 0.1
    betas: Sequence[float] = (0.9, 0.95)
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay: float = 0.25

    def __post_init__(self) -> None:
        self.decay_start = self.steps
        """The step at which the decay of `wsd` begins; a run may set it while it trains, up to that step."""

    @property
    def total_steps(self) -> int:
        """The steps of the entire run, as far as is known."""
        return self.steps if self.schedule == "cosine" else self.decay_start + self._decay_steps

    @property
    def _decay_steps(self) -> int:
        return max(1, math.ceil(self.decay * self.decay_start))

    def factor(self, step: int) -> float:
        """Factor of `lr` at a step."""
        if self.schedule == "wsd":
            stable = min(step, self.decay_start)
            progress = (step - stable) / max(1, self._decay_steps - 1)
            return min(1.0, (stable + 1) / max(1, self.warmup)) * self._half_cosine(progress)
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self._half_cosine((step + 1 - self.warmup) / max(1, self.steps - self.warmup))

    def _half_cosine(self, progress: float) -> float:
        """From 1 at the start to `floor` at the end."""
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def configure(self, model: Any) -> dict[str, Any]:
        """`build` with the parameter groups of a SequenceModule; a class that treats some weights otherwise
        overrides it."""
        return self.build(model.parameter_groups())

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The one optimiser of all groups, each of which has its lr and weight_decay; of another class where
        this is overridden."""
        return AdamW(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]))

    def build(self, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """Optimiser and schedule, in the form that `LightningModule.configure_optimizers` returns."""
        for group in groups:
            group["weight_decay"] = self.weight_decay if group.setdefault("decays", True) else 0.0
            group["lr"] = self.lr * group.setdefault("lr_scale", 1.0)
        optimizer = self.make_optimizer(groups)
        # a plain function leaves nothing in a checkpoint; a bound method would
        schedule = LambdaLR(optimizer, lambda step: self.factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
