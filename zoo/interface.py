"""The interface of a model with memory: what the laws, generation and the training loop call.

It needs torch and jaxtyping alone.  An author writes `init_state` and `segment` and declares a few traits;
the rest is inherited.  Letters used for shapes in the whole repository: rows B, time T, segment S, width D,
heads H, head_dim K, memory tokens M, vocabulary V.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.state import State, named_leaves

Parallel = Literal["none", "segments", "segments_as_batch", "any_length"]
Reach = int | Literal["unknown"] | None
Segment = Callable[[Tensor, State], tuple[Tensor, State]]


class DecodeRule:
    """Base of StatefulLM and Mixer: decides for each subclass whether it `decodes` from a cache.

    A class that overrides `segment`, `hidden_segment` (see SequenceModule) or `forward` but not
    `init_decode_cache` has `decodes = False`, since the inherited cache belongs to the inherited code; it may
    set `decodes` itself.
    """

    decodes: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        defined = vars(cls).keys()
        reading = {"segment", "hidden_segment", "forward", "init_decode_cache"}
        if "decodes" not in defined and defined & reading:
            cls.decodes = "init_decode_cache" in defined


class StatefulLM(DecodeRule, nn.Module, ABC):
    """A language model that reads text segment by segment and hands a state from one to the next.

    Reading a long text is the fold of `segment` over it: cutting a call at any segment boundary changes
    nothing.  Every call of `segment` ends a segment: fewer tokens are a short segment, which the next call
    doesn't continue.  Generation, which adds tokens to a segment that isn't complete (an open segment), reads
    it again with every token, or continues it by `decode`.  All further promises are laws in zoo/contract.py.
    """

    vocab_size: int
    segment_len: int
    remembers: bool = True
    """False for a baseline without memory: every segment starts from an empty state."""
    learns_through_memory: bool | tuple[str, ...]
    """True if in train mode the gradient flows through the state into earlier segments (back-propagation
    through time); or the names of the state's fields that it flows through."""
    reach: Reach = "unknown"
    """The receptive field of all layers together, in eval mode and in a text of full segments: the positions
    t - reach + 1 .. t can change the logits at t.  None if it has no such limit, where a recurrent state,
    memory tokens, attention sinks or a bank, of any capacity, carries further; "unknown" promises nothing."""
    cuts_anywhere: bool = False
    """True if a call may end at any token, also inside a segment, and the next call continues there."""
    mixes_rows_in_training: bool = False
    """True if in train mode a row's logits depend on the other rows of the batch."""
    reads_memory_in_training: bool = True
    """False if in train mode some of the memory, or all of it, is written and not read."""
    parallel: Parallel = "none"
    """The longest input of one call of `segment`, so that `forward` needs few calls for a long text:
    `none`: one segment; `segments`: all full segments of a text, (rows, segments * S); `segments_as_batch`:
    the same, each segment a separate row, (rows * segments, S), a text's segments in order; `any_length`: a
    text of any length."""
    decodes: bool = False
    """True if `decode` can continue an open segment from a cache (see DecodeRule); if False, an open segment
    is read again from its beginning."""

    @abstractmethod
    def init_state(self, rows: int) -> State:
        """The state before the first token, on the weights' device: every tensor has the rows first."""

    @abstractmethod
    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """Read one segment of at most `segment_len` tokens (more where `parallel` allows it): logits, and the
        state after it."""

    def fold(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """Read a text of any length segment by segment: the definition of `forward`."""
        state = self.init_state(len(tokens)) if state is None else state
        return self._fold(self.segment, tokens, state)

    def _fold(self, segment: Segment, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        outputs = []
        for piece in tokens.split(self.segment_len, dim=1):
            output, state = segment(piece, state)
            outputs.append(output)
        return torch.cat(outputs, dim=1), state

    def forward(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """Read a text of any length: by `fold`, or in fewer calls of `segment` as `parallel` allows.

        Logits, states and gradients equal those of `fold`.  Raises ValueError for tokens without rows.
        """
        if tokens.ndim != 2:
            raise ValueError(f"tokens: expected (rows, time), found shape {tuple(tokens.shape)}")
        if self.parallel == "none":
            return self.fold(tokens, state)
        state = self.init_state(len(tokens)) if state is None else state
        return self._read(self.segment, tokens, state)

    def _read(self, segment: Segment, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read a text by calls of `segment`, or another method that reads segments, as `parallel` allows."""
        end = tokens.shape[1] // self.segment_len * self.segment_len
        if self.parallel == "none":
            return self._fold(segment, tokens, state)
        if self.parallel == "any_length" or not end:
            return segment(tokens, state)
        if self.parallel == "segments_as_batch":
            outputs, state = segment(split_segments(tokens[:, :end], self.segment_len), state)
            outputs = join_segments(outputs, len(tokens))
        else:
            outputs, state = segment(tokens[:, :end], state)
        if end < tokens.shape[1]:
            rest, state = segment(tokens[:, end:], state)
            outputs = torch.cat([outputs, rest], dim=1)
        return outputs, state

    def init_decode_cache(self, state: State) -> Any:
        """An empty cache for `decode` at the start of the segment after `state`.

        None if this state allows no cache: the open segment is then read again from its beginning with every
        new token, which is the definition of continuing it.
        """
        return None

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        """Continue an open segment: the logits that `segment` would give at these tokens, and the cache with
        them added.  Without gradient, in eval mode; the input cache is not changed."""
        raise NotImplementedError(f"{type(self).__name__} has no cache of an open segment")


def split_segments(
    tokens: Int[Tensor, "rows time"], segment_len: int
) -> Int[Tensor, "rows_and_segments segment"]:
    """The segments of a text of whole segments as rows of one batch, row by row."""
    return tokens.reshape(-1, segment_len)


def join_segments(
    outputs: Float[Tensor, "rows_and_segments segment features"], rows: int
) -> Float[Tensor, "rows time features"]:
    """The inverse of `split_segments`, of a vector for each token."""
    segments, segment_len, width = outputs.shape
    return outputs.reshape(rows, segments // max(1, rows) * segment_len, width)


def stateful(module: nn.Module) -> StatefulLM:
    """The module itself if it is a StatefulLM; a plain nn.Module with the interface's methods wrapped as one.

    It needs `vocab_size`, `segment_len`, `learns_through_memory`, `init_state(rows)` and
    `forward(tokens, state) -> (logits, state)`; where it has no `segment`, `forward` reads a segment.  Traits
    that it doesn't declare have the defaults of StatefulLM.  Raises TypeError for what is missing.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, found {type(module).__name__}")
    return module if isinstance(module, StatefulLM) else _Wrapped(module)


def check_traits(model: StatefulLM) -> None:
    """Raises TypeError, in one line, for a trait that is missing or of another type."""
    expected: dict[str, tuple[str, Callable[[object], bool]]] = {
        **dict.fromkeys(("vocab_size", "segment_len"), ("a whole number above 0", _is_positive)),
        "parallel": (" | ".join(get_args(Parallel)), lambda value: value in get_args(Parallel)),
        "learns_through_memory": (
            "True, False or a tuple of names",
            lambda value: isinstance(value, (bool, tuple)),
        ),
        **dict.fromkeys(
            ("remembers", "cuts_anywhere", "mixes_rows_in_training", "reads_memory_in_training"),
            ("True or False", lambda value: isinstance(value, bool)),
        ),
    }
    for name, (values, holds) in expected.items():
        if not hasattr(model, name):
            raise TypeError(f"{name}: expected {values}, found none")
        if not holds(getattr(model, name)):
            raise TypeError(f"{name}: expected {values}, found {getattr(model, name)!r}")


def check_interface(model: StatefulLM, rows: int = 3) -> None:
    """Raises TypeError, in one line, for what `check_traits` refuses, a state that isn't made of tensors, of
    the weights' dtype or a wider one, and a `forward` that doesn't return a pair."""
    check_traits(model)
    weight = next((weight for weight in model.parameters() if weight.is_floating_point()), None)
    if weight is None or weight.is_meta:
        raise TypeError(
            f"expected weights on a device with memory, found {'none' if weight is None else 'meta'}"
        )
    for name, leaf in named_leaves(model.init_state(rows)):
        label = f"init_state({rows})" + (f", `{name}`" if name else "")
        if leaf.dtype == torch.float32 and weight.dtype == torch.float64:  # a bank may have 16 bits by choice
            raise TypeError(
                f"{label}: expected {weight.dtype} as the weights or wider, found {leaf.dtype}: "
                "weight.new_zeros(…) has a weight's dtype"
            )
    tokens = torch.zeros(rows, model.segment_len, dtype=torch.long, device=weight.device)
    result = model(tokens, model.init_state(rows))
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
        kind = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        raise TypeError(f"forward: expected a pair of logits and state, found {kind}")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class _Wrapped(StatefulLM):
    REQUIRED = ("vocab_size", "segment_len", "learns_through_memory", "init_state")
    OPTIONAL = (
        *("remembers", "reach", "cuts_anywhere", "parallel"),
        *("mixes_rows_in_training", "reads_memory_in_training"),
    )

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if missing := [name for name in self.REQUIRED if not hasattr(module, name)]:
            raise TypeError(
                f"{type(module).__name__}: expected {', '.join(self.REQUIRED)} and forward(tokens, state), "
                f"found no {', '.join(missing)}"
            )
        self.module = module
        self.vocab_size, self.segment_len = module.vocab_size, module.segment_len  # type: ignore[assignment]
        self.learns_through_memory = module.learns_through_memory  # type: ignore[assignment]
        for name in self.OPTIONAL:
            setattr(self, name, getattr(module, name, getattr(StatefulLM, name)))
        self.decodes = bool(getattr(module, "decodes", hasattr(module, "init_decode_cache")))

    def init_state(self, rows: int) -> State:
        return self.module.init_state(rows)  # type: ignore[operator]

    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        return getattr(self.module, "segment", self.module)(tokens, state)

    def forward(
        self, tokens: Int[Tensor, "rows time"], state: State | None = None
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        if type(self.module).forward is nn.Module.forward:  # it has `segment` alone
            return super().forward(tokens, state)
        return self.module(tokens, self.init_state(len(tokens)) if state is None else state)

    def init_decode_cache(self, state: State) -> Any:
        return self.module.init_decode_cache(state)  # type: ignore[operator]

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        return self.module.decode(tokens, cache)  # type: ignore[operator]
