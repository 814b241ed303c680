"""The selective scan and state-space duality by slow loops.

Loops over rows, heads and positions, written from the equations; no code is shared with the zoo.
"""

import math

import torch
from torch import Tensor

from tests.golden.reference.hybrids import Config, Tensors, silu, softplus


def scan(c: Config, given: Tensors, h: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Section 2.1, a channel at a time: y (rows, channels, time), and the state after each token."""
    rows, channels, time = given["in.u"].shape
    groups = c["groups"] or 1
    write, read = (given[f"in.{n}"].view(rows, groups, -1, time) for n in "BC")
    said, after = [], []
    for t in range(time):
        ys, hs = [], []
        for b in range(rows):
            for e in range(channels):
                dt = given["in.delta"][b, e, t]
                dt = dt + given["in.delta_bias"][e] if "in.delta_bias" in given else dt
                dt = softplus(dt) if c["delta_softplus"] else dt
                group, u = e // (channels // groups), given["in.u"][b, e, t]
                hs.append((dt * given["in.A"][e]).exp() * h[b, e] + dt * u * write[b, group, :, t])
                y = (hs[-1] * read[b, group, :, t]).sum()
                y = y + given["in.D"][e] * u if c["use_D"] else y
                ys.append(y * silu(given["in.z"][b, e, t]) if c["use_z"] else y)
        h = torch.stack(hs).view_as(h)
        said.append(torch.stack(ys).view(rows, channels))
        after.append(h)
    return torch.stack(said, dim=2), after


def ssd(c: Config, given: Tensors, state: Tensor, bare: bool) -> tuple[Tensor, list[Tensor]]:
    """Section 3.1, a head at a time; `bare`: neither D nor z."""
    rows, time, heads, width = given["in.x"].shape
    groups, (least, most) = c["ngroups"], c["dt_limit"] or (-math.inf, math.inf)
    said, after = [], []
    for t in range(time):
        ys, new = [], []
        for b in range(rows):
            for h in range(heads):
                dt = given["in.dt"][b, t, h]
                dt = dt + given["in.dt_bias"][h] if "in.dt_bias" in given else dt
                dt = (softplus(dt) if c["dt_softplus"] else dt).clamp(least, most)
                group, x = h // (heads // groups), given["in.x"][b, t, h]
                fresh = dt * torch.outer(x, given["in.B"][b, t, group])
                new.append((dt * given["in.A"][h]).exp() * state[b, h] + fresh)
                y = new[-1] @ given["in.C"][b, t, group]
                y = y if bare or "in.D" not in given else y + given["in.D"][h] * x
                ys.append(y if bare or "in.z" not in given else y * silu(given["in.z"][b, t, h]))
        state = torch.stack(new).view_as(state)
        said.append(torch.stack(ys).view(rows, heads, width))
        after.append(state)
    return torch.stack(said, dim=1), after
