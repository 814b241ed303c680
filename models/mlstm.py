"""mLSTM: xLSTM with matrix memories alone, in blocks without a feed-forward.

Beck et al. 2024, arXiv:2405.04517; the mixer: memory/fast_weights/mlstm_mixer.py, its cell: mlstm_cell.py.

    x += mlstm(norm(x))        (x += swiglu(norm(x)), with `mlp_width`)        logits = E norm(x)
    mlstm: C_t = f C_{t-1} + i k_t v_t^T,  h_t = C_t^T q_t / max(|n_t^T q_t|, 1),  per head, i exponential

Carried from segment to segment: in every block each head's C, n and m, and the last `conv_size - 1` inputs of
its short convolution.
Differs from the paper: no sLSTM blocks (its xLSTM[1:0]); initial weights are those of all models here, except
for the gates and the convolution.
"""

import math
from functools import partial
from typing import Unpack

from zoo.memory.fast_weights.mlstm_mixer import MLSTMMixer
from zoo.models.decoder import BaseOptions, Decoder


class MLSTM(Decoder):
    """`channels` inside a block are rounded up to a multiple of `heads` and `block_size`."""

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
        heads: int,
        channels: int,
        block_size: int = 4,
        conv_size: int = 4,
        chunk_size: int = 32,
        mlp_width: int = 0,
        **options: Unpack[BaseOptions],
    ) -> None:
        step = math.lcm(heads, block_size)
        channels = math.ceil(channels / step) * step
        mixer = partial(MLSTMMixer, width, channels, heads, block_size=block_size, conv_size=conv_size)
        mixers = (mixer(chunk_size=chunk_size) for _ in range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
