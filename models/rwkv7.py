"""RWKV-7: RWKV-6's decoder with a generalised delta rule.

Peng et al. 2025, arXiv:2503.14456; its parts: memory/fast_weights/rwkv7_time_mix.py and rwkv_parts.py, its
recurrence: recurrence.py.

    x = norm(E tokens)      x += time_mix(norm(x))      x += channel_mix(norm(x))      logits = E norm(x)

Carried from segment to segment: in every block each head's S (head_dim, head_dim), and the last inputs of
time mix and channel mix, for their token shift.  Later layers mix their values with the first layer's of the
same token, which carries nothing.
Differs from the paper: matrices start as in all models here, everything else as published.
"""

from functools import partial

from zoo.memory.fast_weights.recurrence import Backend
from zoo.memory.fast_weights.rwkv7_time_mix import RWKV7TimeMix
from zoo.memory.fast_weights.rwkv_parts import ChannelMix, channel_positions
from zoo.models.rwkv6 import RWKV


class RWKV7(RWKV):
    """The ranks are those of the maps to the decay, the delta rule's strength, the share of the first layer's
    values, and the output gate."""

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        head_dim: int,
        mlp_width: int,
        decay_rank: int,
        strength_rank: int,
        value_rank: int,
        gate_rank: int,
        chunk_size: int = 32,
        backend: Backend = "torch",
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        time_mix = partial(RWKV7TimeMix, width, head_dim=head_dim, depth=depth, chunk_size=chunk_size)
        time_mix = partial(time_mix, decay_rank=decay_rank, strength_rank=strength_rank)
        time_mix = partial(time_mix, value_rank=value_rank, gate_rank=gate_rank, backend=backend)
        positions = channel_positions(width)
        mixes = (
            (
                time_mix(layer=layer),
                ChannelMix(width, mlp_width, 1 - positions[None] ** ((1 - layer / depth) ** 4), gated=False),
            )
            for layer in range(depth)
        )
        super().__init__(vocab_size, segment_len, width, mixes, tied, dropout)
