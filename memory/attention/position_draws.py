"""Positions drawn in training, so that a model meets those of longer texts in short ones.

A draw is a function of the training step alone: all layers, and a resumed run, draw the same.

    random   T distinct positions below `longest`, sorted, the same for all rows
                                     randomised positions: Ruoss et al. 2023, arXiv:2305.16843
    pose     0 .. l-1, l+u .. T-1+u, drawn for each row: l ~ U{1 .. (T+1)//2}, u ~ U{0 .. longest - T}
                                     positional skip-wise training: Zhu et al. 2024, arXiv:2309.10400
    scale    (p + t) / g for all rows: g ~ U{1 .. longest / T}, t ~ U{0 .. (g-1) T}
                                     E2-LLM: Liu et al. 2024, arXiv:2401.06951
    clex     with time t of t T positions, the first and the last, and between them distinct sorted draws
                                     CLEX: Chen et al. 2024, arXiv:2310.16450

Differs from the papers: random is read with plain positions after training.  PoSE's two chunks are one
contiguous text (its v = 0).  E2-LLM has no published code, and its first tokens are offset as all others.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int, Real
from torch import Tensor


class Draw(NamedTuple):
    kind: Literal["random", "pose", "scale"]
    longest: int
    """The length of the texts that are to be read."""


@torch.compiler.disable
def draw_positions(
    draw: Draw, step: int, rows: int, time: int, device: torch.device
) -> Real[Tensor, "rows_or_1 1 time"]:
    """The positions of `rows` segments of `time` tokens in training step `step`.

    Raises ValueError for more tokens than positions.
    """
    if time > draw.longest:
        raise ValueError(
            f"position.longest: expected at least the {time} tokens of a segment, found {draw.longest}"
        )
    return _draw(draw, step, rows, time).to(device, non_blocking=True)


@lru_cache(maxsize=4)
def _draw(draw: Draw, step: int, rows: int, time: int) -> Tensor:
    rng = torch.Generator().manual_seed(step)
    if draw.kind == "random":
        return torch.randperm(draw.longest, generator=rng)[:time].sort().values[None, None]
    if draw.kind == "scale":
        g = int(torch.randint(1, max(1, draw.longest // time) + 1, (), generator=rng))
        offset = int(torch.randint((g - 1) * time + 1, (), generator=rng))
        return ((torch.arange(time) + offset) / g)[None, None]
    first = torch.randint(1, (time + 1) // 2 + 1, (rows, 1), generator=rng)
    skip = torch.randint(draw.longest - time + 1, (rows, 1), generator=rng)
    return two_chunks(time, first, skip)[:, None]


def two_chunks(
    time: int, first: Int[Tensor, "rows 1"], skip: Int[Tensor, "rows 1"]
) -> Int[Tensor, "rows time"]:
    """PoSE's positions: 0 .. first - 1, and then those from first + skip on."""
    positions = torch.arange(time)
    return torch.where(positions < first, positions, positions + skip)


@torch.compiler.disable
def clex_time(step: int, longest: int) -> int:
    """CLEX's t in training step `step`, from 1 to `longest`."""
    return int(torch.randint(1, longest + 1, (), generator=torch.Generator().manual_seed(step)))


@torch.compiler.disable
def clex_positions(
    step: int, t: int, trained: int, time: int, device: torch.device
) -> Real[Tensor, "1 1 time"]:
    """The positions of a text of `time` tokens that stands for one of t times its length."""
    return _clex_positions(step, t, trained, time).to(device, non_blocking=True)


@lru_cache(maxsize=4)
def _clex_positions(step: int, t: int, trained: int, time: int) -> Tensor:
    if t == 1 or time < 3:
        return torch.arange(time)[None, None]
    rng, repeats = torch.Generator().manual_seed(step), max(1, time // trained)
    inner = torch.randperm(time * t - 2, generator=rng)[: time - 2].sort().values + 1
    last = time * t // repeats - 1
    return torch.cat([torch.zeros(1), inner / repeats, torch.tensor([float(last)])])[None, None]
