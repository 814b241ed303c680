"""Tools of the law gradient_is_true: the loss of several segments, differentiated backward and numerically.

The numerical derivative along a direction d is the central difference (L(p + h d) - L(p - h d)) / 2h.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.gradients import recorded, replayed
from zoo.interface import StatefulLM
from zoo.law_tools import continued_states, gradients, promises_gradient, random_text
from zoo.state import State, from_leaves, leaves, named_leaves, reset_rows

STEPS = 1e-6, 1e-8, 1e-10  # h: shorter ones where a kink, another selection or a pole lies within the first
AGREEMENT = 1e-5  # of the gradient's length


class Derivatives(NamedTuple):
    """The derivative along one direction by both ways, and the length of the gradient."""

    backward: float
    numerical: float
    gradient_norm: float

    def agree(self) -> bool:
        return abs(self.backward - self.numerical) <= AGREEMENT * self.gradient_norm


class SegmentLoss:
    """The cross-entropy of three segments as a function of all weights and of the state before them.

    The first row is fresh, the others continue a text.  Only leaves of the state that `learns_through_memory`
    declares are variables; the others have, after every segment, constant values, and so has what
    `stop_gradient` stops.
    """

    def __init__(self, model: StatefulLM) -> None:
        self.model, self.pieces = model, random_text(model, segments=3).split(model.segment_len, dim=1)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.constants: list[list[Tensor]] = []  # by segment: the leaves of the state after it
        with torch.no_grad():
            self.earlier, state = continued_states(model)  # the second with its first row fresh
            self.variables = [leaf for leaf, declared in self._declared(state) if declared]
            with recorded() as self.stopped:
                for piece in self.pieces:
                    _, state = model.segment(piece, state)
                    self.constants.append([leaf.clone() for leaf in leaves(state)])

    def _declared(self, state: State) -> list[tuple[Tensor, bool]]:
        """Each leaf, and True if the gradient runs through it by declaration."""
        return [
            (leaf, (leaf.is_floating_point() or leaf.is_complex()) and promises_gradient(self.model, name))
            for name, leaf in named_leaves(state)
        ]

    def _start(self, offsets: list[Tensor]) -> State:
        """The state before the text, with these offsets added to its variables in the rows that continue a
        text: an empty memory may be singular, the quotient of two sums that are still 0."""
        fresh, remaining = torch.tensor([True, False, False]), iter(offsets)
        state = reset_rows(self.earlier, self.model.init_state(len(fresh)), fresh)
        moved = [
            leaf + next(remaining) * (~fresh).view(-1, *[1] * (leaf.ndim - 1)) if declared else leaf
            for leaf, declared in self._declared(state)
        ]
        return from_leaves(state, moved)

    def __call__(self, offsets: list[Tensor]) -> Tensor:
        """The loss with these offsets added to the variables of the state before the text."""
        state, outputs = self._start(offsets), []
        for piece, constants in zip(self.pieces, self.constants, strict=True):
            logits, state = self.model.segment(piece, state)
            outputs.append(logits)
            pairs = zip(self._declared(state), constants, strict=True)
            merged = [leaf if declared else constant for (leaf, declared), constant in pairs]
            state = from_leaves(state, merged)
        return F.cross_entropy(
            torch.cat(outputs, dim=1).flatten(0, 1), torch.cat(self.pieces, dim=1).flatten()
        )

    def derivatives(self, seed: int) -> Derivatives:
        """Along a random direction, by the first step with which both agree, else by the last."""
        offsets = [torch.zeros_like(leaf) for leaf in self.variables]
        with torch.enable_grad():
            inputs = [offset.clone().requires_grad_() for offset in offsets]
            grads = gradients(self(inputs), [*self.weights, *inputs])
        generator = torch.Generator().manual_seed(seed)
        direction = [
            torch.randn(part.shape, generator=generator, dtype=part.dtype)
            for part in (*self.weights, *offsets)
        ]
        pairs = [(grad, d) for grad, d in zip(grads, direction, strict=True) if grad is not None]
        backward = sum(float((grad.conj() * d).real.sum()) for grad, d in pairs)
        norm = sum(float(grad.abs().square().sum()) for grad, _ in pairs) ** 0.5
        for step in STEPS:
            result = Derivatives(backward, self._difference(direction, step), norm)
            if result.agree():
                break
        return result

    @torch.no_grad()
    def _difference(self, direction: list[Tensor], step: float) -> float:
        """The numerical derivative."""
        saved, losses = [weight.clone() for weight in self.weights], []
        for signed_step in (step, -step):
            for weight, old, d in zip(self.weights, saved, direction[: len(saved)], strict=True):
                weight.copy_(old + signed_step * d)
            with replayed(self.stopped):
                losses.append(float(self([signed_step * d for d in direction[len(saved) :]])))
        for weight, old in zip(self.weights, saved, strict=True):
            weight.copy_(old)
        return (losses[0] - losses[1]) / (2 * step)
