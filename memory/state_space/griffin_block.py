"""Griffin's recurrent block: a gate beside a short convolution and the RG-LRU.

De et al. 2024, arXiv:2402.19427, section 2.3 and figure 2.

    u = conv(W_x x)        y = W_out (gelu(W_y x) * rglru(u))        conv: 4 taps, no activation

Carried: the convolution's last K-1 inputs, the unit's h, and how many tokens each row has read (the first is
not scaled: memory/state_space/rglru.py).
Differs from the paper: the convolution begins as PyTorch's do, not nearly shut.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.memory.mixer import Mixer
from zoo.memory.state_space.conv import CausalConv
from zoo.memory.state_space.rglru import RGLRU


class RecurrentState(NamedTuple):
    tail: Float[Tensor, "rows earlier lru_width"]  # the last taps - 1 inputs of the convolution, oldest first
    hidden: Float[Tensor, "rows lru_width"]  # h, in float32 at least
    read: Int[Tensor, " rows"]  # tokens read since the row was fresh


class RecurrentBlock(Mixer):
    """`lru_width` channels; the unit's gates are block-diagonal in `blocks` blocks."""

    def __init__(self, width: int, lru_width: int, blocks: int, *, conv_size: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, lru_width)  # W_y
        self.enter = nn.Linear(width, lru_width)  # W_x
        self.conv = CausalConv(lru_width, conv_size)
        self.unit = RGLRU(lru_width, blocks)
        self.out = nn.Linear(lru_width, width)

    def init_state(self, rows: int) -> RecurrentState:
        rate = self.unit.rate
        hidden = rate.new_zeros(rows, len(rate), dtype=torch.promote_types(rate.dtype, torch.float32))
        read = torch.zeros(rows, dtype=torch.long, device=rate.device)
        return RecurrentState(self.conv.init_state(rows), hidden, read)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: RecurrentState
    ) -> tuple[Float[Tensor, "rows time width"], RecurrentState]:
        time = x.shape[1]
        starts = state.read[:, None] + torch.arange(time, device=x.device) == 0
        u, tail = self.conv(self.enter(x), state.tail)
        h, hidden = self.unit(u, state.hidden, starts)
        y = self.out(h * F.gelu(self.gate(x), approximate="tanh"))
        return y, RecurrentState(tail, hidden, state.read + time)
