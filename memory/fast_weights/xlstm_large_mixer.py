"""The mLSTM's layer of the 7B model: the cell on plain projections, with capped gates and an output gate.

Beck et al. 2025, arXiv:2503.13427, section 3, as xLSTMLarge in NX-AI/xlstm:

    q, k, v, o = W x        i, f = cap(W_if x + b), one each per head,  cap(x) = c tanh(x / c)
    y = W_out [sigmoid(o) * LayerNorm(mlstm(q, k, v, i, f))],  the norm over each head

Carried: the cell's C, n and m.
Differs from the paper: initial matrices are those of all models here, but for the gates'.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.fast_weights.mlstm_cell import EPS, MLSTMInputs, MLSTMState, empty_state, mlstm
from zoo.memory.fast_weights.mlstm_mixer import initial_gate_bias
from zoo.memory.mixer import Mixer, no_autocast


class XLSTMLargeMixer(Mixer):
    """`key_width` and `value_width` are those of all heads together; `gate_cap` None caps nothing.

    `input_gate_bias` is where the input gates start."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int,
        value_width: int,
        gate_cap: float | None = 15.0,
        input_gate_bias: float = -10.0,
        norm_eps: float = 1e-6,
        eps: float = EPS,
        chunk_size: int = 32,
    ) -> None:
        super().__init__()
        for name, size in (("key_width", key_width), ("value_width", value_width)):
            if size % heads:
                raise ValueError(f"{name} {size} is not a multiple of heads {heads}")
        self.heads, self.parts = heads, [key_width, key_width, value_width, value_width]
        self.gate_cap, self.norm_eps, self.eps, self.chunk_size = gate_cap, norm_eps, eps, chunk_size
        self.in_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.gate_weight = nn.Parameter(torch.zeros(2 * heads, width))
        input_bias = torch.full((heads,), input_gate_bias)
        self.gate_bias = nn.Parameter(initial_gate_bias(heads, input_bias))
        self.norm_weight = nn.Parameter(torch.ones(value_width))
        self.out_proj = nn.Linear(value_width, width, bias=False)

    def init_state(self, rows: int) -> MLSTMState:
        key_width, _, value_width, _ = self.parts
        head_dims = key_width // self.heads, value_width // self.heads
        return empty_state(rows, self.heads, *head_dims, self.norm_weight)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: MLSTMState
    ) -> tuple[Float[Tensor, "rows time width"], MLSTMState]:
        *qkv, o = self.in_proj(x).split(self.parts, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in qkv)
        with no_autocast(x):
            dtype = state.C.dtype
            gates = F.linear(x.to(dtype), self.gate_weight.to(dtype), self.gate_bias.to(dtype))
            if self.gate_cap is not None:
                gates = self.gate_cap * (gates / self.gate_cap).tanh()
            i, f = gates.chunk(2, dim=-1)
            inputs = MLSTMInputs(q, k, v, i, f, state)
            h, state = mlstm(inputs, chunk_size=self.chunk_size, eps=self.eps)
            h = F.layer_norm(h, h.shape[-1:], eps=self.norm_eps).flatten(-2).to(x.dtype) * self.norm_weight
        return self.out_proj(o.sigmoid() * h), state
