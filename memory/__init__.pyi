"""The public names of zoo.memory, as static checkers and editors see them."""

from zoo.memory.attention.core import Attention as Attention
from zoo.memory.attention.positions import Alibi as Alibi
from zoo.memory.attention.positions import InterleavedRope as InterleavedRope
from zoo.memory.attention.positions import Positions as Positions
from zoo.memory.attention.positions import Rope as Rope
from zoo.memory.attention.positions import build_positions as build_positions
from zoo.memory.attention.relative import RelativeAttention as RelativeAttention
from zoo.memory.attention.sliding_window import WindowAttention as WindowAttention
from zoo.memory.fast_weights.associative import AssociativeMemory as AssociativeMemory
from zoo.memory.fast_weights.infini_attention import CompressiveAttention as CompressiveAttention
from zoo.memory.mixer import Mixer as Mixer
from zoo.memory.retrieval.bank import KNNMemory as KNNMemory
from zoo.memory.retrieval.focused_attention import FocusedAttention as FocusedAttention
from zoo.memory.retrieval.landmark_attention import LandmarkAttention as LandmarkAttention
from zoo.memory.retrieval.memorizing_attention import MemorizingAttention as MemorizingAttention
from zoo.memory.retrieval.unlimiformer_attention import UnlimiformerAttention as UnlimiformerAttention
from zoo.memory.state_space.complex_ema import ComplexEMA as ComplexEMA
from zoo.memory.state_space.conv import CausalConv as CausalConv
from zoo.memory.state_space.griffin_block import RecurrentBlock as RecurrentBlock
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer as Mamba2Mixer
from zoo.memory.state_space.mamba_mixer import MambaMixer as MambaMixer
from zoo.memory.state_space.megalodon_attention import GatedAttention as GatedAttention
from zoo.memory.state_space.rglru import RGLRU as RGLRU
from zoo.memory.state_space.timestep_norm import TimestepNorm as TimestepNorm
from zoo.memory.tokens.memory_tokens import BlockMemoryAttention as BlockMemoryAttention
