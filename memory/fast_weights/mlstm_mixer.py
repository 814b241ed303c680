"""The mLSTM's layer of the first paper: the cell between an up and a down projection, beside a gate.

Beck et al. 2024, arXiv:2405.04517, figure 11, as in NX-AI/xlstm:

    x_m, z = W_up x        c = silu(conv(x_m))        q, k, v = B_q c, B_k c, B_v x_m      (B block-diagonal)
    i, f = W_if [q, k, v] + b, one each per head        h = mlstm(q, k, v, i, f)
    y = W_down [(LayerNorm(h) + skip * c) * silu(z)],  the norm over each head

Carried: the cell's C, n and m, and the convolution's last K-1 inputs.
Differs from the paper: initial matrices are those of all models here, but for the gates'.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.fast_weights.mlstm_cell import MLSTMInputs, MLSTMState, empty_state, mlstm
from zoo.memory.mixer import Mixer, no_autocast
from zoo.memory.state_space.conv import CausalConv

NORM_EPS = 1e-5


class MLSTMMixerState(NamedTuple):
    conv: Float[Tensor, "rows earlier channels"]  # the convolution's last K-1 inputs
    cell: MLSTMState


class BlockDiagonal(nn.Module):
    """A linear map of every `block_size` channels apart, without bias."""

    def __init__(self, channels: int, block_size: int) -> None:
        super().__init__()
        weight = torch.empty(channels // block_size, block_size, block_size)
        self.weight = nn.Parameter(weight.normal_(std=block_size**-0.5))

    def forward(self, x: Float[Tensor, "rows time channels"]) -> Float[Tensor, "rows time channels"]:
        blocks = x.unflatten(-1, (-1, self.weight.shape[-1]))
        return torch.einsum("rtbi,boi->rtbo", blocks, self.weight).flatten(-2)


class MLSTMMixer(Mixer):
    """`channels` inside, which `heads` and blocks of `block_size` share out evenly."""

    def __init__(
        self,
        width: int,
        channels: int,
        heads: int,
        *,
        block_size: int = 4,
        conv_size: int = 4,
        chunk_size: int = 32,
    ) -> None:
        super().__init__()
        for name, size in (("heads", heads), ("block_size", block_size)):
            if channels % size:
                raise ValueError(f"channels {channels} is not a multiple of {name} {size}")
        self.channels, self.heads, self.chunk_size = channels, heads, chunk_size
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv = CausalConv(channels, conv_size)
        self.q, self.k, self.v = (BlockDiagonal(channels, block_size) for _ in range(3))
        self.gate_weight = nn.Parameter(torch.zeros(2 * heads, 3 * channels))
        self.gate_bias = nn.Parameter(initial_gate_bias(heads, input_bias=0.1 * torch.randn(heads)))
        self.skip = nn.Parameter(torch.ones(channels))
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, width, bias=False)

    def init_state(self, rows: int) -> MLSTMMixerState:
        head_dim = self.channels // self.heads
        cell = empty_state(rows, self.heads, head_dim, head_dim, self.skip)
        return MLSTMMixerState(self.conv.init_state(rows), cell)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: MLSTMMixerState
    ) -> tuple[Float[Tensor, "rows time width"], MLSTMMixerState]:
        x_m, z = self.in_proj(x).chunk(2, dim=-1)
        c, conv = self.conv(x_m, state.conv)
        c = F.silu(c)
        qkv = torch.cat([self.q(c), self.k(c), self.v(x_m)], dim=-1)
        with no_autocast(x):
            qkv = qkv.to(state.cell.C.dtype)
            gates = F.linear(qkv, self.gate_weight.to(qkv.dtype), self.gate_bias.to(qkv.dtype))
            q, k, v = rearrange(qkv, "r t (n h k) -> n r t h k", n=3, h=self.heads)
            i, f = gates.chunk(2, dim=-1)
            h, cell = mlstm(MLSTMInputs(q, k, v, i, f, state.cell), chunk_size=self.chunk_size)
            h = F.layer_norm(h, h.shape[-1:], eps=NORM_EPS).flatten(-2).to(x.dtype) * self.norm_weight
        return self.out_proj((h + self.skip * c) * F.silu(z)), MLSTMMixerState(conv, cell)


def initial_gate_bias(heads: int, input_bias: Float[Tensor, " heads"]) -> Float[Tensor, " gates"]:
    """Of the input gates, then forget gates from 3 to 6 over the heads: memories of 20 to 400 tokens."""
    return torch.cat([input_bias, torch.linspace(3.0, 6.0, heads)])
