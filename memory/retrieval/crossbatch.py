"""The Focused Transformer's training: attention to a text's past among other texts', to learn to find it.

Tworkowski et al. 2023, arXiv:2307.03170, section 3.2, appendix B.  In segment s of row i, with P_j the
keys of row j's segment s-1, and d contexts:

    y = softmax(q [K_i ; P_i ; P_{i+1} ; .. ; P_{i+d-1}]^T / sqrt(K)) [their values]      (rows mod B)

K_i is causal, the contexts are not masked.  P_i is the positive, the others are negatives; the gradient
reaches all.  The released code takes earlier rows of the same forward as contexts instead (`earlier_rows`).
Carried: nothing here; memory/retrieval/focused_attention.py carries the previous segments.
Differs from the paper: the caller normalises keys and queries and applies the temperature, if it has one.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Segments(NamedTuple):
    """One segment of each row."""

    queries: Float[Tensor, "rows heads time head_dim"]
    keys: Float[Tensor, "rows heads time head_dim"]  # with positions, if there are any
    values: Float[Tensor, "rows heads time head_dim"]


class Contexts(NamedTuple):
    """One context of each row, its previous segment, say; the first `length` tokens are valid."""

    keys: Float[Tensor, "rows heads segment head_dim"]  # without positions
    values: Float[Tensor, "rows heads segment head_dim"]
    length: Int[Tensor, " rows"]


def context_rows(rows: int, contexts: int, device: torch.device) -> Int[Tensor, "rows contexts"]:
    """The rows whose contexts each row attends to: itself and the next d - 1, modulo the batch size."""
    index = torch.arange(rows, device=device)
    return (index[:, None] + index[:contexts]) % rows


def earlier_rows(rows: int, reach: int, packing: int = 1, stepping: bool = False) -> Int[Tensor, "rows d"]:
    """The released code's choice: row b attends to rows b, b-1, .. of one forward, at most `reach` earlier
    ones (-1 for none).  With `stepping` a document fills `packing` rows, and later rows reach further."""
    index, max_rows = torch.arange(rows), reach + 1
    count = torch.full_like(index, max_rows)
    if stepping and packing > 1:
        count = (index % packing * math.ceil(max_rows / (packing - 1)) + 1).clamp(max=max_rows)
    back = torch.arange(max_rows)
    return torch.where(back < torch.minimum(count, index + 1)[:, None], index[:, None] - back, -1)


def crossbatch(
    segments: Segments, contexts: Contexts, seen_rows: Int[Tensor, "rows d"], dropout: float = 0.0
) -> Float[Tensor, "rows heads time head_dim"]:
    """One softmax over each row's segment, causally, and the contexts of its `seen_rows` (-1: none).  Scores
    are q k / sqrt(K)."""
    queries, time = segments.queries, segments.queries.shape[2]
    keys, values = (
        torch.cat([local, rearrange(context[seen_rows], "b d h s k -> b h (d s) k")], dim=2)
        for local, context in ((segments.keys, contexts.keys), (segments.values, contexts.values))
    )
    causal = torch.ones(time, time, dtype=torch.bool, device=queries.device).tril()
    causal = causal.expand(len(queries), 1, -1, -1)
    valid = rearrange(_valid(contexts, seen_rows), "b d s -> b 1 1 (d s)").expand(-1, -1, time, -1)
    return F.scaled_dot_product_attention(queries, keys, values, torch.cat([causal, valid], dim=3), dropout)


def crossbatch_loop(
    segments: Segments, contexts: Contexts, seen_rows: Int[Tensor, "rows d"]
) -> Float[Tensor, "rows heads time head_dim"]:
    """The definition of `crossbatch`, query by query."""
    queries, outputs = segments.queries, []
    for row, context_indices in enumerate(seen_rows.tolist()):
        for t in range(queries.shape[2]):
            keys, values = [segments.keys[row, :, : t + 1]], [segments.values[row, :, : t + 1]]
            for context in context_indices:
                if context >= 0:
                    keys.append(contexts.keys[context, :, : contexts.length[context]])
                    values.append(contexts.values[context, :, : contexts.length[context]])
            scores = torch.cat(keys, dim=1) @ queries[row, :, t, :, None] / math.sqrt(queries.shape[3])
            outputs.append((scores.softmax(1) * torch.cat(values, dim=1)).sum(1))
    return rearrange(torch.stack(outputs), "(b t) h k -> b h t k", b=len(queries))


def _valid(contexts: Contexts, seen_rows: Int[Tensor, "rows d"]) -> Bool[Tensor, "rows d segment"]:
    positions = torch.arange(contexts.keys.shape[2], device=seen_rows.device)
    return (positions < contexts.length[seen_rows][..., None]) & (seen_rows >= 0)[..., None]
