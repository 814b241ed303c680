"""What every mechanism in this room is: a module that mixes positions and may carry something."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.state import State


class Mixer(nn.Module):
    """(x, state) -> (y, state): reads x after what the state holds, and says what it holds then.

    A mixer without memory carries the empty tuple.
    """

    def init_state(self, rows: int) -> State:
        """The state before the first token: every tensor has the rows first."""
        return ()

    def init_decode_cache(self, state: State) -> Any:
        """An empty cache of the segment after `state`, for `decode`."""
        return (state, None)

    def decode(
        self, x: Float[Tensor, "rows time width"], cache: Any
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        """Read on inside an open segment.

        This is what it means, and right for every causal mixer: the cache holds the segment's inputs so far,
        which are read again with x behind them.  A mixer that overrides it answers the same from less.
        """
        state, before = cache
        whole = x if before is None else torch.cat([before, x], dim=1)
        y, _ = self(whole, state)
        return y[:, -x.shape[1] :], (state, whole)

    if TYPE_CHECKING:  # at run time nn.Module's own, which calls forward

        def __call__(
            self, x: Float[Tensor, "rows time width"], state: State
        ) -> tuple[Float[Tensor, "rows time width"], State]: ...
