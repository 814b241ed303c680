"""Unlimiformer, decoder-only: a transformer whose upper layers also attend to the nearest earlier tokens.

Bertsch et al. 2023, arXiv:2305.01625; its attention in the paper's symbols:
memory/retrieval/unlimiformer_attention.py.

    below `layer_begin`   x += attention(norm(x))                  inside the segment
    from there on         x += attention(norm(x), nearest(bank))   in one softmax
    after a segment       bank <- norm(x) of its tokens            one index for all heads of a layer

Carried from segment to segment, by each layer from `layer_begin` on: its last `capacity` normed inputs.
There are no new weights.  It trains as `transformer` does, each segment alone and nothing carried, or starts
from a trained one (`model.base=<run_dir>`); in evaluation it reads and fills its memory.  With
`retrieval_training` it does so in training too: the gradient runs through retrieved tokens into earlier
segments of the same window; their choice is constant.
Differs from the paper: decoder-only.  Its encoder-decoder has one index of the encoder's outputs for all
layers; here each layer has an index of its inputs, read segment by segment and not in overlapping windows.
The published code for decoders replaces the oldest keys by retrieved ones; here these join the whole segment.
The paper's retrieved keys have no positions (`retrieved_positions=none`, the default of this class and that
of runs from before there was the setting).  configs/model places them one segment back (`before`): weights
that were trained with rotary positions take a key without any for one at distance 0.
"""

from typing import Literal, Unpack

import torch
from torch import Tensor

from zoo.memory.retrieval.bank import Backend, Bank, KNNMemory, recall_diagnostics
from zoo.memory.retrieval.faiss_index import IndexType
from zoo.memory.retrieval.unlimiformer_attention import RetrievedPositions, UnlimiformerAttention
from zoo.models.blocks import Block
from zoo.models.decoder import attention_options
from zoo.models.transformer import Transformer, TransformerOptions
from zoo.module import Batch
from zoo.state import State


class Unlimiformer(Transformer):
    """`capacity` tokens are stored in blocks of `block`, `neighbours` of them retrieved per query and head,
    by every layer from `layer_begin` on; ValueError for settings that are out of range or don't fit one
    another."""

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
        layer_begin: int | None = None,
        retrieved_positions: RetrievedPositions = "none",
        retrieval_training: bool = False,
        backend: Backend = "torch",
        index: IndexType = "flat",
        memory_dtype: Literal["bfloat16"] | None = None,
        **options: Unpack[TransformerOptions],
    ) -> None:
        layer_begin = depth // 2 if layer_begin is None else layer_begin
        if not 0 <= layer_begin < depth:
            raise ValueError(f"layer_begin must be one of the layers 0 .. {depth - 1}, not {layer_begin}")
        if retrieved_positions == "spread" and layer_begin == 0:  # equal tokens tie, at different positions
            raise ValueError(
                "retrieved_positions: expected none, start or before with layer_begin=0, found spread: equal "
                "tokens are stored alike there, and rounding would choose among them"
            )
        if options.get("shifted"):  # the upper layers attend to retrieved tokens as well
            raise ValueError(f"shifted: expected none beside retrieval, found {options['shifted']}")
        super().__init__(vocab_size, segment_len, depth, width, heads, mlp_width, **options)
        for layer in list(self.stack)[layer_begin:]:
            assert isinstance(layer, Block)
            layer.mixer = UnlimiformerAttention(
                width,
                heads,
                KNNMemory(capacity, 1, width, 0, neighbours, block, backend, index, memory_dtype, lag=0),
                segment_len=segment_len,
                retrieved_positions=retrieved_positions,
                retrieval_training=retrieval_training,
                context=segment_len,
                **attention_options(options),
            )
        self.init_weights()
        self.remembers, self.learns_through_memory = True, retrieval_training
        self.reads_memory_in_training = retrieval_training
        self.retrieval_training, self.reach = retrieval_training, None

    @property
    def forgets(self) -> bool:
        """True if in the current mode each segment is read alone, as by `transformer`."""
        return self.training and not self.retrieval_training

    @torch.no_grad()
    def costly_diagnostics(self, state: State) -> dict[str, float]:
        """With faiss, the index's recall; empty where nothing is carried."""
        if state is None:
            return {}
        memories = [part.knn for part in self.modules() if isinstance(part, UnlimiformerAttention)]
        return recall_diagnostics(memories, [bank for bank in state if isinstance(bank, Bank)])

    def compute_loss(self, batch: Batch, state: State | None) -> tuple[dict[str, Tensor], State]:
        """Nothing is carried where segments are read alone: the memories would stay empty."""
        outputs, state = super().compute_loss(batch, None if self.forgets else state)
        return outputs, None if self.forgets else state
