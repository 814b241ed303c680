"""Mamba-2: Mamba with one decay per head, so that its scan is made of matrix products.

Dao & Gu 2024, arXiv:2405.21060; the mixer: memory/state_space/mamba2_mixer.py, its recurrence:
memory/state_space/ssd.py.

    x += mamba2(norm(x))        (x += swiglu(norm(x)), with `mlp_width`)        logits = E norm(x)
    mamba2: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,  y_t = h_t C_t + D x_t,  per head, A a number

Carried from segment to segment: in every block each head's h (head_dim, states), and the last `conv_size -
1` inputs of its short convolution.
Differs from the paper: initial weights are those of all models here, except for A, D, dt and the convolution.
"""

import math
from functools import partial
from typing import Unpack

from zoo.memory.state_space.mamba2_mixer import GatedNorm, Mamba2Mixer
from zoo.memory.state_space.ssd import Backend
from zoo.models.decoder import BaseOptions, Decoder


class Mamba2(Decoder):
    """`all_heads` is the number of heads of all blocks together, rounded up to a multiple of `groups`, at
    least `groups` in each; where depth doesn't divide it, the first blocks have `groups` more."""

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
        all_heads: int,
        head_dim: int = 64,
        state_size: int = 128,
        groups: int = 1,
        conv_size: int = 4,
        gated_width: int = 0,
        gated_norm: GatedNorm = "after_gate",
        skip_per_channel: bool = False,
        dt_limit: tuple[float, float] | None = None,
        chunk_size: int = 64,
        mlp_width: int = 0,
        bias: bool = False,
        conv_bias: bool = True,
        backend: Backend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        mixer = partial(Mamba2Mixer, width, head_dim=head_dim, state_size=state_size, groups=groups)
        mixer = partial(mixer, conv_size=conv_size, gated_width=gated_width, norm=gated_norm)
        mixer = partial(mixer, skip_per_channel=skip_per_channel, dt_limit=dt_limit, chunk_size=chunk_size)
        mixer = partial(mixer, bias=bias, conv_bias=conv_bias, backend=backend)
        groups_of_heads = math.ceil(all_heads / groups)
        heads = [groups * max(1, (groups_of_heads + layer) // depth) for layer in reversed(range(depth))]
        mixers = [mixer(heads=count) for count in heads]
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
