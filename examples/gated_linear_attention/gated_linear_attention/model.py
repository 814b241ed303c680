"""Gated linear attention: Yang et al. 2023, arXiv:2312.06635.  Per head, S (K, V):

    S_t = diag(a_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t        a_t = sigmoid(W_a x_t)^(1/16)

Carried: S.  Differs from the paper: W_a has full rank, and the feed-forward is as wide as the budget allows.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.mixer import Mixer
from zoo.models.decoder import Decoder

CHUNK = 16  # tokens whose decays are in memory at once


class GLAState(NamedTuple):
    memory: Float[Tensor, "rows heads key value"]


class GLAMemory(Mixer):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.in_proj, self.out_proj = nn.Linear(width, 5 * width), nn.Linear(width, width)

    def init_state(self, rows: int) -> GLAState:
        return GLAState(self.out_proj.weight.new_zeros(rows, self.heads, self.head_dim, self.head_dim))

    def forward(self, x: Tensor, state: GLAState) -> tuple[Tensor, GLAState]:
        *parts, gate = self.in_proj(x).chunk(5, dim=-1)
        with torch.autocast(x.device.type, enabled=False):  # sums over a whole text need their 32 bits
            heads = [rearrange(p.to(state.memory), "b t (h k) -> b h t k", h=self.heads) for p in parts]
            heads[0], memory, outputs = heads[0] * self.head_dim**-0.5, state.memory, []
            for q, k, v, a in zip(*(part.split(CHUNK, dim=2) for part in heads), strict=True):
                total = (F.logsigmoid(a) / 16).cumsum(2)  # log of the decay since the chunk's start
                later = torch.ones(2 * [q.shape[2]], device=x.device).triu(1).bool()
                decay = (total[:, :, :, None] - total[:, :, None]).masked_fill(later[..., None], -torch.inf)
                scores = torch.einsum("bhtk,bhsk,bhtsk->bhts", q, k, decay.exp())
                outputs.append(scores @ v + (q * total.exp()) @ memory)
                last = total[:, :, -1:]
                memory = last.exp().mT * memory + (k * (last - total).exp()).mT @ v
        y = F.rms_norm(torch.cat(outputs, dim=2), [self.head_dim])
        return self.out_proj(rearrange(y, "b h t k -> b t (h k)") * F.silu(gate)), GLAState(memory)


class GLA(Decoder):
    learns_through_memory = cuts_anywhere = True
    parallel = "any_length"

    def __init__(
        self, vocab_size: int, segment_len: int, depth: int, width: int, heads: int, mlp_width: int
    ) -> None:
        mixers = (GLAMemory(width, heads) for _ in range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width)
