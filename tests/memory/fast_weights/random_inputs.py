"""Random arguments of the linear recurrence, for every rule and kind of decay, and what is compared of it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.memory.fast_weights.inputs import Inputs

Form = Callable[[Inputs], tuple[Tensor, Tensor]]
DECAYS, RULES = ("none", "head", "channel"), ("additive", "bonus", "delta", "general")
ROWS, HEADS = 2, 3


def random_inputs(
    decay: str,
    rule: str,
    time: int,
    head_dim: int = 5,
    value_dim: int = 4,
    seed: int = 0,
    rows: int = ROWS,
    heads: int = HEADS,
) -> Inputs:
    """Arguments as models make them: keys of length 1 where they erase, delta strengths in (0, 2)."""
    rng = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> Tensor:
        return torch.randn(rows, time, heads, channels, generator=rng, dtype=torch.float64)

    q, k, v, state = draw(head_dim), draw(head_dim), draw(value_dim), draw(head_dim * value_dim)[:, 0]
    g = None if decay == "none" else -draw(1 if decay == "head" else head_dim).exp()
    a = b = bonus = strength = None
    if rule == "delta":
        k = F.normalize(draw(head_dim), dim=-1)
        strength = 2 * draw(1).sigmoid()
    elif rule == "general":
        a = -F.normalize(draw(head_dim), dim=-1)
        b = -a * draw(head_dim).sigmoid()
    elif rule == "bonus":
        bonus = draw(head_dim)[0, 0]
    return Inputs(q, k, v, g, state.unflatten(-1, (head_dim, value_dim)), a, b, bonus, strength)


def run(form: Form, inputs: Inputs, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Output, last state, and the gradients through both."""
    inputs = Inputs(*(x if x is None else x.detach().to(dtype).requires_grad_() for x in inputs))
    results, rng = form(inputs), torch.Generator().manual_seed(9)
    total = sum(
        (x * torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x.device, dtype)).sum()
        for x in results
    )
    return [*results, *torch.autograd.grad(total, [x for x in inputs if x is not None])]
