"""HGRN2: a gated linear recurrence with a matrix per head, whose forget gates are bounded from below.

Qin et al. 2024, arXiv:2404.07904; the mixer: memory/fast_weights/hgrn2_mixer.py, its recurrence:
memory/fast_weights/recurrence.py.

    x += hgrn2(norm(x))        x += swiglu(norm(x))        logits = E norm(x)
    hgrn2: S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T,  o_t = S_t^T q_t,  per head,  f_t >= beta_l in layer l

Carried from segment to segment: in every block each head's S (head_dim, width / heads).
Differs from the paper: initial weights are those of all models here; the bounds start at equal shares, as in
flash-linear-attention.
"""

from functools import partial
from typing import Unpack

from zoo.memory.fast_weights.hgrn2_mixer import HGRN2Mixer, LowerBounds
from zoo.memory.fast_weights.recurrence import Backend
from zoo.models.decoder import BaseOptions, Decoder


class HGRN2(Decoder):
    """`head_dim` gates a head; `conv_size` > 0 convolves queries, gates and values."""

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
        mlp_width: int,
        head_dim: int,
        conv_size: int = 0,
        chunk_size: int = 32,
        backend: Backend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        bounds = LowerBounds(depth, heads * head_dim)
        mixer = partial(HGRN2Mixer, width, heads, bounds=bounds, head_dim=head_dim)
        mixer = partial(mixer, conv_size=conv_size, chunk_size=chunk_size, backend=backend)
        mixers = (mixer(layer=layer) for layer in range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
