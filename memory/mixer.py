"""What every mechanism in this room is: a module that mixes positions and may carry something."""

from typing import TYPE_CHECKING

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

    if TYPE_CHECKING:  # at run time nn.Module's own, which calls forward

        def __call__(
            self, x: Float[Tensor, "rows time width"], state: State
        ) -> tuple[Float[Tensor, "rows time width"], State]: ...
