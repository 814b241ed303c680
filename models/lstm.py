"""LSTM: no attention, a long short-term memory in every block.

Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; the mixer: memory/state_space/gated_rnn.py.

    x += W_out lstm(norm(x))        (x += swiglu(norm(x)), with `mlp_width`)        logits = E norm(x)

Carried from segment to segment: in every block h and c.
Differs from the paper: forget gates, no peepholes; layers are residual blocks, each with a norm before it and
a projection back to the width.
"""

from typing import Unpack

from zoo.memory.state_space.gated_rnn import LSTMMixer
from zoo.models.decoder import BaseOptions, Decoder


class LSTM(Decoder):
    """`hidden_size` cells in every layer."""

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
        mixers = [LSTMMixer(width, hidden_size) for _ in range(depth)]
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
