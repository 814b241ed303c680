"""The base class of sequence mixers: modules that mix positions and may carry a state."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.interface import DecodeRule
from zoo.state import State


class Mixer(DecodeRule, nn.Module):
    """(x, state) -> (y, state): y is the output at x's tokens, which continue the text summarised by the
    state; the returned state includes them.

    A mixer without memory carries the empty tuple.
    """

    decodes: bool = False
    """True if the class has a cache smaller than the open segment's inputs.  False: `decode` is the generic
    one below (see DecodeRule)."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.decodes:
            cls.init_decode_cache = Mixer.init_decode_cache  # type: ignore[method-assign]
            cls.decode = Mixer.decode  # type: ignore[method-assign]

    def init_state(self, rows: int) -> State:
        """The state before the first token: every tensor has the rows first."""
        return ()

    def init_decode_cache(self, state: State) -> Any:
        """An empty cache of the segment after `state`, for `decode`."""
        return (state, None)

    def decode(
        self, x: Float[Tensor, "rows time width"], cache: Any
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        """Continue an open segment: y for the new tokens x, and the extended cache.

        This generic form is correct for every causal mixer: the cache holds the segment's inputs so far, and
        the mixer is run again on them and x.  An override returns the same from a smaller cache.
        """
        state, inputs = cache
        inputs = x if inputs is None else torch.cat([inputs, x], dim=1)
        y, _ = self(inputs, state)
        return y[:, -x.shape[1] :], (state, inputs)

    if TYPE_CHECKING:  # typed for the checker; at run time nn.Module's __call__ runs forward

        def __call__(
            self, x: Float[Tensor, "rows time width"], state: State
        ) -> tuple[Float[Tensor, "rows time width"], State]: ...
