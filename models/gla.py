"""Gated linear attention: a recurrent decoder with a decay for every channel of its keys.

Yang et al. 2023, arXiv:2312.06635; the mixer: memory/fast_weights/gla_mixer.py, its recurrence:
memory/fast_weights/recurrence.py.

    x += gla(norm(x))        x += swiglu(norm(x))        logits = E norm(x)
    gla: S_t = diag(exp g_t) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t,  per head

Carried from segment to segment: in every block each head's S (head_dim, value_dim), and the last `conv_size -
1` inputs of its short convolution, where there is one.
Differs from the paper: initial weights are those of all models here.
"""

from functools import partial
from typing import Unpack

from zoo.memory.fast_weights.gla_mixer import GLAMixer
from zoo.memory.fast_weights.recurrence import Backend
from zoo.models.decoder import BaseOptions, Decoder


class GLA(Decoder):
    """`kv_heads` of keys, values and decays serve consecutive heads of queries; the gates' logarithm is
    divided by `decay_temperature`, and then at least `clamp_min`."""

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
        kv_heads: int | None = None,
        gate: bool = True,
        gate_rank: int = 16,
        decay_temperature: float = 16.0,
        clamp_min: float | None = None,
        conv_size: int = 0,
        conv_bias: bool = False,
        chunk_size: int = 32,
        backend: Backend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        mixer = partial(GLAMixer, width, heads, head_dim=head_dim, value_dim=value_dim, kv_heads=kv_heads)
        mixer = partial(mixer, gate=gate, gate_rank=gate_rank, decay_temperature=decay_temperature)
        mixer = partial(mixer, clamp_min=clamp_min, conv_size=conv_size, conv_bias=conv_bias)
        mixers = (mixer(chunk_size=chunk_size, backend=backend) for _ in range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
