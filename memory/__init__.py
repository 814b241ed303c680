"""Mechanisms that carry information from one segment to the next: (x, state) -> (y, state).

Where a mechanism `f` is computed in a fast form, `f_loop` beside it is its definition in the plainest code
(`f_reference` if that isn't a loop).  Tests compare the fast form with it, gradients included.

The names below are public, for authors of models (docs/api.md); `__init__.pyi` declares them for static
checkers.
"""

from zoo.lazy import lazy_names as _lazy_names

_MODULES = {
    "Alibi": "zoo.memory.attention.biases",
    "AssociativeMemory": "zoo.memory.fast_weights.associative",
    "Attention": "zoo.memory.attention.core",
    "BlockMemoryAttention": "zoo.memory.tokens.memory_tokens",
    "CausalConv": "zoo.memory.state_space.conv",
    "ComplexEMA": "zoo.memory.state_space.complex_ema",
    "CompressiveAttention": "zoo.memory.fast_weights.infini_attention",
    "DeltaMixer": "zoo.memory.fast_weights.delta_mixer",
    "FocusedAttention": "zoo.memory.retrieval.focused_attention",
    "GLAMixer": "zoo.memory.fast_weights.gla_mixer",
    "GRUMixer": "zoo.memory.state_space.gated_rnn",
    "GatedAttention": "zoo.memory.state_space.megalodon_attention",
    "HGRN2Mixer": "zoo.memory.fast_weights.hgrn2_mixer",
    "InterleavedRope": "zoo.memory.attention.positions",
    "KNNMemory": "zoo.memory.retrieval.bank",
    "LSTMMixer": "zoo.memory.state_space.gated_rnn",
    "LandmarkAttention": "zoo.memory.retrieval.landmark_attention",
    "LightningMixer": "zoo.memory.fast_weights.retention_mixer",
    "LinearAttention": "zoo.memory.fast_weights.linear_attention",
    "MLSTMMixer": "zoo.memory.fast_weights.mlstm_mixer",
    "Mamba2Mixer": "zoo.memory.state_space.mamba2_mixer",
    "MambaMixer": "zoo.memory.state_space.mamba_mixer",
    "MemorizingAttention": "zoo.memory.retrieval.memorizing_attention",
    "Mixer": "zoo.memory.mixer",
    "Positions": "zoo.memory.attention.positions",
    "RGLRU": "zoo.memory.state_space.rglru",
    "RWKV6TimeMix": "zoo.memory.fast_weights.rwkv6_time_mix",
    "RecurrentBlock": "zoo.memory.state_space.griffin_block",
    "RelativeAttention": "zoo.memory.attention.relative",
    "RetentionMixer": "zoo.memory.fast_weights.retention_mixer",
    "Rope": "zoo.memory.attention.positions",
    "TimestepNorm": "zoo.memory.state_space.timestep_norm",
    "UnlimiformerAttention": "zoo.memory.retrieval.unlimiformer_attention",
    "ValueResidualAttention": "zoo.memory.attention.value_residual",
    "ValueResidualWindow": "zoo.memory.attention.value_residual",
    "WindowAttention": "zoo.memory.attention.sliding_window",
    "XLSTMLargeMixer": "zoo.memory.fast_weights.xlstm_large_mixer",
    "build_positions": "zoo.memory.attention.position_kinds",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = _lazy_names(__name__, _MODULES)
