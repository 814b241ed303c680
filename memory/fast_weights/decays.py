"""Products of the decays between all pairs of a chunk's tokens, by halving: multiplied, never divided.

With x_i a vector that reads at token i, y_j one that writes at token j, and log decays g_l <= 0 per channel,

    A_ij = sum_c x_i[c] y_j[c] exp(sum_{l=j+1..i-1} g_l[c])        (j < i, otherwise 0)

Blocks of one token are joined in pairs, lower l and upper u, until one block is left:

    A_ul = x_u y_l^T        x_u <- exp(g_l) x_u        y_l <- exp(g_u) y_l        g <- g_l + g_u

At the end x has decayed from the chunk's start, y to its end, and g is the whole chunk's log decay.  No
factor is above 1, none is a quotient, and no sum of logarithms is subtracted from another: nothing overflows,
nothing cancels, and g = -inf is a decay of 0.  With one decay per head, A = (x y^T) * L, where L is the A of
x = y = 1.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Vectors = dict[str, Tensor]
"""Vectors by a letter, each (chunks, tokens, channels)."""


class Decayed(NamedTuple):
    """The results of `decayed_products`."""

    products: dict[str, Tensor]  # A of each read and write, "qk": (chunks, tokens, tokens)
    reads: Vectors  # x, decayed from the chunk's start
    writes: Vectors  # y, decayed to the chunk's end
    chunk_decay: Float[Tensor, "chunks decays"] | None  # exp g of the chunk


def decayed_products(
    g: Float[Tensor, "chunks tokens decays"] | None, reads: Vectors, writes: Vectors, *, after: bool
) -> Decayed:
    """A, x, y and the chunk's decay for chunks of 2^n tokens, with gradients through all of them.

    g has as many channels as the vectors, or one, or is None: no decay.  With `after`, the first of `reads`
    reads after its token has decayed and written: the token's decay then belongs to its products, and these
    have a diagonal x_i y_i.
    """
    if g is None or g.shape[-1] == 1:
        return _per_head(g, reads, writes, after)
    m, n = len(reads), len(writes)
    results = _Halving.apply(g, after, m, *reads.values(), *writes.values())
    names = [read + write for read in reads for write in writes]
    return Decayed(
        dict(zip(names, results[: m * n], strict=True)),
        dict(zip(reads, results[m * n : -n - 1], strict=True)),
        dict(zip(writes, results[-n - 1 : -1], strict=True)),
        results[-1],
    )


def _per_head(g: Tensor | None, reads: Vectors, writes: Vectors, after: bool) -> Decayed:
    """`decayed_products` of one decay for all channels, or of none."""
    names = list(reads)
    first = names[0]
    if g is None:
        tokens = reads[first].shape[1]
        L = reads[first].new_ones(tokens, tokens).tril(-1)
        masks = dict.fromkeys(reads, L) | ({first: L.T.logical_not().to(L)} if after else {})
        products = {x + y: (reads[x] @ writes[y].mT) * masks[x] for x in reads for y in writes}
        return Decayed(products, reads, writes, None)
    ones, also_ones = torch.ones_like(g), torch.ones_like(g)  # torch.compile takes no tensor twice
    L, from_start, to_end, chunk_decay = _Halving.apply(g, False, 1, ones, also_ones)
    masks, starts = dict.fromkeys(reads, L), dict.fromkeys(reads, from_start)
    if after:
        masks[first] = g.exp() * L + torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
        starts[first] = g.exp() * from_start
    return Decayed(
        {x + y: (reads[x] @ writes[y].mT) * masks[x] for x in reads for y in writes},
        {x: starts[x] * reads[x] for x in reads},
        {y: to_end * writes[y] for y in writes},
        chunk_decay,
    )


class _Halving(torch.autograd.Function):
    """Kinds of vectors lie side by side, (chunks, tokens, kinds, channels), so that one matrix product per
    pair of blocks serves all of them."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, *arguments: Any
    ) -> tuple[Tensor, ...]:
        # torch.compile drops ctx where a variadic signature has one name less than there are arguments
        g, after, m, *vectors = arguments
        g = g.contiguous()
        chunks, tokens, _ = g.shape
        x, y = torch.stack(vectors[:m], dim=2), torch.stack(vectors[m:], dim=2)
        products = g.new_zeros(m, y.shape[2], chunks, tokens, tokens)
        decay, levels = g.exp(), []
        if after:
            diagonals = (x[:, :, :1] * y).sum(-1)
            products[0].diagonal(dim1=-2, dim2=-1).copy_(diagonals.permute(2, 0, 1))
            x[:, :, 0] *= decay
        for pairs in _pairs(tokens):
            d_lower, d_upper = _halves(decay[:, :, None], pairs)
            (_, x_upper), (y_lower, _) = _halves(x, pairs), _halves(y, pairs)
            x_saved, y_saved = x_upper.clone(), y_lower.clone()
            _set_blocks(products, pairs, x_saved @ y_saved.mT)
            x_upper *= d_lower
            y_lower *= d_upper
            levels += [decay, x_saved, y_saved]
            g = g.unflatten(1, (pairs, 2)).sum(2)
            decay = g.exp()
        ctx.save_for_backward(*((vectors[0], *vectors[m:]) if after else ()), *levels, decay)
        ctx.after, ctx.m, ctx.n = after, m, len(vectors) - m
        decayed = [part.contiguous() for z in (x, y) for part in z.unbind(2)]
        return (*products.flatten(0, 1).unbind(0), *decayed, decay[:, 0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        m, n, saved = ctx.m, ctx.n, list(ctx.saved_tensors)
        dproducts = torch.stack(grads[: m * n]).unflatten(0, (m, n))
        dx, dy = torch.stack(grads[m * n : -n - 1], dim=2), torch.stack(grads[-n - 1 : -1], dim=2)
        decay = saved.pop()
        dg = grads[-1][:, None] * decay
        chunks, tokens = dx.shape[:2]
        for pairs in reversed(_pairs(tokens)):
            y_saved, x_saved, decay = saved.pop(), saved.pop(), saved.pop()
            d_lower, d_upper = _halves(decay[:, :, None], pairs)
            (_, dx_upper), (dy_lower, _) = _halves(dx, pairs), _halves(dy, pairs)
            dg = dg.view(chunks * pairs, 1, -1)
            dx_upper *= d_lower
            dy_lower *= d_upper
            dg_lower = dg + (dx_upper * x_saved).sum(1, keepdim=True)
            dg_upper = dg + (dy_lower * y_saved).sum(1, keepdim=True)
            dg = torch.cat([dg_lower, dg_upper], dim=1).view(chunks, 2 * pairs, -1)
            dblocks = _blocks(dproducts, pairs)
            dx_upper += dblocks @ y_saved
            dy_lower += dblocks.mT @ x_saved
        if ctx.after:
            q, *writes = saved
            dx[:, :, 0] *= decay
            dg.addcmul_(dx[:, :, 0], q)
            for j, write in enumerate(writes):
                ddiagonal = dproducts[0, j].diagonal(dim1=-2, dim2=-1)[..., None]
                dx[:, :, 0].addcmul_(ddiagonal, write)
                dy[:, :, j].addcmul_(ddiagonal, q)
        return (dg, None, None, *dx.unbind(2), *dy.unbind(2))


def _pairs(tokens: int) -> list[int]:
    """The number of pairs of blocks at each level: tokens / 2, tokens / 4, .., 1."""
    return [tokens >> level for level in range(1, tokens.bit_length())]


def _halves(vectors: Float[Tensor, "chunks tokens kinds channels"], pairs: int) -> tuple[Tensor, ...]:
    """Views of all lower and all upper blocks, (chunks * pairs, block * kinds, channels)."""
    return vectors.view(len(vectors) * pairs, 2, -1, vectors.shape[-1]).unbind(1)


def _lower_left(products: Float[Tensor, "m n chunks tokens tokens"], pairs: int) -> Tensor:
    """A view of the products of upper reads with lower writes, (m, n, chunks, block, block, pairs)."""
    m, n, chunks = products.shape[:3]
    by_block = products.view(m, n, chunks, pairs, 2, -1, pairs, 2, products.shape[-1] // (2 * pairs))
    return by_block[:, :, :, :, 1, :, :, 0].diagonal(dim1=3, dim2=5)


def _set_blocks(products: Tensor, pairs: int, blocks: Tensor) -> None:
    m, n, chunks = products.shape[:3]
    by_kind = blocks.view(chunks, pairs, -1, m, blocks.shape[-1] // n, n)
    _lower_left(products, pairs).copy_(by_kind.permute(3, 5, 0, 2, 4, 1))


def _blocks(products: Tensor, pairs: int) -> Tensor:
    """A copy of what `_set_blocks` has set, (chunks * pairs, block * m, block * n)."""
    m, n, chunks = products.shape[:3]
    block = products.shape[-1] // (2 * pairs)
    by_token = _lower_left(products, pairs).permute(2, 5, 3, 0, 4, 1)
    return by_token.reshape(chunks * pairs, block * m, block * n)
