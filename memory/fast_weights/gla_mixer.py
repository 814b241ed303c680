"""Gated linear attention: an additive memory with a decay per channel of the keys.

Yang et al. 2023, arXiv:2312.06635, section 4.  Per head:

    q, k, v = W x, with `conv_size` > 0 silu(conv(W x))        q = q / sqrt(K)
    g = log(sigmoid(W_2 W_1 x + b)) / 16, with `clamp_min` at least that
    S_t = diag(exp g_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t        y = W_o (RMSNorm(o) * silu(W_g x))

Carried: every head's S, and the convolution's last K-1 inputs (q, k and v), where there is one.
Differs from the paper: nothing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import Backend, Recurrence
from zoo.memory.mixer import Mixer, float32_zeros, no_autocast
from zoo.memory.state_space.conv import CausalConv


class GLAState(NamedTuple):
    conv: Float[Tensor, "rows earlier channels"]  # the convolution's last K-1 inputs: q, k and v
    matrix: Float[Tensor, "rows heads head_dim value_dim"]  # S, in float32 at least


class GLAMixer(Mixer):
    """`heads` of queries, and `kv_heads` (by default as many) of keys, values and decays, each of which
    serves consecutive heads; keys of `head_dim`, values of `value_dim`."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_dim: int,
        value_dim: int,
        kv_heads: int | None = None,
        gate: bool = True,
        gate_rank: int = 16,
        decay_temperature: float = 16.0,
        clamp_min: float | None = None,
        conv_size: int = 0,
        conv_bias: bool = False,
        norm_eps: float = 1e-5,
        chunk_size: int = 32,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if heads % kv_heads:
            raise ValueError(f"heads {heads} is not a multiple of kv_heads {kv_heads}")
        if decay_temperature <= 0:
            raise ValueError(f"decay_temperature must be above 0, not {decay_temperature}")
        if clamp_min is not None and clamp_min > 0:
            raise ValueError(f"clamp_min must be at most 0, not {clamp_min}")
        self.heads, self.kv_heads, self.head_dim, self.value_dim = heads, kv_heads, head_dim, value_dim
        self.decay_temperature, self.clamp_min = decay_temperature, clamp_min
        self.norm_eps = norm_eps
        self.recurrence = Recurrence(chunk_size, backend)
        inner = heads * value_dim
        self.qkv = [heads * head_dim, kv_heads * head_dim, kv_heads * value_dim]
        self.parts = {"qkv": sum(self.qkv), "decay": gate_rank} | ({"gate": inner} if gate else {})
        self.in_proj = nn.Linear(width, sum(self.parts.values()), bias=False)
        self.conv = CausalConv(sum(self.qkv), conv_size, conv_bias) if conv_size else None
        self.decay_proj = nn.Linear(gate_rank, kv_heads * head_dim)
        self.norm_weight = nn.Parameter(torch.ones(value_dim))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def init_state(self, rows: int) -> GLAState:
        weight = self.norm_weight
        conv = weight.new_zeros(rows, 0, sum(self.qkv)) if self.conv is None else self.conv.init_state(rows)
        return GLAState(conv, float32_zeros(weight, rows, self.heads, self.head_dim, self.value_dim))

    def forward(
        self, x: Float[Tensor, "rows time width"], state: GLAState
    ) -> tuple[Float[Tensor, "rows time width"], GLAState]:
        projected = self.in_proj(x).split(list(self.parts.values()), dim=-1)
        parts = dict(zip(self.parts, projected, strict=True))
        qkv, conv = parts["qkv"], state.conv
        if self.conv is not None:
            qkv, conv = self.conv(qkv, conv)
            qkv = F.silu(qkv)
        inputs = self.recurrence_inputs(qkv, self.decay_proj(parts["decay"]), state.matrix)
        o, matrix = self.recurrence(inputs)
        o = F.rms_norm(o.to(x.dtype), o.shape[-1:], self.norm_weight, self.norm_eps)
        y = rearrange(o, "r t h v -> r t (h v)")
        if "gate" in parts:
            y = y * F.silu(parts["gate"])
        return self.out_proj(y), GLAState(conv, matrix)

    def recurrence_inputs(
        self,
        qkv: Float[Tensor, "rows time channels"],
        decay: Float[Tensor, "rows time decays"],
        matrix: Float[Tensor, "rows heads head_dim value_dim"],
    ) -> Inputs:
        """The recurrence's arguments in the state's dtype."""
        with no_autocast(qkv):
            q, k, v = qkv.to(matrix.dtype).split(self.qkv, dim=-1)
            q = rearrange(q, "r t (h k) -> r t h k", h=self.heads) * self.head_dim**-0.5
            g = F.logsigmoid(decay.to(matrix.dtype)) / self.decay_temperature
            g = g if self.clamp_min is None else g.clamp(min=self.clamp_min)
            shared = self.heads // self.kv_heads
            k, v, g = (
                repeat(part, "r t (h k) -> r t (h shared) k", h=self.kv_heads, shared=shared)
                for part in (k, v, g)
            )
            return Inputs(q, k, v, g, matrix)
