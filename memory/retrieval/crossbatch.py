"""The Focused Transformer's training: a text sees its own past among others', and learns which is its own.

Tworkowski et al. 2023, arXiv:2307.03170, section 3.2, appendix B.  In segment s of row i, with P_j the
keys of row j's segment s-1, and d contexts:

    y = softmax(q [K_i ; P_i ; P_{i+1} ; .. ; P_{i+d-1}]^T / sqrt(K)) [their values]      (rows mod B)

K_i is causal, all else is seen whole.  P_i is the positive, the others negatives; the gradient reaches all.
The released code takes the contexts from earlier rows of the same forward instead (`earlier_rows`).
Carried: nothing here; models/focused.py keeps the previous segments.
Differs from the paper: the caller normalises keys and queries and brings in the temperature, if it has one.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


def context_rows(rows: int, contexts: int, device: torch.device) -> Int[Tensor, "rows contexts"]:
    """Whose previous segment each row sees: its own, then those of the next d - 1 rows, around the end."""
    places = torch.arange(rows, device=device)
    return (places[:, None] + places[:contexts]) % rows


def earlier_rows(rows: int, reach: int, packing: int = 1, stepping: bool = False) -> Int[Tensor, "rows seen"]:
    """The released code's choice: row b sees the rows b, b-1, .. of one forward, `reach` earlier ones at most
    (-1 where there is none).  With `stepping` a document fills `packing` rows and each sees further back."""
    most, place = reach + 1, torch.arange(rows)
    count = torch.full_like(place, most)
    if stepping and packing > 1:
        count = (place % packing * math.ceil(most / (packing - 1)) + 1).clamp(max=most)
    back = torch.arange(most)
    return torch.where(back < torch.minimum(count, place + 1)[:, None], place[:, None] - back, -1)


def crossbatch(
    q: Float[Tensor, "rows heads time head_dim"],
    k: Float[Tensor, "rows heads time head_dim"],
    v: Float[Tensor, "rows heads time head_dim"],
    other_keys: Float[Tensor, "rows heads segment head_dim"],
    other_values: Float[Tensor, "rows heads segment head_dim"],
    filled: Int[Tensor, " rows"],
    seen: Int[Tensor, "rows contexts"],
    dropout: float = 0.0,
) -> Float[Tensor, "rows heads time head_dim"]:
    """One softmax over the row's own tokens, causally, and the first `filled` others of each row `seen` (-1:
    none).  Scores are q k / sqrt(K)."""
    rows, time = len(q), q.shape[2]
    keys, values = (
        torch.cat([own, rearrange(other[seen], "b d h s k -> b h (d s) k")], dim=2)
        for own, other in ((k, other_keys), (v, other_values))
    )
    causal = torch.ones(time, time, dtype=torch.bool, device=q.device).tril().expand(rows, 1, -1, -1)
    real = rearrange(_real(other_keys, filled, seen), "b d s -> b 1 1 (d s)").expand(-1, -1, time, -1)
    return F.scaled_dot_product_attention(q, keys, values, torch.cat([causal, real], dim=3), dropout)


def crossbatch_loop(
    q: Float[Tensor, "rows heads time head_dim"],
    k: Float[Tensor, "rows heads time head_dim"],
    v: Float[Tensor, "rows heads time head_dim"],
    other_keys: Float[Tensor, "rows heads segment head_dim"],
    other_values: Float[Tensor, "rows heads segment head_dim"],
    filled: Int[Tensor, " rows"],
    seen: Int[Tensor, "rows contexts"],
) -> Float[Tensor, "rows heads time head_dim"]:
    """What `crossbatch` means, query by query."""
    said = []
    for row, others in enumerate(seen.tolist()):
        for t in range(q.shape[2]):
            keys, values = [k[row, :, : t + 1]], [v[row, :, : t + 1]]
            for other in others:
                if other >= 0:
                    keys.append(other_keys[other, :, : filled[other]])
                    values.append(other_values[other, :, : filled[other]])
            scores = torch.cat(keys, dim=1) @ q[row, :, t, :, None] / math.sqrt(q.shape[3])
            said.append((scores.softmax(1) * torch.cat(values, dim=1)).sum(1))
    return rearrange(torch.stack(said), "(b t) h k -> b h t k", b=len(q))


def _real(
    others: Tensor, filled: Int[Tensor, " rows"], seen: Int[Tensor, "rows contexts"]
) -> Bool[Tensor, "rows contexts segment"]:
    places = torch.arange(others.shape[2], device=seen.device)
    return (places < filled[seen][..., None]) & (seen >= 0)[..., None]
