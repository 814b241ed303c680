"""Hybrids: decoders whose blocks hold mixers of several kinds, in a pattern.

Every mixer takes any number of tokens and continues at any of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, Unpack

from zoo.memory.mixer import Mixer
from zoo.models.decoder import Decoder, DecoderOptions

Kind = TypeVar("Kind", bound=str)
Mixers = Mapping[str, Callable[[], Mixer]]


class Hybrid(Decoder):
    """`pattern` is repeated over the depth (see `pattern_layers`); `mixers` makes a mixer of each kind."""

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
        layers = (mixers[kind]() for kind in pattern_layers(pattern, depth))
        super().__init__(vocab_size, segment_len, width, layers, mlp_width=mlp_width, **options)


def pattern_layers(pattern: Sequence[Kind], depth: int) -> list[Kind]:
    """The kind of each layer: the pattern over and over, cut at `depth`; kinds that the cut would leave out
    altogether come last, so that no size is without them."""
    for spare in range(depth + 1):
        layers = [pattern[layer % len(pattern)] for layer in range(depth - spare)]
        missing = [kind for kind in dict.fromkeys(pattern) if kind not in layers]
        if len(missing) == spare:
            return layers + missing
    raise ValueError(f"{depth} blocks can't hold each of {', '.join(dict.fromkeys(pattern))}")
