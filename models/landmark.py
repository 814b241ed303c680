"""Landmark transformer: attends to its segment and, through landmark tokens, to blocks of all earlier text.

Mohtashami & Jaggi 2023, arXiv:2305.16300; attention, bank and positions:
memory/retrieval/landmark_attention.py.

    stream = w_1 .. w_f L w_{f+1} .. w_{2f} L ..        f = mem_freq, L a learned embedding
    h += attention(norm(h))        h += mlp(norm(h))        logits = E norm(h), at tokens only

In train mode each segment is read alone and all segments of a window are one batch: nothing is carried, read
or written.  In eval mode each segment also retrieves `topk` blocks.  Carried then, per layer: the last
`capacity` tokens' blocks of keys and values, and the block that a short segment left open.  Layers below
`retrieve_from_layer` have no bank.  Layer 0 can't use one: there a landmark's key comes from the landmark
embedding alone and all old blocks share a position, so that their landmarks tie for every query.
Differs from the paper: the body is LLaMA-shaped by default (the paper trains a GPT-2-like one from scratch);
every training segment starts with a new block, where the published code cuts its stream at any token.
"""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.host import is_readable, row_lengths
from zoo.memory.attention.position_options import Position
from zoo.memory.retrieval.landmark_attention import LandmarkAttention, Selection
from zoo.models.decoder import Decoder, DecoderOptions, attention_options
from zoo.module import Batch
from zoo.state import State, replace_rows


def validate(
    segment_len: int, depth: int, mem_freq: int, capacity: int, topk: int, retrieve_from_layer: int
) -> None:
    """Raises ValueError for settings that are out of range or don't fit one another."""
    if mem_freq < 1 or segment_len % mem_freq:
        raise ValueError(f"segment_len {segment_len} is not a multiple of mem_freq {mem_freq}")
    if capacity < mem_freq:
        raise ValueError(f"capacity {capacity} holds no block of mem_freq {mem_freq} tokens")
    if topk < 1:
        raise ValueError(f"topk must be at least 1, not {topk}")
    if not 0 <= retrieve_from_layer < depth:
        raise ValueError(
            f"retrieve_from_layer must be one of the layers 0 .. {depth - 1}, not {retrieve_from_layer}"
        )


class Landmark(Decoder):
    """A landmark follows every `mem_freq` tokens; `capacity` is in tokens, `topk` in blocks per query;
    ValueError for settings that are out of range or don't fit one another (`validate`)."""

    learns_through_memory = False
    reads_memory_in_training = False  # a segment is all that is read
    reach = None
    parallel = "segments"

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        mem_freq: int,
        capacity: int,
        topk: int,
        selection: Selection = "token_and_head",
        retrieve_from_layer: int = 1,
        interleaved: bool = False,
        position: Position = "rope",
        qk_norm: bool = False,
        **options: Unpack[DecoderOptions],
    ) -> None:
        validate(segment_len, depth, mem_freq, capacity, topk, retrieve_from_layer)

        def mixer(layer: int) -> LandmarkAttention:
            return LandmarkAttention(
                width,
                heads,
                segment_len=segment_len + segment_len // mem_freq,
                block_len=mem_freq + 1,
                num_blocks=capacity // mem_freq if layer >= retrieve_from_layer else 0,
                topk=topk,
                selection=selection,
                interleaved=interleaved,
                position=position,
                qk_norm=qk_norm,
                **attention_options(options),
            )

        mixers = map(mixer, range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
        self.mem_freq = mem_freq
        if selection == "head":
            self.decodes = False  # the selection depends on a segment's later tokens
        # like an embedding: standard deviation 1 / sqrt(width)
        self.landmark = nn.Parameter(torch.randn(width) * width**-0.5)

    def landmark_embedding(self) -> Float[Tensor, " width"]:
        """The embedding that stands at every landmark of the stream."""
        return self.landmark

    def hidden_segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        rows, time = tokens.shape
        if self.training:
            return self._segment(tokens, state, tokens.new_zeros(rows), time // self.mem_freq)
        offset = state[0].open_length
        # where mem_freq divides `time`, offsets don't matter
        offsets = self._offsets(offset, time) if time % self.mem_freq and rows else [0]
        numbers = {(first + time) // self.mem_freq for first in offsets}
        hidden, after = self._segment(tokens, state, offset, max(numbers))
        if len(numbers) > 1:  # two, which differ by 1: each row takes what was read with its number
            fewer = (offset + time) // self.mem_freq < max(numbers)
            other_hidden, other = self._segment(tokens, state, offset, min(numbers))
            hidden = torch.where(fewer[:, None, None], other_hidden, hidden)
            after = replace_rows(after, other, fewer)
        return hidden, after

    def _segment(
        self, tokens: Int[Tensor, "rows time"], state: State, offset: Int[Tensor, " rows"], num_landmarks: int
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        """`hidden_segment` of rows with this number of landmarks; undefined for others."""
        length = tokens.shape[1] + num_landmarks
        x, positions = self.insert_landmarks(tokens, offset, length)
        x, state = self.body(x, state)
        return x.take_along_dim(positions.clamp(max=length - 1)[..., None], dim=1), state

    def _offsets(self, offset: Int[Tensor, " rows"], time: int) -> Iterable[int]:
        """The offsets of rows in their blocks before a call of `time` tokens; all that are possible where the
        host doesn't know them."""
        lengths = row_lengths(len(offset))
        if lengths is not None and lengths.time == time:  # the call is the entire window
            return [before % self.mem_freq for before in lengths.before]
        return offset.tolist() if is_readable(offset) else range(self.mem_freq)

    def init_decode_cache(self, state: State) -> Any:
        """The offset of all rows in their blocks, and the cache of `decode_body`; None where offsets differ,
        or where the host doesn't know them."""
        offset = state[0].open_length
        if not len(offset):
            return 0, (0, self.stack.init_decode_cache(state))
        offsets = set(self._offsets(offset, 0))
        return (offsets.pop(), (0, self.stack.init_decode_cache(state))) if len(offsets) == 1 else None

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        offset, body_cache = cache
        rows, time = tokens.shape
        num_landmarks = (offset + time) // self.mem_freq
        x, positions = self.insert_landmarks(tokens, tokens.new_full((rows,), offset), time + num_landmarks)
        x, body_cache = self.decode_body(x, body_cache)
        logits = self.logits(x.take_along_dim(positions[..., None], dim=1))
        return logits, ((offset + time) % self.mem_freq, body_cache)

    def insert_landmarks(
        self, tokens: Int[Tensor, "rows time"], offset: Int[Tensor, " rows"], length: int
    ) -> tuple[Float[Tensor, "rows stream width"], Int[Tensor, "rows time"]]:
        """Embeddings of `length` tokens and landmarks, and the positions of the tokens among them.

        A row's first token is token number `offset` of its block.
        """
        time, block_len = tokens.shape[1], self.mem_freq + 1
        position = torch.arange(length, device=tokens.device)
        stream_offset = offset[:, None] + position  # from the start of the first block
        source_index = (position - stream_offset // block_len).clamp(max=time - 1)
        x = torch.where(
            (stream_offset % block_len == self.mem_freq)[..., None],
            self.landmark_embedding(),
            self.embed(tokens.take_along_dim(source_index, dim=1)),
        )
        token_index = torch.arange(time, device=tokens.device)
        return x, token_index + (offset[:, None] + token_index) // self.mem_freq

    def compute_loss(self, batch: Batch, state: State | None) -> tuple[dict[str, Tensor], Any]:
        """Nothing is carried in train mode: the banks would stay empty."""
        outputs, state = super().compute_loss(batch, None if self.training else state)
        return outputs, None if self.training else state
