"""Griffin's recurrent block: a gate beside a short convolution and the RG-LRU.

De et al. 2024, arXiv:2402.19427, section 2.3 and figure 2.

    u = conv(W_x x)        y = W_out (gelu(W_y x) * rglru(u))        conv: K = 4, no activation

Carried: the convolution's last K-1 inputs, the unit's h, and each row's tokens so far (the first is not
scaled: memory/state_space/rglru.py).
Differs from the paper: the convolution is initialised as PyTorch's, not close to 0.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.memory.mixer import Mixer, float32_zeros
from zoo.memory.state_space.conv import CausalConv
from zoo.memory.state_space.rglru import RGLRU


class RecurrentState(NamedTuple):
    conv: Float[Tensor, "rows earlier lru_width"]  # the convolution's last K-1 inputs, oldest first
    h: Float[Tensor, "rows lru_width"]  # in float32 at least
    length: Int[Tensor, " rows"]  # tokens since the last reset


class RecurrentBlock(Mixer):
    """`lru_width` channels; the unit's gates are block-diagonal in `blocks` blocks."""

    def __init__(self, width: int, lru_width: int, blocks: int, *, conv_size: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, lru_width)  # W_y
        self.in_proj = nn.Linear(width, lru_width)  # W_x
        self.conv = CausalConv(lru_width, conv_size)
        self.unit = RGLRU(lru_width, blocks)
        self.out_proj = nn.Linear(lru_width, width)

    def init_state(self, rows: int) -> RecurrentState:
        Lambda = self.unit.rate
        length = torch.zeros(rows, dtype=torch.long, device=Lambda.device)
        return RecurrentState(self.conv.init_state(rows), float32_zeros(Lambda, rows, len(Lambda)), length)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: RecurrentState
    ) -> tuple[Float[Tensor, "rows time width"], RecurrentState]:
        time = x.shape[1]
        starts = state.length[:, None] + torch.arange(time, device=x.device) == 0
        u, conv = self.conv(self.in_proj(x), state.conv)
        u, h = self.unit(u, state.h, starts)
        y = self.out_proj(u * F.gelu(self.gate(x), approximate="tanh"))
        return y, RecurrentState(conv, h, state.length + time)
