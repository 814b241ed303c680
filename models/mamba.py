"""Mamba: no attention, a selective state space in every block.

Gu & Dao 2023, arXiv:2312.00752; the mixer: memory/state_space/mamba_mixer.py, its scan:
memory/state_space/selective_scan.py.

    x += mamba(norm(x))        (x += swiglu(norm(x)), with `mlp_width`)        logits = E norm(x)
    mamba: h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  y_t = C_t h_t + D u_t,  dt, B, C computed from the token

Carried from segment to segment: in every block the scan's h (channels, states), and the last `conv_size -
1` inputs of its short convolution.
Differs from the paper: initial weights are those of all models here, except for A, D, dt and the convolution.
"""

from typing import Unpack

from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.memory.state_space.selective_scan import Backend
from zoo.models.decoder import BaseOptions, Decoder


class Mamba(Decoder):
    """`channels` is the inner width, 2 D in the paper; `dt_rank` that of dt, D / 16 by default."""

    learns_through_memory = True
    reach = None
    cuts_anywhere = True
    parallel = "any_length"

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        channels: int,
        state_size: int = 16,
        conv_size: int = 4,
        dt_rank: int | None = None,
        mlp_width: int = 0,
        bias: bool = False,
        conv_bias: bool = True,
        backend: Backend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        mixers = [
            MambaMixer(
                width,
                channels,
                state_size=state_size,
                conv_size=conv_size,
                dt_rank=dt_rank,
                bias=bias,
                conv_bias=conv_bias,
                backend=backend,
            )
            for _ in range(depth)
        ]
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
