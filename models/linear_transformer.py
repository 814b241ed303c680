"""The linear transformer and Performer: attention by products of features, a matrix per head that only adds.

Katharopoulos et al. 2020, arXiv:2006.16236; Performer: Choromanski et al. 2020, arXiv:2009.14794; the mixer:
memory/fast_weights/linear_attention.py, its recurrence: memory/fast_weights/recurrence.py.

    x += attention(norm(x))        x += swiglu(norm(x))        logits = E norm(x)
    attention: o_t = sum_{j<=t} phi(q_t) phi(k_j) v_j / sum_{j<=t} phi(q_t) phi(k_j),  per head

Carried from segment to segment: in every block each head's sums of phi(k) v^T and of phi(k).
Differs from the papers: no positions, blocks are LLaMA-shaped, random features are drawn once.
"""

from functools import partial
from typing import Unpack

from zoo.memory.fast_weights.linear_attention import FeatureMap, LinearAttention
from zoo.models.decoder import BaseOptions, Decoder


class LinearTransformer(Decoder):
    """`feature_map` is `elu` (linear transformer), `favor` (Performer, of `num_features`) or `taylor`."""

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
        feature_map: FeatureMap = "elu",
        num_features: int | None = None,
        chunk_size: int = 32,
        **options: Unpack[BaseOptions],
    ) -> None:
        mixer = partial(LinearAttention, width, heads, feature_map=feature_map, num_features=num_features)
        mixer = partial(mixer, head_dim=head_dim, value_dim=head_dim, chunk_size=chunk_size)
        mixers = (mixer() for _ in range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
