"""DeltaNet, Gated DeltaNet and Kimi Delta Attention: recurrent decoders whose memory overwrites.

Yang et al. 2024, arXiv:2406.06484 and arXiv:2412.06464; Kimi Team 2025, arXiv:2510.26692; the mixer:
memory/fast_weights/delta_mixer.py, its recurrence: memory/fast_weights/recurrence.py.

    x += delta(norm(x))        x += swiglu(norm(x))        logits = E norm(x)
    delta: S_t = (I - beta_t k_t k_t^T) diag(exp g_t) S_{t-1} + beta_t k_t v_t^T,  o_t = S_t^T q_t,  per head

Carried from segment to segment: in every block each head's S (head_dim, value_dim), and the last `conv_size -
1` inputs of its short convolution.
Differs from the papers: initial weights are those of all models here, except for A, dt and the convolution;
Kimi Linear has attention in every fourth layer.
"""

from functools import partial
from typing import Unpack

from zoo.memory.fast_weights.delta_mixer import DeltaMixer, Rule
from zoo.memory.fast_weights.recurrence import Backend
from zoo.models.decoder import BaseOptions, Decoder


class DeltaNet(Decoder):
    """`rule` is `delta`, `gated` (a decay per head), `kda` (per channel) or `additive`, to compare
    with, which overwrites nothing; `steps` > 1 writes as often for every token."""

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
        rule: Rule,
        head_dim: int,
        value_dim: int,
        value_heads: int | None = None,
        gate: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        negative_eigenvalues: bool = False,
        lower_bound: float | None = None,
        steps: int = 1,
        chunk_size: int = 32,
        backend: Backend = "torch",
        **options: Unpack[BaseOptions],
    ) -> None:
        mixer = partial(DeltaMixer, width, heads, rule=rule, head_dim=head_dim, value_dim=value_dim)
        mixer = partial(mixer, value_heads=value_heads, gate=gate, conv_size=conv_size, conv_bias=conv_bias)
        mixer = partial(mixer, negative_eigenvalues=negative_eigenvalues, lower_bound=lower_bound)
        mixers = (mixer(steps=steps, chunk_size=chunk_size, backend=backend) for _ in range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
