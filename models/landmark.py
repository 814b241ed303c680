"""Landmark transformer: reads its segment, and through landmark tokens the blocks of all that came before.

Mohtashami & Jaggi 2023, arXiv:2305.16300; attention, bank and positions:
memory/retrieval/landmark_attention.py.

    stream = w_1 .. w_f L w_{f+1} .. w_{2f} L ..        f = mem_freq, L a learned embedding
    h += attention(norm(h))        h += mlp(norm(h))        logits = E norm(h), at tokens only

In train mode each segment is read alone and all segments of a window are one batch: nothing is carried, read
or written.  In eval mode each segment also retrieves `topk` blocks.  Carried then, per layer: the last
`capacity` tokens' blocks of keys and values, and the block that a short segment left open.  Layers below
`retrieve_from_layer` have no bank: in layer 0 all old landmarks have one key, and a choice among them says
nothing.
Differs from the paper: the body is LLaMA-shaped by default (the paper trains a GPT-2-like one from scratch);
the blocks of a training context begin with it, where the published code cuts a stream anywhere.
"""

from typing import Any, Unpack

import torch
from jaxtyping import Float, Int
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
        if selection == "head":  # by a segment's later tokens, too
            self.decodes = False
        self.landmark = nn.Parameter(torch.randn(width) * width**-0.5)  # as strong as an embedding

    def marker(self) -> Float[Tensor, " width"]:
        """The embedding of a landmark."""
        return self.landmark

    def segment(
        self, tokens: Int[Tensor, "rows time"], state: State
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        rows, time = tokens.shape
        here = tokens.new_zeros(rows) if self.training else state[0].length % (self.mem_freq + 1)
        closed = (here + time) // self.mem_freq
        count = time // self.mem_freq
        if time % self.mem_freq and rows:  # else as many landmarks in every row, wherever its block is open
            count = int(closed[0])
            apart = closed != count
            if apart.any():
                return self._read_apart(tokens, state, apart)
        x, places = self.insert_landmarks(tokens, here, time + count)
        x, state = self.body(x, state)
        return self.head(x.take_along_dim(places[..., None], dim=1)), state

    def init_decode_cache(self, state: State) -> Any:
        """How far each row is into its block, and what `decode_body` knows.  None where rows stand at
        different offsets."""
        here = state[0].length % (self.mem_freq + 1)
        if (here != here[:1]).any():
            return None
        return here, (0, self.stack.init_decode_cache(state))

    def decode(
        self, tokens: Int[Tensor, "rows time"], cache: Any
    ) -> tuple[Float[Tensor, "rows time vocab"], Any]:
        here, known = cache
        time = tokens.shape[1]
        count = (int(here[0]) + time) // self.mem_freq if len(here) else 0
        x, places = self.insert_landmarks(tokens, here, time + count)
        x, known = self.decode_body(x, known)
        return self.head(x.take_along_dim(places[..., None], dim=1)), ((here + time) % self.mem_freq, known)

    def insert_landmarks(
        self, tokens: Int[Tensor, "rows time"], here: Int[Tensor, " rows"], slots: int
    ) -> tuple[Float[Tensor, "rows slots width"], Int[Tensor, "rows time"]]:
        """Embeddings with landmarks among them, and where the tokens stand, `here` tokens into a block."""
        time, block = tokens.shape[1], self.mem_freq + 1
        line = here[:, None] + torch.arange(slots, device=tokens.device)
        index = (torch.arange(slots, device=tokens.device) - line // block).clamp(max=time - 1)
        x = torch.where(
            (line % block == self.mem_freq)[..., None],
            self.marker(),
            self.embed(tokens.take_along_dim(index, dim=1)),
        )
        order = torch.arange(time, device=tokens.device)
        return x, order + (here[:, None] + order) // self.mem_freq

    def _read_apart(
        self, tokens: Int[Tensor, "rows time"], state: State, apart: Tensor
    ) -> tuple[Float[Tensor, "rows time vocab"], State]:
        """Rows in which more landmarks fall into a short segment than in others, each kind by itself."""
        groups = [kind.nonzero()[:, 0] for kind in (apart, ~apart)]
        back = torch.cat(groups).argsort()
        (one, after_one), (two, after_two) = (
            self.segment(tokens[rows], take_rows(state, rows)) for rows in groups
        )
        return torch.cat([one, two])[back], tree_map(
            lambda x, y: torch.cat([x, y])[back], after_one, after_two
        )

    def compute_loss(self, batch: Batch, carried: State | None) -> tuple[dict[str, Tensor], Any]:
        """In train mode an empty bank for every row would only be moved about: nothing is carried."""
        said, state = super().compute_loss(batch, None if self.training else carried)
        return said, None if self.training else state
