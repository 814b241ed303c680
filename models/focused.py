"""Focused Transformer: a few layers retrieve from the whole past, trained to tell it from other texts.

Tworkowski et al. 2023, arXiv:2307.03170 (FoT, LongLLaMA); memory layers:
memory/retrieval/focused_attention.py; their training: memory/retrieval/crossbatch.py.  K_i are the keys of
row i's segment, P_i of the one before, M_i of all before:

    trained     y = softmax(q [K_i ; P_i ; P_{i+1} ; .. ; P_{i+d-1}]^T / tau) [their values]      (rows mod B)
    evaluated   y = softmax(q [K_i ; the k keys of M_i nearest to q]^T / tau) [their values]

Carried from segment to segment, by memory layers: the last segment's keys and values, the gradient reaching
one segment back, within the window of a training step; in evaluation also the bank of the `capacity` tokens
before those.
Differs from the paper, as LongLLaMA does: rotary positions in the segment, retrieved keys at its first token
(`memory_position=none`: without position), and tau = sqrt(K).  `normalised` is the paper's form: keys and
queries of length 1, and tau = exp(-sharpness) > 0, learned per head.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack

from zoo.memory.attention.core import Attention
from zoo.memory.attention.position_options import Position
from zoo.memory.retrieval.bank import Backend, KNNMemory, recall_diagnostics
from zoo.memory.retrieval.faiss_index import IndexType
from zoo.memory.retrieval.focused_attention import FocusedAttention, FocusedState
from zoo.models.blocks import layers_with_memory
from zoo.models.decoder import BaseOptions, Decoder, attention_options
from zoo.state import State


def parse_schedule(contexts: object) -> dict[float, int]:
    """The schedule as {fraction of training: d from then on}; a single number is a constant d."""
    schedule: Mapping[Any, Any] = contexts if isinstance(contexts, Mapping) else {0.0: contexts}
    shares = all(type(share) in (int, float) and 0 <= share < 1 for share in schedule)
    if not shares or 0 not in schedule or not all(type(d) is int and d > 0 for d in schedule.values()):
        raise ValueError(
            f"contexts must be a number from 1 on, or such numbers from shares of training on as in "
            f"{{0: 2, 0.9: 64}}, not {contexts}"
        )
    return {float(share): d for share, d in schedule.items()}


class Focused(Decoder):
    """`capacity` tokens are stored in blocks of `block`, `neighbours` of them retrieved per query and head;
    `contexts` is d, the texts that a row is contrasted with, or {fraction of training: d}.  ValueError for
    settings that are out of range or don't fit one another."""

    learns_through_memory: bool | tuple[str, ...] = ("previous_keys", "previous_values")
    reach = None
    parallel = "segments_as_batch"
    mixes_rows_in_training = True
    reads_memory_in_training = False  # the bank; the segment before is read
    memory: ClassVar[Callable[..., FocusedAttention]] = FocusedAttention

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        capacity: int,
        neighbours: int = 32,
        block: int | None = None,  # tokens per block of the bank's ring; None: all of `capacity`
        memory_layers: Sequence[int] | None = None,
        contexts: int | Mapping[int | float, int] = 2,
        normalised: bool = False,
        memory_position: Literal["rope", "none"] = "rope",
        backend: Backend = "torch",
        index: IndexType = "flat",
        memory_dtype: Literal["bfloat16"] | None = None,
        rope_base: float = 10000.0,
        position: Position = "rope",
        qk_norm: bool = False,
        **options: Unpack[BaseOptions],
    ) -> None:
        memory_layers = layers_with_memory(depth, memory_layers)
        schedule = parse_schedule(contexts)
        attention: dict[str, Any] = {
            "position": position,
            "qk_norm": qk_norm,
            "rope_base": rope_base,
            "context": segment_len,
        }
        attention |= attention_options(options)
        memory = {**attention, "normalised": normalised}
        memory |= {"position": "none"} if memory_position == "none" else {}
        head_dim = width // heads

        def mixer(layer: int) -> Attention:
            if layer not in memory_layers:
                return Attention(width, heads, **attention)
            knn = KNNMemory(
                capacity,
                heads,
                head_dim,
                head_dim,
                neighbours,
                block,
                backend,
                index,
                memory_dtype,
                lag=segment_len,
            )
            return self.memory(width, heads, segment_len, knn, schedule, **memory)

        mixers = map(mixer, range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
        self.mixes_rows_in_training = max(schedule.values()) > 1

    def memories(self) -> list[FocusedAttention]:
        return [part for part in self.modules() if isinstance(part, FocusedAttention)]

    def set_progress(self, step: int, steps: int) -> None:
        super().set_progress(step, steps)
        for memory in self.memories():
            memory.progress = step / max(1, steps)

    def diagnostics(self, state: State) -> dict[str, float]:
        """d, the number of contexts that a segment attends to in training."""
        return {"contexts": float(self.memories()[0].num_contexts)}

    def costly_diagnostics(self, state: State) -> dict[str, float]:
        """With faiss, the index's recall."""
        banks = [layer.bank for layer in state if isinstance(layer, FocusedState)]
        return recall_diagnostics([memory.knn for memory in self.memories()], banks)
