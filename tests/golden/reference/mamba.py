"""The selective scan and state-space duality by slow loops.

Loops over rows, heads and positions, written from the equations; no code is shared with the zoo.
"""

import math

import torch
from torch import Tensor

from tests.golden.reference.hybrid_layers import Config, Tensors, silu, softplus


def scan(c: Config, inputs: Tensors, h: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Section 2.1, a channel at a time: y (rows, channels, time), and the state after each token."""
    rows, channels, time = inputs["in.u"].shape
    groups = c["groups"] or 1
    write, read = (inputs[f"in.{n}"].view(rows, groups, -1, time) for n in "BC")
    outputs, after = [], []
    for t in range(time):
        ys, hs = [], []
        for b in range(rows):
            for e in range(channels):
                dt = inputs["in.delta"][b, e, t]
                dt = dt + inputs["in.delta_bias"][e] if "in.delta_bias" in inputs else dt
                dt = softplus(dt) if c["delta_softplus"] else dt
                group, u = e // (channels // groups), inputs["in.u"][b, e, t]
                hs.append((dt * inputs["in.A"][e]).exp() * h[b, e] + dt * u * write[b, group, :, t])
                y = (hs[-1] * read[b, group, :, t]).sum()
                y = y + inputs["in.D"][e] * u if c["use_D"] else y
                ys.append(y * silu(inputs["in.z"][b, e, t]) if c["use_z"] else y)
        h = torch.stack(hs).view_as(h)
        outputs.append(torch.stack(ys).view(rows, channels))
        after.append(h)
    return torch.stack(outputs, dim=2), after


def ssd(c: Config, inputs: Tensors, state: Tensor, bare: bool) -> tuple[Tensor, list[Tensor]]:
    """Section 3.1, a head at a time; `bare`: neither D nor z."""
    rows, time, heads, width = inputs["in.x"].shape
    groups, (least, most) = c["ngroups"], c["dt_limit"] or (-math.inf, math.inf)
    outputs, after = [], []
    for t in range(time):
        ys, new = [], []
        for b in range(rows):
            for h in range(heads):
                dt = inputs["in.dt"][b, t, h]
                dt = dt + inputs["in.dt_bias"][h] if "in.dt_bias" in inputs else dt
                dt = (softplus(dt) if c["dt_softplus"] else dt).clamp(least, most)
                group, x = h // (heads // groups), inputs["in.x"][b, t, h]
                fresh = dt * torch.outer(x, inputs["in.B"][b, t, group])
                new.append((dt * inputs["in.A"][h]).exp() * state[b, h] + fresh)
                y = new[-1] @ inputs["in.C"][b, t, group]
                y = y if bare or "in.D" not in inputs else y + inputs["in.D"][h] * x
                ys.append(y if bare or "in.z" not in inputs else y * silu(inputs["in.z"][b, t, h]))
        state = torch.stack(new).view_as(state)
        outputs.append(torch.stack(ys).view(rows, heads, width))
        after.append(state)
    return torch.stack(outputs, dim=1), after
