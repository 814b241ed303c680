"""GRU: no attention, a gated recurrent unit in every block.

Cho et al. 2014, arXiv:1406.1078; the mixer: memory/state_space/gated_rnn.py.

    x += W_out gru(norm(x))        (x += swiglu(norm(x)), with `mlp_width`)        logits = E norm(x)

Carried from segment to segment: in every block h.
Differs from the paper: a decoder alone; h is reset after its matrix product; layers are residual blocks, each
with a norm before it and a projection back to the width.
"""

from typing import Unpack

from zoo.memory.state_space.gated_rnn import GRUMixer
from zoo.models.decoder import BaseOptions, Decoder


class GRU(Decoder):
    """`hidden_size` units in every layer."""

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
        hidden_size: int,
        mlp_width: int = 0,
        **options: Unpack[BaseOptions],
    ) -> None:
        mixers = [GRUMixer(width, hidden_size) for _ in range(depth)]
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
