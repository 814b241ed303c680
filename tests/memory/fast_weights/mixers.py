"""The mixers of fast weights that take a `backend`, of width 16, in shapes that say who shares what."""

from collections.abc import Callable
from functools import partial
from typing import Any

from zoo.memory.fast_weights.delta_mixer import DeltaMixer
from zoo.memory.fast_weights.gla_mixer import GLAMixer
from zoo.memory.fast_weights.hgrn2_mixer import HGRN2Mixer
from zoo.memory.fast_weights.retention_mixer import LightningMixer, RetentionMixer
from zoo.memory.fast_weights.rwkv6_time_mix import RWKV6TimeMix
from zoo.memory.fast_weights.rwkv7_time_mix import RWKV7TimeMix

RANKS = {"decay_rank": 4, "strength_rank": 4, "value_rank": 4, "gate_rank": 4}
MIXERS: dict[str, Callable[..., Any]] = {
    "delta": partial(DeltaMixer, 16, 2, rule="delta", head_dim=8, value_dim=8, steps=2),
    "additive": partial(DeltaMixer, 16, 2, rule="additive", head_dim=8, value_dim=8),
    "gated": partial(DeltaMixer, 16, 2, rule="gated", head_dim=8, value_dim=8, value_heads=4),
    "kda": partial(DeltaMixer, 16, 2, rule="kda", head_dim=8, value_dim=8, lower_bound=-5.0),
    "gla": partial(GLAMixer, 16, 2, head_dim=8, value_dim=8, kv_heads=1),
    "hgrn2": partial(HGRN2Mixer, 16, 2, head_dim=8),
    "retention": partial(RetentionMixer, 16, 2, head_dim=8, value_dim=16),
    "lightning": partial(LightningMixer, 16, 2, head_dim=8, layer=0, depth=2),
    "rwkv6": partial(RWKV6TimeMix, 16, head_dim=8, layer=0, depth=2),
    "rwkv7": partial(RWKV7TimeMix, 16, head_dim=8, layer=0, depth=2, **RANKS),
}
