"""The keys of a sliding window as chunks of queries read them: each with the keys before it."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_chunks_before(
    x: Float[Tensor, "rows heads keys head_dim"], chunk: int, cache: int
) -> Float[Tensor, "rows_and_chunks heads cache_and_chunk head_dim"]:
    """Each chunk after the first `cache` keys, and the `cache` keys before it; both are multiples of `chunk`.

    The same as `unfold`, whose backward pass is slow.
    """
    if x.shape[2] == cache + chunk:
        return x
    if torch.compiler.is_compiling():
        return _shifted_blocks(x, chunk, cache)
    repeated: Tensor = _ChunksWithBefore.apply(x, chunk, cache)
    return repeated


def _shifted_blocks(x: Tensor, chunk: int, cache: int) -> Tensor:
    blocks = x.unflatten(2, (-1, chunk))
    chunks = blocks.shape[2] - cache // chunk
    shifted = [blocks[:, :, start : start + chunks] for start in range(cache // chunk + 1)]
    return rearrange(torch.cat(shifted, dim=3), "b h n m k -> (b n) h m k")


class _ChunksWithBefore(torch.autograd.Function):
    """`_shifted_blocks`, whose gradient is added up in one tensor instead of one per shift."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chunk: int, cache: int) -> Tensor:  # type: ignore[override]
        ctx.shape, ctx.chunk, ctx.cache = x.shape, chunk, cache
        return _shifted_blocks(x, chunk, cache)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        dx = grad.new_zeros(ctx.shape)
        blocks = dx.unflatten(2, (-1, ctx.chunk))
        shifts = rearrange(grad, "(b n) h (s m) k -> s b h n m k", b=len(dx), m=ctx.chunk)
        for start, part in enumerate(shifts.unbind(0)):
            blocks[:, :, start : start + part.shape[2]].add_(part)
        return dx, None, None
