"""HGRN2's mixer: a gated linear recurrence whose keys are what its forget gates leave.

Qin et al. 2024, arXiv:2404.07904.  Per head, with lower bounds beta_l of the forget gates in layer l:

    f = beta_l + (1 - beta_l) sigmoid(W_f x)        q = silu(W_q x) / sqrt(K)        v = W_i x
    S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T       o_t = S_t^T q_t       y = W_o (w * o / rms(o))
    beta_l = sum_{j<=l} p_j - p_0, with p the softmax over the layers of one parameter (layers, K H)

The norm is over all heads together.  With `conv_size` > 0 W x is convolved, of q, f and v.

Carried: S, and the convolution's last inputs (q, f and v), where there is one.
Differs from the paper: the factor 1/sqrt(K), as in flash-linear-attention's layer.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.fast_weights.gla_mixer import GLAState
from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import Backend, Recurrence
from zoo.memory.mixer import Mixer, float32_zeros, no_autocast
from zoo.memory.state_space.conv import CausalConv

NORM_EPS = 1e-5


class LowerBounds(nn.Module):
    """Lower bounds of all layers' forget gates: 0 in the first, higher in later ones; shared by mixers."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(depth, channels))

    def forward(self, layer: int) -> Float[Tensor, " channels"]:
        shares = self.logits.softmax(0)
        return shares[1 : layer + 1].sum(0)


class HGRN2Mixer(Mixer):
    """`heads` of `head_dim` gates each; values share the width among the heads."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_dim: int,
        layer: int = 0,
        bounds: LowerBounds | None = None,
        conv_size: int = 0,
        conv_bias: bool = False,
        chunk_size: int = 32,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads, self.head_dim, self.value_dim = heads, head_dim, width // heads
        self.layer = layer
        self.recurrence = Recurrence(chunk_size, backend)
        self.bounds = bounds if layer else None
        self.parts = [heads * head_dim, heads * head_dim, width]  # q, f, i
        self.in_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.conv = CausalConv(sum(self.parts), conv_size, conv_bias) if conv_size else None
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.out_proj = nn.Linear(width, width, bias=False)

    def init_state(self, rows: int) -> GLAState:
        weight = self.out_proj.weight
        conv = weight.new_zeros(rows, 0, sum(self.parts)) if self.conv is None else self.conv.init_state(rows)
        return GLAState(conv, float32_zeros(weight, rows, self.heads, self.head_dim, self.value_dim))

    def forward(
        self, x: Float[Tensor, "rows time width"], state: GLAState
    ) -> tuple[Float[Tensor, "rows time width"], GLAState]:
        bound = None if self.bounds is None else self.bounds(self.layer)
        qfv, conv = self.in_proj(x), state.conv
        if self.conv is not None:
            qfv, conv = self.conv(qfv, conv)
        q, f, v = qfv.split(self.parts, dim=-1)
        with no_autocast(x):
            g = self.log_forget(f.to(state.matrix.dtype), bound)
            q, k, v, g = (
                rearrange(part.to(g.dtype), "r t (h k) -> r t h k", h=self.heads)
                for part in (F.silu(q) * self.head_dim**-0.5, -torch.expm1(g), v, g)
            )
        inputs = Inputs(q, k, v, g, state.matrix)
        o, matrix = self.recurrence(inputs)
        y = self.norm(rearrange(o.to(x.dtype), "r t h v -> r t (h v)"))
        return self.out_proj(y), GLAState(conv, matrix)

    def log_forget(
        self, f: Float[Tensor, "rows time channels"], bound: Float[Tensor, " channels"] | None
    ) -> Float[Tensor, "rows time channels"]:
        """log of beta + (1 - beta) sigmoid(f), of the lower bound beta or of none."""
        g = F.logsigmoid(f)
        if bound is None:
            return g
        bound = bound.to(f.dtype)
        return torch.logaddexp(bound.log(), torch.log1p(-bound) + g)
