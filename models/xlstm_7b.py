"""xLSTM 7B: matrix memories with capped gates, each block with a feed-forward.

Beck et al. 2025, arXiv:2503.13427; the mixer: memory/fast_weights/xlstm_large_mixer.py, its cell:
mlstm_cell.py.

    x += mlstm(norm(x))        x += swiglu(norm(x))        logits = c tanh(E norm(x) / c)

Carried from segment to segment: in every block each head's C, n and m.
Differs from the paper: initial weights are those of all models here, except for the gates.
"""

from functools import partial
from typing import Unpack

from zoo.memory.fast_weights.xlstm_large_mixer import XLSTMLargeMixer
from zoo.models.decoder import BaseOptions, Decoder


class XLSTM7B(Decoder):
    """`gate_cap` and `logit_cap` are those of the gates and logits; None caps nothing."""

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
        key_width: int,
        value_width: int,
        mlp_width: int,
        gate_cap: float | None = 15.0,
        logit_cap: float | None = 30.0,
        input_gate_bias: float = -10.0,
        chunk_size: int = 32,
        **options: Unpack[BaseOptions],
    ) -> None:
        if (soft_cap := options.get("soft_cap")) is not None:
            raise ValueError(f"soft_cap: expected none, as logit_cap caps the logits, found {soft_cap}")
        if logit_cap is not None and logit_cap <= 0:
            raise ValueError(f"logit_cap must be above 0, not {logit_cap}")
        mixer = partial(XLSTMLargeMixer, width, heads, key_width=key_width, value_width=value_width)
        mixer = partial(mixer, gate_cap=gate_cap, input_gate_bias=input_gate_bias)
        mixers = (mixer(chunk_size=chunk_size) for _ in range(depth))
        options["soft_cap"] = logit_cap
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
