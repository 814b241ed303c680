"""What RWKV-6 and RWKV-7 share: the token shift, maps of low rank, the norm of the heads, the channel mix.

Peng et al. 2024, arXiv:2404.05892, section 4, and 2025, arXiv:2503.14456, section 4, as in BlinkDL/RWKV-LM.
With x the normed input, x_{-1} = 0 and d_t = x_{t-1} - x_t:

    channel mix, RWKV-6:  y = sigmoid(W_r (x + mu_r d)) * W_v relu(W_k (x + mu_k d))^2
    channel mix, RWKV-7:  y = W_v relu(W_k (x + mu_k d))^2

Carried: the last normed input.
Differs from the papers: initial matrices are those of all models here.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.mixer import float32_zeros

NORM_EPS = 64e-5  # of the heads' norm, whatever their width, as in RWKV-LM


class TimeMixState(NamedTuple):
    shift: Float[Tensor, "rows width"]  # the last normed input
    matrix: Float[Tensor, "rows heads head_dim head_dim"]  # S, keys first, in float32 at least


def empty_time_mix_state(
    mix: Float[Tensor, "inputs width"], rows: int, heads: int, head_dim: int
) -> TimeMixState:
    """The state of a time mix with these weights `mix` before the first token."""
    shift = mix.new_zeros(rows, mix.shape[1])
    return TimeMixState(shift, float32_zeros(mix, rows, heads, head_dim, head_dim))


def token_shift(
    x: Float[Tensor, "rows time width"], last: Float[Tensor, "rows width"]
) -> tuple[Float[Tensor, "rows time width"], Float[Tensor, "rows width"]]:
    """d_t = x_{t-1} - x_t with x_{-1} = `last`, and the last x."""
    earlier = torch.cat([last[:, None].to(x.dtype), x[:, :-1]], dim=1)
    return earlier - x, x[:, -1].to(last.dtype)


def channel_positions(width: int) -> Float[Tensor, " width"]:
    """0, 1/D, .., (D-1)/D."""
    return torch.arange(width) / width


class LowRank(nn.Module):
    """bias + act(x W_1) W_2, with W_1 (width, rank) and W_2 (rank, width_out).

    Starts with W_1 = 0, so that the result is the bias at first.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("down", "up")

    def __init__(
        self, width: int, rank: int, activation: Callable[[Tensor], Tensor] | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"ranks must be at least 1, not {rank}")
        self.activation = activation
        self.down = nn.Parameter(torch.zeros(width, rank))
        self.up = nn.Parameter(torch.empty(rank, width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        h = x @ self.down
        y = (h if self.activation is None else self.activation(h)) @ self.up
        return y if self.bias is None else y + self.bias


class HeadNorm(nn.Module):
    """Layer norm of every head, with a weight and a bias per channel: a group norm of the joined heads."""

    def __init__(self, width: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, o: Float[Tensor, "rows time heads head_dim"]) -> Float[Tensor, "rows time width"]:
        o = F.layer_norm(o, o.shape[-1:], eps=self.eps)
        return rearrange(o, "r t h k -> r t (h k)").to(self.weight.dtype) * self.weight + self.bias


class ChannelMix(nn.Module):
    """RWKV's feed-forward, which mixes a token with the one before; `gated` by a receptance in RWKV-6."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("mix",)

    def __init__(self, width: int, mlp_width: int, mix: Float[Tensor, "inputs width"], gated: bool) -> None:
        super().__init__()
        self.mix = nn.Parameter(mix)  # mu_k, mu_r
        self.in_proj = nn.Linear(width, mlp_width, bias=False)
        self.gate = nn.Linear(width, width, bias=False) if gated else None
        self.out_proj = nn.Linear(mlp_width, width, bias=False)

    def init_state(self, rows: int) -> Float[Tensor, "rows width"]:
        return self.mix.new_zeros(rows, self.mix.shape[1])

    def forward(
        self, x: Float[Tensor, "rows time width"], last: Float[Tensor, "rows width"]
    ) -> tuple[Float[Tensor, "rows time width"], Float[Tensor, "rows width"]]:
        d, last = token_shift(x, last)
        y = self.out_proj(self.in_proj(torch.addcmul(x, d, self.mix[0])).relu().square())
        if self.gate is not None:
            y = y * self.gate(torch.addcmul(x, d, self.mix[1])).sigmoid()
        return y, last
