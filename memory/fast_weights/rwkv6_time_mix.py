"""RWKV-6's time mix: a decay per channel, a bonus for the token itself, shifts that depend on the token.

Peng et al. 2024, arXiv:2404.05892, section 4, as in BlinkDL/RWKV-LM (x060).  With x the normed input and
d_t = x_{t-1} - x_t:

    m_w, m_k, m_v, m_r, m_g = W_2 tanh(W_1 (x + mu_x d))        x_c = x + (mu_c + m_c) d
    r, k, v = W x_r, W x_k, W x_v        g = silu(W_g x_g)        log decay = -exp(w + tanh(x_w D_1) D_2)
    o_t = (S_{t-1} + (u * k_t) v_t^T)^T r_t        S_t = diag(exp(log decay)) S_{t-1} + k_t v_t^T
    y = W_o [LayerNorm(o) * g],  the norm over each head

Carried: the last normed input, and every head's S.
Differs from the paper: initial matrices are those of all models here.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import Backend, Recurrence
from zoo.memory.fast_weights.rwkv_parts import (
    HeadNorm,
    LowRank,
    TimeMixState,
    channel_positions,
    empty_time_mix_state,
    token_shift,
)
from zoo.memory.mixer import Mixer, no_autocast


class RWKV6TimeMix(Mixer):
    """Layer `layer` of `depth`, which decides how it starts."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("mix", "mix_down", "mix_up", "bonus")

    def __init__(
        self,
        width: int,
        *,
        head_dim: int,
        layer: int,
        depth: int,
        mix_rank: int = 32,
        decay_rank: int = 64,
        chunk_size: int = 32,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"width {width} is not a multiple of head_dim {head_dim}")
        if mix_rank < 1:
            raise ValueError(f"ranks must be at least 1, not {mix_rank}")
        self.heads, self.head_dim = width // head_dim, head_dim
        self.recurrence = Recurrence(chunk_size, backend)
        self.mix = nn.Parameter(torch.empty(6, width))  # mu of x, w, k, v, r, g
        self.mix_down = nn.Parameter(torch.zeros(width, 5 * mix_rank))
        self.mix_up = nn.Parameter(torch.empty(5, mix_rank, width))
        self.r, self.k, self.v, self.gate = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.decay = LowRank(width, decay_rank, torch.tanh)
        self.bonus = nn.Parameter(torch.empty(self.heads, head_dim))  # u
        self.norm = HeadNorm(width)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.reset(layer, depth)

    @torch.no_grad()
    def reset(self, layer: int, depth: int) -> None:
        """As in RWKV-LM: channels from long to short memories, the more so the deeper the layer."""
        width, n = self.mix.shape[1], torch.arange(self.mix.shape[1])
        share, rest = layer / max(1, depth - 1), 1 - layer / depth
        for mix, power in zip(self.mix, (1.0, 1.0, 1.0, 1.0, 0.5, 0.5), strict=True):
            mix.copy_(1 - channel_positions(width) ** (power * rest))
        self.mix[3] -= 0.3 * share
        nn.init.uniform_(self.mix_up, -0.01, 0.01)
        nn.init.uniform_(self.decay.up, -0.01, 0.01)
        position = n / max(1, width - 1)
        assert self.decay.bias is not None
        self.decay.bias.copy_(-6 + 5 * position ** (0.7 + 1.3 * share))
        bonus = share * (1 - position) + 0.1 * ((n + 1) % 3 - 1)
        self.bonus.copy_(bonus.view_as(self.bonus))

    def init_state(self, rows: int) -> TimeMixState:
        return empty_time_mix_state(self.mix, rows, self.heads, self.head_dim)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: TimeMixState
    ) -> tuple[Float[Tensor, "rows time width"], TimeMixState]:
        d, shift = token_shift(x, state.shift)
        h = torch.tanh(torch.addcmul(x, d, self.mix[0]) @ self.mix_down).unflatten(-1, (5, -1))
        m = torch.einsum("rtci,cid->crtd", h, self.mix_up) + self.mix[1:, None, None]
        x_w, x_k, x_v, x_r, x_g = torch.addcmul(x, d, m).unbind(0)
        r, k, v, w = self.r(x_r), self.k(x_k), self.v(x_v), self.decay(x_w)
        with no_autocast(x):
            r, k, v, w = (
                rearrange(part.to(state.matrix.dtype), "r t (h k) -> r t h k", h=self.heads)
                for part in (r, k, v, w)
            )
            inputs = Inputs(r, k, v, -w.exp(), state.matrix, bonus=self.bonus)
        o, matrix = self.recurrence(inputs)
        y = self.out_proj(self.norm(o).to(x.dtype) * F.silu(self.gate(x_g)))
        return y, TimeMixState(shift, matrix)
