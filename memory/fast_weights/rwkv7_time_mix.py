"""RWKV-7's time mix: a generalised delta rule whose removal key, strength and decay are all learned apart.

Peng et al. 2025, arXiv:2503.14456, section 4.1, as in BlinkDL/RWKV-LM.  With x the normed input,
d_t = x_{t-1} - x_t and x_c = x + mu_c d for c in r, w, k, v, a, g; f(x) = bias + act(x W_1) W_2 of low rank:

    r, k, v = W x_r, W x_k, W x_v        log decay g = -e^-0.5 sigmoid(f_w(x_w))        (tanh inside f_w)
    a = sigmoid(f_a(x_a))                v += (v_first - v) sigmoid(f_v(x_v)),  v_first: the first layer's v
    kappa = l2(k xi) per head            k <- k (1 + (a - 1) alpha)
    S_t = diag(exp g_t) S_{t-1} - (kappa_t * a_t) (S_{t-1}^T kappa_t)^T + k_t v_t^T        o_t = S_t^T r_t
    y = W_o [(LayerNorm(o) + (sum_c r k rho) v) * f_g(x_g)]        (sigmoid inside f_g, no bias)

Carried: the last normed input, and every head's S, keys first (RWKV-LM has values first).
Differs from the paper: initial matrices are those of all models here.
"""

import math
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
from zoo.memory.mixer import no_autocast

SLOWEST = math.exp(-0.5)  # no token decays by more than exp(-e^-0.5) = 0.545


class RWKV7TimeMix(nn.Module):
    """Layer `layer` of `depth`; all but the first mix their values with the first layer's, `v_first`."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("mix", "bonus")

    def __init__(
        self,
        width: int,
        *,
        head_dim: int,
        layer: int,
        depth: int,
        decay_rank: int,
        strength_rank: int,
        value_rank: int,
        gate_rank: int,
        chunk_size: int = 32,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"width {width} is not a multiple of head_dim {head_dim}")
        self.heads, self.head_dim = width // head_dim, head_dim
        self.recurrence = Recurrence(chunk_size, backend)
        self.mix = nn.Parameter(torch.empty(6, width))  # mu of r, w, k, v, a, g
        self.r, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.decay = LowRank(width, decay_rank, torch.tanh)
        self.strength = LowRank(width, strength_rank)
        self.value = LowRank(width, value_rank) if layer else None
        self.gate = LowRank(width, gate_rank, torch.sigmoid, bias=False)
        self.removal = nn.Parameter(torch.empty(width))  # xi, RWKV-LM's k_k
        self.replacement = nn.Parameter(torch.empty(width))  # alpha, k_a
        self.bonus = nn.Parameter(torch.empty(self.heads, head_dim))  # rho, r_k
        self.norm = HeadNorm(width)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.reset(layer, depth)

    @torch.no_grad()
    def reset(self, layer: int, depth: int) -> None:
        """As in RWKV-LM: channels from long to short memories, the more so the deeper the layer."""
        width, head_dim = self.mix.shape[1], self.head_dim
        share, rest = layer / max(1, depth - 1), 1 - layer / depth
        for mix, power in zip(self.mix, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            mix.copy_(1 - channel_positions(width) ** (power * rest))
        position = torch.arange(width) / max(1, width - 1)
        inside = (torch.arange(width) % head_dim) * (2 / max(1, head_dim - 1)) - 1
        zigzag = inside * inside.abs()
        self.removal.copy_(0.71 - 0.1 * (position - 0.5))
        self.replacement.fill_(1.02)
        self.bonus.fill_(-0.04)
        biases = {
            self.decay: -5.5 + 6 * position ** (1 + share**0.3) + 2.5 * zigzag,
            self.strength: -0.19 + 0.3 * zigzag + 0.4 * (position - 0.5),
            self.value: 0.73 - 0.4 * (position - 0.5),
            self.gate: None,
        }
        for part, bias in biases.items():
            if part is not None:
                nn.init.orthogonal_(part.up, gain=0.1)
            if part is not None and part.bias is not None and bias is not None:
                part.bias.copy_(bias)

    def init_state(self, rows: int) -> TimeMixState:
        return empty_time_mix_state(self.mix, rows, self.heads, self.head_dim)

    def forward(
        self,
        x: Float[Tensor, "rows time width"],
        state: TimeMixState,
        v_first: Float[Tensor, "rows time width"] | None = None,
    ) -> tuple[Float[Tensor, "rows time width"], TimeMixState, Float[Tensor, "rows time width"]]:
        """y, the state after it, and the first layer's values.  The first layer takes no `v_first`, every
        other layer needs it."""
        d, shift = token_shift(x, state.shift)
        x_r, x_w, x_k, x_v, x_a, x_g = (torch.addcmul(x, d, mix) for mix in self.mix)
        r, k, v = self.r(x_r), self.k(x_k), self.v(x_v)
        if self.value is None:
            v_first = v
        assert v_first is not None
        if self.value is not None:
            v = torch.lerp(v, v_first, self.value(x_v).sigmoid().to(v.dtype))
        inputs = self.recurrence_inputs(r, k, v, self.decay(x_w), self.strength(x_a), state.matrix)
        o, matrix = self.recurrence(inputs)
        with no_autocast(x):
            seen = (inputs.q * inputs.k * self.bonus.to(matrix.dtype)).sum(-1, keepdim=True) * inputs.v
            y = self.norm(o) + rearrange(seen, "r t h k -> r t (h k)").to(self.norm.weight.dtype)
        y = self.out_proj(y.to(x.dtype) * self.gate(x_g))
        return y, TimeMixState(shift, matrix), v_first

    def recurrence_inputs(
        self,
        r: Float[Tensor, "rows time width"],
        k: Float[Tensor, "rows time width"],
        v: Float[Tensor, "rows time width"],
        decay: Float[Tensor, "rows time width"],
        strength: Float[Tensor, "rows time width"],
        matrix: Float[Tensor, "rows heads head_dim head_dim"],
    ) -> Inputs:
        """The recurrence's arguments in the state's dtype, from the projections and f_w, f_a."""
        with no_autocast(r):
            dtype = matrix.dtype
            a = strength.to(dtype).sigmoid()
            g = -SLOWEST * decay.to(dtype).sigmoid()
            k = k.to(dtype)
            kappa = k * self.removal.to(dtype)
            k = k * (1 + (a - 1) * self.replacement.to(dtype))
            r, k, v, g, a, kappa = (
                rearrange(part, "r t (h k) -> r t h k", h=self.heads)
                for part in (r.to(dtype), k, v.to(dtype), g, a, kappa)
            )
            kappa = F.normalize(kappa, dim=-1, eps=1e-12)
            return Inputs(r, k, v, g, matrix, a=-kappa, b=kappa * a)
