"""The laws on gradients: where they run, and that they are right.

The numerical derivative along a direction d is the central difference (L(p + h d) - L(p - h d)) / 2h.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.gradients import recorded, replayed
from zoo.interface import StatefulLM
from zoo.law_tools import (
    BATCH_SIZE,
    continued_states,
    float_leaves,
    gradients,
    memory_cuts,
    promises_gradient,
    random_text,
    weighted_sum,
)
from zoo.state import State, from_leaves, leaves, named_leaves, reset_rows

# h: shorter ones where a kink or another selection lies within the first, or where denominators near 0 bend
# the loss (ARMT's published ones: the error falls as h^2, 2e-4 at 1e-6 and 2e-8 at 1e-8)
STEPS = 1e-6, 1e-8, 1e-10
AGREEMENT = 1e-5  # of the gradient's length
SHIFT = 1e-3  # of the state's variables: texts repeat tokens, and equal stored keys have equal scores


def gradient_reach(model: StatefulLM) -> None:
    """The gradient of the next segment's loss runs through a tensor of the state back into the embeddings of
    earlier tokens, at some cut, if `learns_through_memory` promises it, and never otherwise."""
    promise, text = model.learns_through_memory, random_text(model)
    reached = {name: False for name, _ in float_leaves(model.init_state(BATCH_SIZE))}
    fields = {name.rpartition(".")[2] for name in reached}
    assert isinstance(promise, bool) or fields.issuperset(promise), (
        f"learns_through_memory: expected fields of the state ({', '.join(sorted(fields))}), found {promise}"
    )
    embeddings = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
    for cut in memory_cuts(model):
        with torch.enable_grad():
            _, state = model(text[:, :cut])
            logits, _ = model(text[:, cut : cut + model.segment_len], state)
            for name, leaf in float_leaves(state):
                if gradient_runs_through(leaf, logits, embeddings):
                    reached[name] = True
    for name, reaches in reached.items():
        promised = promises_gradient(model, name)
        assert reaches == promised, (
            f"learns_through_memory={promise}: expected {'a' if promised else 'no'} gradient through state"
            f" `{name}`, found {'one' if reaches else 'none'}"
        )


def gradient_runs_through(leaf: Tensor, logits: Tensor, embeddings: list[Tensor]) -> bool:
    """True if the gradient of a sum of `logits` runs through this leaf of the state into the embeddings."""
    (grad,) = gradients(weighted_sum(logits), [leaf])
    if grad is None or not grad.any():
        return False
    table_grads = gradients(weighted_sum(leaf * grad.conj()), embeddings)
    return not embeddings or any(grad is not None and bool(grad.any()) for grad in table_grads)


def gradient_is_true(model: StatefulLM) -> None:
    """The backward pass through several segments is the derivative of their loss, along random directions in
    all weights and in what the state before them carries with gradient.

    What has no gradient by declaration is constant on both sides: leaves of the state that
    `learns_through_memory` leaves out, between segments (with False, each segment is read from a given
    state), and `stop_gradient`.  A discrete selection has no derivative; steps are so short that the compared
    losses select the same.  They are also so short that every part must compute in float64.
    """
    loss = SegmentLoss(model)
    for seed in (0, 1):
        derivatives = loss.derivatives(seed)
        assert derivatives.agree(), (
            f"derivative of the loss along random direction {seed}, in float64: expected"
            f" {derivatives.numerical:.9g} by finite difference, found {derivatives.backward:.9g} by the"
            " backward pass"
        )


class Derivatives(NamedTuple):
    """The derivative along one direction by both ways, and the length of the gradient."""

    backward: float
    numerical: float
    gradient_norm: float

    def agree(self) -> bool:
        return abs(self.backward - self.numerical) <= AGREEMENT * self.gradient_norm


class SegmentLoss:
    """The cross-entropy of three segments, of which the second is short, as a function of all weights and of
    the state before them.

    The first row is fresh, the others continue a text.  Only leaves of the state that `learns_through_memory`
    declares are variables; the others have, after every segment, constant values, and so has what
    `stop_gradient` stops.  The variables are moved a little from what the text wrote: where a selection is
    undecided between equal keys, any move of one of them decides it, and there is no derivative.
    """

    def __init__(self, model: StatefulLM) -> None:
        size = model.segment_len
        lengths = [size, max(1, size - 3), size]
        self.model = model
        self.pieces = random_text(model, segments=3)[:, : sum(lengths)].split(lengths, dim=1)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.constants: list[list[Tensor]] = []  # by segment: the leaves of the state after it
        with torch.no_grad():
            self.earlier, state = continued_states(model)  # the second with its first row fresh
            self.variables = [leaf for leaf, declared in self._declared(state) if declared]
            generator = torch.Generator().manual_seed(2)
            self.shifts = [
                SHIFT * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
                for leaf in self.variables
            ]
            state = self._start([torch.zeros_like(leaf) for leaf in self.variables])
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
        fresh = torch.tensor([True, False, False])
        remaining = (shift + offset for shift, offset in zip(self.shifts, offsets, strict=True))
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
