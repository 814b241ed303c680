"""Lightning Attention: linear attention with fixed decays, slower in later layers, as in TransNormerLLM.

Qin et al. 2024, arXiv:2401.04658; the mixer: memory/fast_weights/retention_mixer.py, its recurrence:
memory/fast_weights/recurrence.py.

    x += lightning(norm(x))        x += swiglu(norm(x))        logits = E norm(x)
    lightning: S_t = exp(g_h) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t,  per head h,  q, k, v = silu(W x)

Carried from segment to segment: in every block each head's S (head_dim, head_dim).
Differs from the paper: TransNormerLLM's feed-forward has no activation, its norms no weights, and its first
layer rotary positions; initial weights are those of all models here.
"""

from functools import partial
from typing import Unpack

from zoo.memory.fast_weights.recurrence import Backend
from zoo.memory.fast_weights.retention_mixer import LightningMixer
from zoo.models.decoder import BaseOptions, Decoder


class Lightning(Decoder):
    """`head_dim` of queries, keys and values, and the rank of the output gate."""

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
        chunk_size: int = 32,
        backend: Backend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        mixer = partial(LightningMixer, width, heads, head_dim=head_dim, depth=depth)
        mixer = partial(mixer, chunk_size=chunk_size, backend=backend)
        mixers = (mixer(layer=layer) for layer in range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
