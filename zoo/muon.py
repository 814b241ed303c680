"""Muon for the matrices between embedding and output projection, AdamW for all else: `optim=muon`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from zoo.optim import AdamW, Optim


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon for the parameter groups with `muon=True` and `zoo.optim.AdamW` for the others.

    The two share groups and state with this optimiser, so that a schedule sees one optimiser, and a
    checkpoint too.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], **muon_options: Any
    ) -> None:
        super().__init__(groups, {"lr": lr})
        self.parts: list[torch.optim.Optimizer] = []
        if matrices := self._groups(muon=True):
            self.parts.append(torch.optim.Muon(matrices, lr=lr, **muon_options))
        if others := self._groups(muon=False):
            self.parts.append(AdamW(others, lr=lr, betas=betas))
        self._share_state()

    def _groups(self, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group.get("muon", False) is muon]

    def _share_state(self) -> None:
        for part in self.parts:
            part.state = self.state
            part.param_groups = self._groups(muon=isinstance(part, torch.optim.Muon))
            if isinstance(part, AdamW):
                part.recount()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share_state()


@dataclass
class Muon(Optim):
    """Muon (Jordan et al. 2024, github.com/KellerJordan/Muon): momentum whose matrix is orthogonalised by
    Newton-Schulz iterations, of the size of AdamW's steps (Liu et al. 2025, arXiv:2502.16982), so that both
    have the same `lr`.

    It trains the matrices with weight decay that a parameter budget counts: not embeddings, the output
    projection, vectors, and kernels of convolutions.
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5  # iterations

    def configure(self, model: Any) -> dict[str, Any]:
        kernels = (
            getattr(part, name) for part in model.modules() for name in getattr(part, "depthwise_kernels", ())
        )
        outside = {id(weight) for weight in (*model.weights_outside_budget(), *kernels)}
        groups = []
        for group in model.parameter_groups():
            decays = group.get("decays", True)
            matrices = [w for w in group["params"] if decays and w.ndim == 2 and id(w) not in outside]
            identities = {id(weight) for weight in matrices}
            rest = [weight for weight in group["params"] if id(weight) not in identities]
            groups += [{**group, "params": matrices, "muon": True}] if matrices else []
            groups += [{**group, "params": rest, "muon": False}] if rest else []
        return self.build(groups)

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return MuonAdamW(
            groups,
            self.lr,
            (self.betas[0], self.betas[1]),
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            adjust_lr_fn="match_rms_adamw",
        )
