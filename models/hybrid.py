"""Hybrids: decoders whose blocks have mixers of several types, in a repeating pattern.

Every mixer accepts any number of tokens, and a text may be cut at any token.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, Unpack

from zoo.memory.attention.sliding_window import stack_reach
from zoo.memory.mixer import Mixer
from zoo.models.blocks import Block
from zoo.models.decoder import Decoder, DecoderOptions

LayerType = TypeVar("LayerType", bound=str)  # a Literal in each hybrid
Mixers = Mapping[str, Callable[[], Mixer]]


class Hybrid(Decoder):
    """A decoder whose layers have the types in `pattern`, in order (see `pattern_layers`).

    `mixers` has a factory per layer type.
    """

    learns_through_memory = True
    cuts_anywhere = True
    parallel = "any_length"

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        pattern: Sequence[str],
        mixers: Mixers,
        *,
        mlp_width: int,
        **options: Unpack[DecoderOptions],
    ) -> None:
        layers = (mixers[layer_type]() for layer_type in pattern_layers(pattern, depth))
        super().__init__(vocab_size, segment_len, width, layers, mlp_width=mlp_width, **options)
        self.reach = stack_reach(block.mixer for block in self.stack if isinstance(block, Block))
        self.remembers = self.learns_through_memory = self.reach != 1


def attention_in_the_middle(layer_type: str, depth: int, period: int) -> list[str]:
    """The type of each layer: attention in the middle of every `period` layers, `layer_type` elsewhere.

    As in Jamba's published code (period 8, offset 4), layer i from 0 on attends if i % period is period // 2.
    A model of fewer layers is one shorter period: it attends in layer depth // 2, as the published codes do
    in the golden cases (layer 2 of 4, 1 of 3).

    Raises ValueError if no layer of `layer_type` is left.
    """
    length = min(period, depth)
    if length < 2:
        raise ValueError(
            f"expected 2 layers at least between attention and attention, found attention_period {period} "
            f"and depth {depth}"
        )
    return ["attention" if layer % length == length // 2 else layer_type for layer in range(depth)]


def pattern_layers(pattern: Sequence[LayerType], depth: int) -> list[LayerType]:
    """The type of each layer: the pattern, repeated and cut off at `depth`.  Types that would then be absent
    replace the last layers, so that a shallow model has all of them.

    Raises ValueError if the pattern has more types than there are layers.
    """
    for num_replaced in range(depth + 1):
        layers = [pattern[layer % len(pattern)] for layer in range(depth - num_replaced)]
        missing = [layer_type for layer_type in dict.fromkeys(pattern) if layer_type not in layers]
        if len(missing) == num_replaced:
            return layers + missing
    raise ValueError(f"{depth} blocks can't hold each of {', '.join(dict.fromkeys(pattern))}")
