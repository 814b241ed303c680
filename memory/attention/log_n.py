"""log-n: queries scaled with the number of keys, so that the softmax stays as sharp on longer texts.

    q_i <- max(1, log(i + 1) / log L) q_i        L the trained context

Su 2021, spaces.ac.cn/archives/8823; Zhang et al. 2024, arXiv:2401.07004 (with another base: Entropy-ABF).
Differs from the papers: nothing; all layers are scaled, as in the code that was released.
"""

import math

import torch
from jaxtyping import Float, Real
from torch import Tensor


def log_n_scaled(
    q: Float[Tensor, "rows heads time head_dim"],
    positions: Real[Tensor, "*rows_or_none time"] | range,
    trained: int,
) -> Float[Tensor, "rows heads time head_dim"]:
    """Queries times max(1, log(i + 1) / log L)."""
    if isinstance(positions, range):
        positions = torch.arange(positions.start, positions.stop, device=q.device)
    dtype = torch.promote_types(q.dtype, torch.float32)
    factor = ((positions.to(dtype) + 1).log() / math.log(trained)).clamp(min=1)
    return (q * factor[..., None]).to(q.dtype)
