"""Landmark transformer: attends to its segment and, through landmark tokens, to blocks of all earlier text.

Mohtashami & Jaggi 2023, arXiv:2305.16300; attention, bank and positions:
memory/retrieval/landmark_attention.py.

    stream = w_1 .. w_f L w_{f+1} .. w_{2f} L ..        f = mem_freq, L a learned embedding
    h += attention(norm(h))        h += mlp(norm(h))        logits = E norm(h), at tokens only

In train mode each segment is read alone and all segments of a window are one batch: nothing is carried, read
or written.  In eval mode each segment also retrieves `topk` blocks.  Carried then, per layer: the last
`capacity` tokens' blocks of keys and values, and the block that a short segment left open.  Layers below
`retrieve_from_layer` have no bank: in layer 0 all old landmarks have the same key, and none can be preferred.
Differs from the paper: the body is LLaMA-shaped by default (the paper trains a GPT-2-like one from scratch);
a training context starts a block, where the published code cuts a stream anywhere.
"""

from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.memory.retrieval.landmark_attention import LandmarkAttention, Selection
from zoo.models.decoder import Decoder, DecoderOptions, attention_options
from zoo.module import Batch
from zoo.state import State, take_rows, tree_map


def check(
    segment_len: int, depth: int, mem_freq: int, capacity: int, topk: int, retrieve_from_layer: int
) -> None:
    """Raises ValueError for settings that don't go together."""
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
        check(segment_len, depth, mem_freq, capacity, topk, retrieve_from_layer)

        def mixer(layer: int) -> LandmarkAttention:
            return LandmarkAttention(
                width,
                heads,
                segment=segment_len + segment_len // mem_freq,
                block=mem_freq + 1,
                blocks=capacity // mem_freq if layer >= retrieve_from_layer else 0,
                topk=topk,
                selection=selection,
                interleaved=interleaved,
                **attention_options(options),
            )

        mixers = map(mixer, range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)
        self.mem_freq = mem_freq
        if selection == "head":  # depends on a segment's later tokens
            self.decodes = False
        self.landmark = nn.Parameter(torch.randn(width) * width**-0.5)  # an embedding's deviation

    def marker(self) -> Float[Tensor, " width"]:
        """The embedding of a landmark."""
        return self.landmark

    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        rows, time = tokens.shape
        offset = tokens.new_zeros(rows) if self.training else state[0].open_length
        landmarks = time // self.mem_freq  # the same in every row, wherever its block is open
        if time % self.mem_freq and rows:
            per_row = (offset + time) // self.mem_freq
            landmarks = int(per_row[0])
            if (per_row != landmarks).any():
                return self._segment_in_groups(tokens, state, per_row != landmarks)
        x, positions = self.insert_landmarks(tokens, offset, time + landmarks)
        x, state = self.body(x, state)
        return self.head(x.take_along_dim(positions[..., None], dim=1)), state

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
        landmarks = (int(offset[0]) + time) // self.mem_freq if len(offset) else 0
        x, positions = self.insert_landmarks(tokens, offset, time + landmarks)
        x, body_cache = self.decode_body(x, body_cache)
        logits = self.head(x.take_along_dim(positions[..., None], dim=1))
        return logits, ((offset + time) % self.mem_freq, body_cache)

    def insert_landmarks(
        self, tokens: Int[Tensor, "rows time"], offset: Int[Tensor, " rows"], length: int
    ) -> tuple[Float[Tensor, "rows stream width"], Int[Tensor, "rows time"]]:
        """Embeddings of the stream, `length` long, which starts at an offset in a block; and the positions of
        the tokens in it."""
        time, block = tokens.shape[1], self.mem_freq + 1
        in_stream = offset[:, None] + torch.arange(length, device=tokens.device)
        index = (torch.arange(length, device=tokens.device) - in_stream // block).clamp(max=time - 1)
        x = torch.where(
            (in_stream % block == self.mem_freq)[..., None],
            self.marker(),
            self.embed(tokens.take_along_dim(index, dim=1)),
        )
        order = torch.arange(time, device=tokens.device)
        return x, order + (offset[:, None] + order) // self.mem_freq

    def _segment_in_groups(
        self, tokens: Int[Tensor, "rows time"], state: State, in_first: Bool[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """`segment` for two groups of rows, where a short segment has more landmarks in some rows than in
        others."""
        groups = [group.nonzero()[:, 0] for group in (in_first, ~in_first)]
        inverse = torch.cat(groups).argsort()
        outputs = [self.segment(tokens[rows], take_rows(state, rows)) for rows in groups]
        logits, states = zip(*outputs, strict=True)
        return torch.cat(logits)[inverse], tree_map(lambda *parts: torch.cat(parts)[inverse], *states)

    def compute_loss(self, batch: Batch, state: State | None) -> tuple[dict[str, Tensor], Any]:
        """Nothing is carried in train mode: the banks would stay empty."""
        outputs, state = super().compute_loss(batch, None if self.training else state)
        return outputs, None if self.training else state
