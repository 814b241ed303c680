"""The attention-free transformer, in its simple form: Zhai et al. 2021, arXiv:2105.14103.  In every channel,
an average of all values so far, each weighed by the exponential of its key:

    y_t = sigmoid(q_t) * sum_{s <= t} exp(k_s) v_s / sum_{s <= t} exp(k_s)

Carried: the average and the logarithm of its weight.  Differs from the paper: the average starts as one zero
of weight 1, and the feed-forward is as wide as the budget allows.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory import Mixer
from zoo.models import Decoder

CHUNK = 16  # tokens whose pairs are in memory at once


class AFTState(NamedTuple):
    mean: Float[Tensor, "rows width"]
    log_weight: Float[Tensor, "rows width"]


class AFTMemory(Mixer):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def init_state(self, rows: int) -> AFTState:
        return AFTState(*self.out_proj.weight.new_zeros(2, rows, self.width))

    def forward(self, x: Tensor, state: AFTState) -> tuple[Tensor, AFTState]:
        q, k, v = self.in_proj(x).chunk(3, dim=-1)
        with torch.autocast(x.device.type, enabled=False):  # sums over a whole text need their 32 bits
            (mean, log_weight), outputs = state, []
            for keys, values in zip(k.to(mean).split(CHUNK, 1), v.to(mean).split(CHUNK, 1), strict=True):
                later = torch.ones(keys.shape[1], keys.shape[1] + 1, device=x.device).triu(2).bool()
                keys = torch.cat([log_weight[:, None], keys], dim=1)[:, None]  # the average is one more value
                values = torch.cat([mean[:, None], values], dim=1)[:, None]
                keys = keys.masked_fill(later[..., None], -torch.inf)  # (rows, token, key, width)
                outputs.append((keys.softmax(2) * values).sum(2))
                mean, log_weight = outputs[-1][:, -1], keys[:, -1].logsumexp(1)
        return self.out_proj(q.sigmoid() * torch.cat(outputs, dim=1)), AFTState(mean, log_weight)


class AFT(Decoder):
    learns_through_memory = cuts_anywhere = True
    reach = None
    parallel = "any_length"

    def __init__(self, vocab_size: int, segment_len: int, depth: int, width: int, mlp_width: int) -> None:
        mixers = (AFTMemory(width) for _ in range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width)
