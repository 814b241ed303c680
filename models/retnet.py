"""RetNet: multi-scale retention instead of attention, a memory that decays at a fixed rate per head.

Sun et al. 2023, arXiv:2307.08621; the mixer: memory/fast_weights/retention_mixer.py, its recurrence:
memory/fast_weights/recurrence.py.

    x += retention(norm(x))        x += W_2 (gelu(W_1 x) * W_g x) of norm(x)        logits = E norm(x)
    retention: S_t = exp(g_h) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t,  per head h, q_t and k_t rotated by t

Carried from segment to segment: in every block each head's S (head_dim, value_dim).
Differs from the paper: GELU is its tanh approximation; initial weights are those of all models here.
"""

from functools import partial
from typing import Unpack

from zoo.memory.fast_weights.recurrence import Backend
from zoo.memory.fast_weights.retention_mixer import RetentionMixer
from zoo.models.decoder import BaseOptions, Decoder


class RetNet(Decoder):
    """`head_dim` of queries and keys, `value_dim` of values."""

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
        value_dim: int,
        chunk_size: int = 32,
        backend: Backend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        mixer = partial(RetentionMixer, width, heads, head_dim=head_dim, value_dim=value_dim)
        mixers = (mixer(chunk_size=chunk_size, backend=backend) for _ in range(depth))
        super().__init__(
            vocab_size, segment_len, width, mixers, mlp_width=mlp_width, activation="geglu_tanh", **options
        )
