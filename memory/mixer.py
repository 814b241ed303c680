"""The base class of sequence mixers: modules that mix positions and may carry a state."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

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
    """True if the class has a cache smaller than the open segment's inputs (see DecodeRule)."""
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Names of parameters without weight decay although they have the shape of a matrix; vectors, such as
    biases and gains, never have any (see SequenceModule.parameter_groups)."""

    def init_state(self, rows: int) -> State:
        """The state before the first token: every tensor has the rows first."""
        return ()

    def device_note(self, device: torch.device) -> str:
        """What a user of this device should know about the mixer's backend; "" if nothing."""
        return ""

    def init_decode_cache(self, state: State) -> Any:
        """An empty cache of the segment after `state`, for `decode`; only where the class `decodes`."""
        raise NotImplementedError(f"{type(self).__name__} has no cache of an open segment")

    def decode(
        self, x: Float[Tensor, "rows time width"], cache: Any
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        """Continue an open segment: y for the new tokens x, and the extended cache."""
        raise NotImplementedError(f"{type(self).__name__} has no cache of an open segment")

    if TYPE_CHECKING:  # typed for the checker; at run time nn.Module's __call__ runs forward

        def __call__(
            self, x: Float[Tensor, "rows time width"], state: State, *first_values: Tensor
        ) -> tuple[Float[Tensor, "rows time width"], State]:
            """`first_values`: the first layer's values, passed on to a mixer with value residual
            (value_residual.py); empty otherwise."""


def matmul_dtype(activations: Tensor, state_dtype: torch.dtype) -> torch.dtype:
    """What a memory multiplies matrices in: bfloat16 where autocast has made the activations so, otherwise
    the dtype of its state.  Not float16, whose range is too small for states."""
    if activations.dtype == torch.bfloat16 and torch.is_autocast_enabled(activations.device.type):
        return torch.bfloat16
    return state_dtype


def matmul(A: Tensor, B: Tensor, dtype: torch.dtype) -> Tensor:
    """A B, in A's dtype, of matrices rounded to `dtype`; of bfloat16 the products are summed in float32."""
    return (A.to(dtype) @ B.to(dtype)).to(A.dtype)


def float32_zeros(weight: Tensor, *shape: int) -> Tensor:
    """Zeros on the weight's device, in float32 at least: states that sum over a whole text."""
    return weight.new_zeros(shape, dtype=torch.promote_types(weight.dtype, torch.float32))


def new_decode_cache(mixer: Mixer, state: State) -> Any:
    """An empty cache of the segment after `state`, of any mixer, for `decode_step`."""
    return mixer.init_decode_cache(state) if mixer.decodes else (state, None)


def decode_step(
    mixer: Mixer, x: Float[Tensor, "rows time width"], cache: Any, *first_values: Tensor
) -> tuple[Float[Tensor, "rows time width"], Any]:
    """`decode` of any causal mixer: one that has no smaller cache keeps its inputs, and reads them again with
    every new token x.  `first_values` are read again likewise, their tokens being the last axis but one."""
    if mixer.decodes:
        decode: Any = mixer.decode  # which takes `first_values` where the mixer does
        y, cache = decode(x, cache, *first_values)
        return y, cache
    state, inputs = cache
    new = (x, *first_values)
    inputs = new if inputs is None else tuple(map(_joined, inputs, new))
    y, _ = mixer(inputs[0], state, *inputs[1:])
    return y[:, -x.shape[1] :], (state, inputs)


def _joined(old: Tensor, new: Tensor) -> Tensor:
    return torch.cat([old, new], dim=-2)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Operations on the device of x compute in the types of their inputs meanwhile: for sums over a text and
    for scores, which bf16 would round.  Some devices have no autocast that could be switched off."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
