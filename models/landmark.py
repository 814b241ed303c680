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

from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.memory.retrieval.landmark_attention import LandmarkAttention, Selection
from zoo.models.decoder import Decoder, DecoderOptions, attention_options
from zoo.module import Batch
from zoo.state import State, take_rows, tree_map


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
    learns_through_memory = False
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
        offset = tokens.new_zeros(rows) if self.training else state[0].open_length
        num_landmarks = time // self.mem_freq  # in `time` tokens at any offset, if mem_freq divides `time`
        if time % self.mem_freq and rows:
            landmarks_per_row = (offset + time) // self.mem_freq
            num_landmarks = int(landmarks_per_row[0])
            if (landmarks_per_row != num_landmarks).any():
                return self._segment_in_groups(tokens, state, landmarks_per_row != num_landmarks)
        x, positions = self.insert_landmarks(tokens, offset, time + num_landmarks)
        x, state = self.body(x, state)
        return x.take_along_dim(positions[..., None], dim=1), state

    def init_decode_cache(self, state: State) -> Any:
        """Each row's offset in its block, and the cache of `decode_body`; None where offsets differ."""
        offset = state[0].open_length
        if (offset != offset[:1]).any():
            return None
        return offset, (0, self.stack.init_decode_cache(state))

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        offset, body_cache = cache
        time = tokens.shape[1]
        num_landmarks = (int(offset[0]) + time) // self.mem_freq if len(offset) else 0
        x, positions = self.insert_landmarks(tokens, offset, time + num_landmarks)
        x, body_cache = self.decode_body(x, body_cache)
        logits = self.head(x.take_along_dim(positions[..., None], dim=1))
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

    def _segment_in_groups(
        self, tokens: Int[Tensor, "rows time"], state: State, mask: Bool[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        """`hidden_segment` for the rows in the mask and for the rest separately: the number of landmarks is
        the same within a group, and differs between the two."""
        groups = [group.nonzero()[:, 0] for group in (mask, ~mask)]
        inverse = torch.cat(groups).argsort()
        outputs = [self.hidden_segment(tokens[rows], take_rows(state, rows)) for rows in groups]
        hidden, states = zip(*outputs, strict=True)
        return torch.cat(hidden)[inverse], tree_map(lambda *parts: torch.cat(parts)[inverse], *states)

    def compute_loss(self, batch: Batch, state: State | None) -> tuple[dict[str, Tensor], Any]:
        """Nothing is carried in train mode: the banks would stay empty."""
        outputs, state = super().compute_loss(batch, None if self.training else state)
        return outputs, None if self.training else state
